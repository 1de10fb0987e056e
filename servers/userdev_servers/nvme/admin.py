"""Commands of the admin queue: a table, and a function for each that raises Failure before it changes anything."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from struct import unpack_from
from typing import TYPE_CHECKING

from userdev_servers.nvme.features import get_features, set_features
from userdev_servers.nvme.identify import CONTROLLER_ID, identify
from userdev_servers.nvme.io_commands import write_failure
from userdev_servers.nvme.logs import get_log_page
from userdev_servers.nvme.model import QUEUE_ENTRIES
from userdev_servers.nvme.namespace import FORMATS, Namespace, sync_all
from userdev_servers.nvme.pointers import receive
from userdev_servers.nvme.queues import CompletionQueue, SubmissionQueue
from userdev_servers.nvme.spec import ALL_NAMESPACES, CQ_ENTRY, SQ_ENTRY, Admin, Cc, Failure, Status

if TYPE_CHECKING:
    from userdev_servers.nvme.controller import Controller, Outcome
    from userdev_servers.nvme.queues import Command

_CONTIGUOUS, _INTERRUPTS = 1, 2
"""Bits of the queue flags."""
_CREATE, _DELETE = 0, 1
_ATTACH, _DETACH = 0, 1
_LIST_SIZE = 4096


def create_completion_queue(controller: Controller, command: Command) -> int:
    """Create I/O Completion Queue (section 5.3).

    Raises:
        Failure: the identifier, size, place or vector is not one that there can be now.
    """
    number, entries = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
    flags, vector = command.cdw11 & 0xFFFF, command.cdw11 >> 16
    if not 1 <= number <= controller.model.queues or number in controller.queues.completion:
        raise Failure(Status.INVALID_QUEUE_ID)
    _check_place(controller, command, entries, flags, (Cc.CQ_ENTRY_SIZE, CQ_ENTRY))
    if vector and (controller.interrupts.active != "msix" or vector >= controller.model.vectors):
        raise Failure(Status.INVALID_INTERRUPT_VECTOR)
    queue = CompletionQueue(number, command.prp1, entries, vector, interrupts=bool(flags & _INTERRUPTS))
    controller.queues.add(queue)
    return 0


def create_submission_queue(controller: Controller, command: Command) -> int:
    """Create I/O Submission Queue (section 5.4).

    Raises:
        Failure: the identifier, size or place is not one that there can be now, or its completion queue is none that
            there can be (the admin queue's is none), or not there.
    """
    number, entries = command.cdw10 & 0xFFFF, (command.cdw10 >> 16) + 1
    flags, completion = command.cdw11 & 0xFFFF, command.cdw11 >> 16
    if not all(1 <= queue <= controller.model.queues for queue in (completion, number)):
        raise Failure(Status.INVALID_QUEUE_ID)
    if completion not in controller.queues.completion:
        raise Failure(Status.CQ_INVALID)
    if number in controller.queues.submission:
        raise Failure(Status.INVALID_QUEUE_ID)
    _check_place(controller, command, entries, flags, (Cc.SQ_ENTRY_SIZE, SQ_ENTRY))
    controller.queues.add(SubmissionQueue(number, command.prp1, entries, controller.queues.completion[completion]))
    return 0


def _check_place(
    controller: Controller, command: Command, entries: int, flags: int, entry_size: tuple[int, int]
) -> None:
    """`entry_size`: where in CC the guest says how large an entry is, and how large one is."""
    field, size = entry_size
    said = (controller.state.configuration & field) // (field & -field)
    if not 2 <= entries <= QUEUE_ENTRIES or 1 << said != size:
        raise Failure(Status.INVALID_QUEUE_SIZE)
    if command.prp1 & controller.state.page_size - 1:
        raise Failure(Status.INVALID_PRP_OFFSET)
    if not flags & _CONTIGUOUS:
        raise Failure(Status.INVALID_FIELD)


def delete_submission_queue(controller: Controller, command: Command) -> int:
    """Delete I/O Submission Queue (section 5.6), after its commands that are under way have ended.

    Raises:
        Failure: there is none of that identifier.
    """
    number = command.cdw10 & 0xFFFF
    if not number or number not in controller.queues.submission:
        raise Failure(Status.INVALID_QUEUE_ID)
    controller.drain()
    queue = controller.queues.submission.pop(number)
    queue.cq.waiting.discard(number)
    return 0


def delete_completion_queue(controller: Controller, command: Command) -> int:
    """Delete I/O Completion Queue (section 5.5).

    Raises:
        Failure: there is none of that identifier, or a submission queue uses it.
    """
    number = command.cdw10 & 0xFFFF
    if not number or number not in controller.queues.completion:
        raise Failure(Status.INVALID_QUEUE_ID)
    if any(queue.cq.id == number for queue in controller.queues.submission.values()):
        raise Failure(Status.INVALID_QUEUE_DELETION)
    del controller.queues.completion[number]
    return 0


def abort(controller: Controller, command: Command) -> int:
    """Abort (section 5.1): only event requests wait long enough; bit 0 of the result says that nothing was aborted.

    An event request holds no place in the completion queue, so that it is not aborted where that has no room for it.

    Raises:
        Failure: there is no such queue.
    """
    queue, cid = command.cdw10 & 0xFFFF, command.cdw10 >> 16
    if queue not in controller.queues.submission:
        raise Failure(Status.INVALID_FIELD)
    if queue or command.queue.cq.room <= 0 or not controller.events.abort(cid):
        return 1
    controller.queues.answer(command.queue, cid, 0, Failure(Status.ABORT_REQUESTED, retry=True).field)
    return 0


def async_event_request(controller: Controller, command: Command) -> None:
    """Asynchronous Event Request (section 5.2): it ends when there is an event.

    Raises:
        Failure: as many wait as may.
    """
    controller.events.request(command)


def format_nvm(controller: Controller, command: Command) -> int | None:
    """All blocks become zeros, of the size that is asked for; cryptographic erase there is not."""
    place, rest, erase = command.cdw10 & 0xF, command.cdw10 >> 4 & 0x1F, command.cdw10 >> 9 & 7
    controller.drain()
    if command.nsid == ALL_NAMESPACES:
        chosen = [namespace for namespace in controller.namespaces if namespace.active]
    else:
        chosen = [controller.active_namespace(command.nsid)]
    if place >= len(FORMATS) or rest or not all(namespace.blocks_of(FORMATS[place]) for namespace in chosen):
        raise Failure(Status.INVALID_FORMAT)
    if erase > 1:
        raise Failure(Status.INVALID_FIELD)
    if any(namespace.read_only for namespace in chosen):
        raise Failure(Status.WRITE_PROTECTED)
    for namespace in chosen:
        namespace.being_formatted = True

    def work() -> None:
        for namespace in chosen:
            namespace.backing.discard(0, namespace.backing.size)
        sync_all(chosen)  # what was erased does not come back

    def done(outcome: Outcome) -> Exception | None:
        for namespace in chosen:
            namespace.being_formatted = False
        if outcome is None:
            for namespace in chosen:
                namespace.blocks, namespace.shift = namespace.blocks_of(FORMATS[place]), FORMATS[place]
                controller.namespace_changed(namespace)
        return write_failure(controller, outcome)

    controller.later(command, work, done)
    return None


def namespace_management(controller: Controller, command: Command) -> int | None:
    """Namespace Management (section 5.20): create a namespace, whose identifier is the result, or delete one.

    Raises:
        Failure: the operation is another, or what it is given does not fit.
    """
    match command.cdw10 & 0xF:
        case 0:
            return _create_namespace(controller, command)
        case 1:
            return _delete_namespace(controller, command)
    raise Failure(Status.INVALID_FIELD)


def _create_namespace(controller: Controller, command: Command) -> int | None:
    """In an image whose namespace was deleted: the first that is large enough."""
    data = receive(controller, command, _LIST_SIZE)
    blocks, capacity, place, protection = unpack_from("<QQ10xB2xB", data)
    if place & 0xF >= len(FORMATS) or protection:
        raise Failure(Status.INVALID_FORMAT)
    if blocks != capacity:
        raise Failure(Status.THIN_PROVISIONING_NOT_SUPPORTED)
    controller.drain()  # another may be on its way to the same image
    free = [namespace for namespace in controller.namespaces if not namespace.exists and not namespace.read_only]
    shift = FORMATS[place & 0xF]
    chosen = next((each for each in free if 0 < blocks << shift <= each.backing.size), None)
    if chosen is None:
        raise Failure(Status.INSUFFICIENT_CAPACITY if free else Status.NAMESPACE_ID_UNAVAILABLE)
    namespace = chosen

    def done(outcome: Outcome) -> Exception | None:
        if outcome is None:
            namespace.exists, namespace.blocks, namespace.shift = True, blocks, shift
        return write_failure(controller, outcome)

    controller.later(command, partial(namespace.backing.discard, 0, blocks << shift), done, result=namespace.nsid)
    return None


def _delete_namespace(controller: Controller, command: Command) -> int:
    if command.nsid == ALL_NAMESPACES:
        chosen = [namespace for namespace in controller.namespaces if namespace.exists]
    else:
        chosen = [_existing(controller, command.nsid)]
    controller.drain()
    for namespace in chosen:
        was_active = namespace.active
        namespace.exists = namespace.attached = False
        if was_active:
            controller.namespace_changed(namespace)
    return 0


def namespace_attachment(controller: Controller, command: Command) -> int:
    """Namespace Attachment (section 5.19): attach a namespace to this controller, or detach it once its commands
    ended.

    Raises:
        Failure: the list names another controller, or it is so already.
    """
    namespace = _existing(controller, command.nsid)
    action = command.cdw10 & 0xF
    if action not in (_ATTACH, _DETACH):
        raise Failure(Status.INVALID_FIELD)
    data = receive(controller, command, _LIST_SIZE)
    (count,) = unpack_from("<H", data)
    if count != 1 or unpack_from("<H", data, 2) != (CONTROLLER_ID,):
        raise Failure(Status.CONTROLLER_LIST_INVALID)
    attach = action == _ATTACH
    if namespace.attached == attach:
        raise Failure(Status.NAMESPACE_ALREADY_ATTACHED if attach else Status.NAMESPACE_NOT_ATTACHED)
    controller.set_attached(namespace, attach)
    return 0


def _existing(controller: Controller, nsid: int) -> Namespace:
    namespace = controller.namespace(nsid)
    if not namespace.exists:
        raise Failure(Status.INVALID_FIELD)
    return namespace


def doorbell_buffer_config(controller: Controller, command: Command) -> int:
    """Doorbell Buffer Config (section 5.7): from now on doorbells are looked up in two pages of guest memory.

    Raises:
        Failure: it is not offered, or the pages are not two, or not aligned.
    """
    if not controller.model.shadow_doorbells:
        raise Failure(Status.INVALID_OPCODE)
    if (command.prp1 | command.prp2) & controller.state.page_size - 1 or command.prp1 == command.prp2:
        raise Failure(Status.INVALID_FIELD)
    controller.queues.begin_shadow_doorbells(command.prp1, command.prp2)
    return 0


HANDLERS: dict[int, Callable[[Controller, Command], int | None]] = {
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
