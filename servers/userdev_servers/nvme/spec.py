"""Numbers of the NVM Express Base Specification 1.4, under the names it gives them."""

from __future__ import annotations

from enum import IntEnum

PAGE = 4096
SQ_ENTRY, CQ_ENTRY = 64, 16
"""Bytes of a command and of a completion."""
ALL_NAMESPACES = 0xFFFFFFFF
MAX_TRANSFER_SHIFT = 8
"""MDTS of these controllers: 1 MiB, in pages of 4 KiB."""
MAX_TRANSFER = PAGE << MAX_TRANSFER_SHIFT


DOORBELLS = 0x1000
"""Where they begin in BAR 0: of each queue pair, admin queues first, the submission queue's and the completion queue's.
With CAP.DSTRD 0 they are 4 bytes each."""


class Admin(IntEnum):
    """Opcodes of the admin queue (figure 139)."""

    DELETE_SQ = 0x00
    CREATE_SQ = 0x01
    GET_LOG_PAGE = 0x02
    DELETE_CQ = 0x04
    CREATE_CQ = 0x05
    IDENTIFY = 0x06
    ABORT = 0x08
    SET_FEATURES = 0x09
    GET_FEATURES = 0x0A
    ASYNC_EVENT_REQUEST = 0x0C
    NAMESPACE_MANAGEMENT = 0x0D
    NAMESPACE_ATTACHMENT = 0x15
    DOORBELL_BUFFER_CONFIG = 0x7C
    FORMAT_NVM = 0x80


class Io(IntEnum):
    """Opcodes of the NVM command set (figure 346)."""

    FLUSH = 0x00
    WRITE = 0x01
    READ = 0x02
    COMPARE = 0x05
    WRITE_ZEROES = 0x08
    DATASET_MANAGEMENT = 0x09


class Status(IntEnum):
    """Status code type and status code, as bits 10:0 of the status field (figures 126 to 130)."""

    SUCCESS = 0x000
    INVALID_OPCODE = 0x001
    INVALID_FIELD = 0x002
    DATA_TRANSFER_ERROR = 0x004
    INTERNAL_ERROR = 0x006
    ABORT_REQUESTED = 0x007
    INVALID_NAMESPACE = 0x00B
    COMMAND_SEQUENCE_ERROR = 0x00C
    INVALID_SGL_SEGMENT = 0x00D
    INVALID_SGL_COUNT = 0x00E
    DATA_SGL_LENGTH_INVALID = 0x00F
    SGL_TYPE_INVALID = 0x011
    INVALID_PRP_OFFSET = 0x013
    WRITE_PROTECTED = 0x020
    LBA_OUT_OF_RANGE = 0x080
    CAPACITY_EXCEEDED = 0x081
    FORMAT_IN_PROGRESS = 0x084

    CQ_INVALID = 0x100
    INVALID_QUEUE_ID = 0x101
    INVALID_QUEUE_SIZE = 0x102
    TOO_MANY_EVENT_REQUESTS = 0x105
    INVALID_INTERRUPT_VECTOR = 0x108
    INVALID_LOG_PAGE = 0x109
    INVALID_FORMAT = 0x10A
    INVALID_QUEUE_DELETION = 0x10C
    FEATURE_NOT_SAVEABLE = 0x10D
    FEATURE_NOT_CHANGEABLE = 0x10E
    FEATURE_NOT_PER_NAMESPACE = 0x10F
    INSUFFICIENT_CAPACITY = 0x115
    NAMESPACE_ID_UNAVAILABLE = 0x116
    NAMESPACE_ALREADY_ATTACHED = 0x118
    NAMESPACE_NOT_ATTACHED = 0x11A
    THIN_PROVISIONING_NOT_SUPPORTED = 0x11B
    CONTROLLER_LIST_INVALID = 0x11C

    WRITE_FAULT = 0x280
    UNRECOVERED_READ_ERROR = 0x281
    COMPARE_FAILURE = 0x285


DO_NOT_RETRY = 0x4000
"""Bit of the status field: the same command would fail again."""


class Feature(IntEnum):
    """Feature identifiers (figure 275)."""

    ARBITRATION = 0x01
    POWER_MANAGEMENT = 0x02
    TEMPERATURE_THRESHOLD = 0x04
    ERROR_RECOVERY = 0x05
    VOLATILE_WRITE_CACHE = 0x06
    NUMBER_OF_QUEUES = 0x07
    INTERRUPT_COALESCING = 0x08
    INTERRUPT_VECTOR_CONFIG = 0x09
    WRITE_ATOMICITY = 0x0A
    ASYNC_EVENT_CONFIG = 0x0B
    TIMESTAMP = 0x0E


class LogPage(IntEnum):
    """Log page identifiers (figure 191)."""

    ERRORS = 0x01
    SMART = 0x02
    FIRMWARE = 0x03
    CHANGED_NAMESPACES = 0x04
    COMMAND_EFFECTS = 0x05


class EventType(IntEnum):
    """Asynchronous event types (figure 148)."""

    ERROR = 0
    SMART = 1
    NOTICE = 2


class HealthEvent(IntEnum):
    """The information of an event of type SMART (figure 150)."""

    RELIABILITY = 0
    TEMPERATURE = 1


CRITICAL_WARNING = {HealthEvent.RELIABILITY: 1 << 2, HealthEvent.TEMPERATURE: 1 << 1}
"""Bits of the SMART log's first byte (figure 194), and of Asynchronous Event Configuration to ask for it."""


class Cc:
    """Controller configuration, register 14h."""

    ENABLE = 1
    COMMAND_SET = 7 << 4
    PAGE_SIZE = 0xF << 7
    ARBITRATION = 7 << 11
    SHUTDOWN = 3 << 14
    SQ_ENTRY_SIZE, CQ_ENTRY_SIZE = 0xF << 16, 0xF << 20
    WRITABLE = 0x00FFFFF1


class Csts:
    """Controller status, register 1Ch."""

    READY = 1
    FATAL = 1 << 1
    SHUTDOWN_UNDER_WAY = 1 << 2
    SHUTDOWN_COMPLETE = 2 << 2
    SHUTDOWN = 3 << 2
    SUBSYSTEM_RESET = 1 << 4


SUBSYSTEM_RESET_WORD = 0x4E564D65
"""'NVMe': what NSSR has to be given."""


class Failure(Exception):
    """A command ends with a status other than success. `retry`: the same command may succeed later."""

    def __init__(self, status: Status, *, retry: bool = False) -> None:
        super().__init__(status)
        self.field = int(status) | (0 if retry else DO_NOT_RETRY)
