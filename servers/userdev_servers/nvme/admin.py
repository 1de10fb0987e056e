"""Commands of the admin queue: a table, and a function for each that raises Failure before it changes anything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import unpack_from
from typing import TYPE_CHECKING

from userdev_servers.nvme.features import get_features, set_features
from userdev_servers.nvme.identify import CONTROLLER_ID, identify
from userdev_servers.nvme.io_commands import sync_all, write_failure
from userdev_servers.nvme.logs import get_log_page
from userdev_servers.nvme.namespace import FORMATS, Namespace
from userdev_servers.nvme.pointers import receive
from userdev_servers.nvme.queues import CompletionQueue, SubmissionQueue
from userdev_servers.nvme.spec import ALL_NAMESPACES, Admin, Failure, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.background import Outcome
    from userdev_servers.nvme.nvme import Nvme
    from userdev_servers.nvme.queues import Command

_CONTIGUOUS, _INTERRUPTS = 1, 2
"""Bits of the queue flags."""
_CREATE, _DELETE = 0, 1
_ATTACH, _DETACH = 0, 1
_LIST_SIZE = 4096


def create_completion_queue(device: Nvme, command: Command) -> int:
    number, entries = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
    flags, vector = command.cdw11 & 0xFFFF, command.cdw11 >> 16
    if not 1 <= number <= device.max_queues or number in device.engine.completion_queues:
        raise Failure(Status.INVALID_QUEUE_ID)
    _check_place(device, command, entries, flags)
    if vector and (device.interrupts.active != "msix" or vector >= device.vectors):
        raise Failure(Status.INVALID_INTERRUPT_VECTOR)
    queue = CompletionQueue(number, command.prp1, entries, vector, interrupts=bool(flags & _INTERRUPTS))
    device.engine.add(queue)
    return 0


def create_submission_queue(device: Nvme, command: Command) -> int:
    number, entries = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
    flags, completion = command.cdw11 & 0xFFFF, command.cdw11 >> 16
    if not completion or completion not in device.engine.completion_queues:
        raise Failure(Status.CQ_INVALID if completion <= device.max_queues else Status.INVALID_QUEUE_ID)
    if not 1 <= number <= device.max_queues or number in device.engine.submission_queues:
        raise Failure(Status.INVALID_QUEUE_ID)
    _check_place(device, command, entries, flags)
    device.engine.add(SubmissionQueue(number, command.prp1, entries, device.engine.completion_queues[completion]))
    return 0


def _check_place(device: Nvme, command: Command, entries: int, flags: int) -> None:
    if not 2 <= entries <= device.queue_entries:
        raise Failure(Status.INVALID_QUEUE_SIZE)
    if command.prp1 & device.page_size - 1:
        raise Failure(Status.INVALID_PRP_OFFSET)
    if not flags & _CONTIGUOUS:
        raise Failure(Status.INVALID_FIELD)


def delete_submission_queue(device: Nvme, command: Command) -> int:
    number = command.cdw10 & 0xFFFF
    if not number or number not in device.engine.submission_queues:
        raise Failure(Status.INVALID_QUEUE_ID)
    device.engine.drain()
    queue = device.engine.submission_queues.pop(number)
    queue.cq.waiting.discard(number)
    return 0


def delete_completion_queue(device: Nvme, command: Command) -> int:
    number = command.cdw10 & 0xFFFF
    if not number or number not in device.engine.completion_queues:
        raise Failure(Status.INVALID_QUEUE_ID)
    if any(queue.cq.id == number for queue in device.engine.submission_queues.values()):
        raise Failure(Status.INVALID_QUEUE_DELETION)
    del device.engine.completion_queues[number]
    return 0


def abort(device: Nvme, command: Command) -> int:
    """Only event requests wait long enough to be aborted; bit 0 of the result says that nothing was."""
    queue, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
    if queue not in device.engine.submission_queues:
        raise Failure(Status.INVALID_FIELD)
    if queue or not device.event_queue.abort(cid):
        return 1
    device.engine.answer(command.queue, cid, 0, Failure(Status.ABORT_REQUESTED, retry=True).field)
    return 0


def async_event_request(device: Nvme, command: Command) -> None:
    device.event_queue.request(command)


def format_nvm(device: Nvme, command: Command) -> int | None:
    """All blocks become zeros, of the size that is asked for; cryptographic erase there is not."""
    place, rest, erase = command.cdw10 & 0xF, command.cdw10 >> 4 & 0x1F, command.cdw10 >> 9 & 7
    if command.nsid == ALL_NAMESPACES:
        chosen = [namespace for namespace in device.namespaces if namespace.active]
    else:
        chosen = [device.active_namespace(command.nsid)]
    if place >= len(FORMATS) or rest:
        raise Failure(Status.INVALID_FORMAT)
    if erase > 1:
        raise Failure(Status.INVALID_FIELD)
    if any(namespace.read_only for namespace in chosen):
        raise Failure(Status.WRITE_PROTECTED)
    device.engine.drain()

    def work() -> None:
        for namespace in chosen:
            namespace.backing.discard(0, namespace.backing.size)
        sync_all(chosen)  # what was erased does not come back

    def done(outcome: Outcome) -> Exception | None:
        if outcome is None:
            for namespace in chosen:
                size = namespace.size
                namespace.shift = FORMATS[place]
                namespace.blocks = size >> namespace.shift
                device.namespace_changed(namespace)
        return write_failure(device, outcome)

    device.engine.later(command, work, done)
    return None


def namespace_management(device: Nvme, command: Command) -> int | None:
    match command.cdw10 & 0xF:
        case 0:
            return _create_namespace(device, command)
        case 1:
            return _delete_namespace(device, command)
    raise Failure(Status.INVALID_FIELD)


def _create_namespace(device: Nvme, command: Command) -> int | None:
    """In an image whose namespace was deleted: the first that is large enough."""
    data = receive(device, command, _LIST_SIZE)
    blocks, capacity, place = unpack_from("<QQ10xB", data)
    if place & 0xF >= len(FORMATS):
        raise Failure(Status.INVALID_FORMAT)
    if blocks != capacity:
        raise Failure(Status.THIN_PROVISIONING_NOT_SUPPORTED)
    free = [namespace for namespace in device.namespaces if not namespace.exists and not namespace.read_only]
    shift = FORMATS[place & 0xF]
    chosen = next((each for each in free if 0 < blocks << shift <= each.backing.size), None)
    if chosen is None:
        raise Failure(Status.INSUFFICIENT_CAPACITY if free else Status.NAMESPACE_ID_UNAVAILABLE)
    namespace = chosen

    def done(outcome: Outcome) -> Exception | None:
        if outcome is None:
            namespace.exists, namespace.blocks, namespace.shift = True, blocks, shift
        return write_failure(device, outcome)

    device.engine.later(command, partial(namespace.backing.discard, 0, blocks << shift), done, result=namespace.nsid)
    return None


def _delete_namespace(device: Nvme, command: Command) -> int:
    if command.nsid == ALL_NAMESPACES:
        chosen = [namespace for namespace in device.namespaces if namespace.exists]
    else:
        chosen = [_existing(device, command.nsid)]
    device.engine.drain()
    for namespace in chosen:
        was_active = namespace.active
        namespace.exists = namespace.attached = False
        if was_active:
            device.namespace_changed(namespace)
    return 0


def namespace_attachment(device: Nvme, command: Command) -> int:
    namespace = _existing(device, command.nsid)
    action = command.cdw10 & 0xF
    if action not in (_ATTACH, _DETACH):
        raise Failure(Status.INVALID_FIELD)
    data = receive(device, command, _LIST_SIZE)
    (count,) = unpack_from("<H", data)
    if count != 1 or unpack_from("<H", data, 2) != (CONTROLLER_ID,):
        raise Failure(Status.CONTROLLER_LIST_INVALID)
    attach = action == _ATTACH
    if namespace.attached == attach:
        raise Failure(Status.NAMESPACE_ALREADY_ATTACHED if attach else Status.NAMESPACE_NOT_ATTACHED)
    device.engine.drain()
    namespace.attached = attach
    device.namespace_changed(namespace)
    return 0


def _existing(device: Nvme, nsid: int) -> Namespace:
    namespace = device.namespace(nsid)
    if not namespace.exists:
        raise Failure(Status.INVALID_FIELD)
    return namespace


def doorbell_buffer_config(device: Nvme, command: Command) -> int:
    if not device.offers_shadow_doorbells:
        raise Failure(Status.INVALID_OPCODE)
    if (command.prp1 | command.prp2) & device.page_size - 1 or command.prp1 == command.prp2:
        raise Failure(Status.INVALID_FIELD)
    device.engine.begin_shadow_doorbells(command.prp1, command.prp2)
    return 0


HANDLERS: dict[int, Callable[[Nvme, Command], int | None]] = {
    Admin.DELETE_SQ: delete_submission_queue,
    Admin.CREATE_SQ: create_submission_queue,
    Admin.GET_LOG_PAGE: get_log_page,
    Admin.DELETE_CQ: delete_completion_queue,
    Admin.CREATE_CQ: create_completion_queue,
    Admin.IDENTIFY: identify,
    Admin.ABORT: abort,
    Admin.SET_FEATURES: set_features,
    Admin.GET_FEATURES: get_features,
    Admin.ASYNC_EVENT_REQUEST: async_event_request,
    Admin.NAMESPACE_MANAGEMENT: namespace_management,
    Admin.NAMESPACE_ATTACHMENT: namespace_attachment,
    Admin.DOORBELL_BUFFER_CONFIG: doorbell_buffer_config,
    Admin.FORMAT_NVM: format_nvm,
}
