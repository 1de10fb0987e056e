"""What a controller can have in its state: the checks of what `ControllerState` declares, of the model and a value.

Types and bits are declared there. So a saved state that says something else is refused whole, and nothing of it is
found later, by a guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from userdev_servers.nvme.feature_table import value_fits
from userdev_servers.nvme.model import (
    ADMIN_ENTRIES,
    ERROR_ENTRIES,
    ERROR_ENTRY,
    QUEUE_ENTRIES,
    REQUEST_LIMIT,
    SERIAL_SIZE,
)
from userdev_servers.nvme.namespace import FORMATS
from userdev_servers.nvme.spec import PAGE, Cc, EventType, LogPage

if TYPE_CHECKING:
    from userdev_servers.nvme.model import Model, Modelled
    from userdev_servers.nvme.queues import SavedQueues

CLOCK_BITS = 48


def configuration(of: Modelled, value: int) -> bool:
    """Whether CC has no bits but those that can be written."""
    return not value & ~Cc.WRITABLE


def admin_sizes(of: Modelled, value: int) -> bool:
    """Whether AQA has no bits but those of its two sizes, 12 each."""
    return not value & ~0x0FFF0FFF


def admin_base(of: Modelled, value: int) -> bool:
    """Whether ASQ or ACQ is at the beginning of a page of 4 KiB."""
    return not value % PAGE


def queues(of: Modelled, value: SavedQueues) -> bool:
    """Those that the guest can have made: each once, where its entries can be, and the admin pair before all others."""
    completions, submissions = value
    completion_ids = [_completion_queue(of.model, *each) for each in completions]
    submission_ids = [_submission_queue(of.model, completion_ids, *each) for each in submissions]
    each_once = all(len(set(ids)) == len(ids) for ids in (completion_ids, submission_ids))
    return each_once and (0 in completion_ids) is (0 in submission_ids) is bool(completion_ids)


def _completion_queue(
    model: Model, id: int, base: int, size: int, vector: int, interrupts: int, head: int, tail: int, phase: int
) -> int:
    """Its identifier; raises ValueError for one that there cannot be."""
    _check_ring(model, id, base, size, head, tail)
    if vector >= max(1, model.vectors) or interrupts > 1 or phase > 1:
        raise ValueError(f"completion queue {id} has vector {vector}, interrupts {interrupts}, phase {phase}")
    return id


def _submission_queue(
    model: Model, completion_ids: list[int], id: int, base: int, size: int, completion: int, head: int, tail: int
) -> int:
    """The same."""
    _check_ring(model, id, base, size, head, tail)
    if completion not in completion_ids or bool(completion) is not bool(id):
        raise ValueError(f"submission queue {id} completes to queue {completion}")
    return id


def _check_ring(model: Model, id: int, base: int, size: int, head: int, tail: int) -> None:
    largest = QUEUE_ENTRIES if id else ADMIN_ENTRIES
    if id > model.queues or base % PAGE or not 2 <= size <= largest or max(head, tail) >= size:
        raise ValueError(f"queue {id} has {size} entries at {base:#x}, from {head} to {tail}")


def shadow_buffers(of: Modelled, value: list[int]) -> bool:
    """None, or two pages."""
    return not value or (len(set(value)) == len(value) == 2 and not any(address % PAGE for address in value))


def settings(of: Modelled, value: dict[int, int]) -> bool:
    """Whether each feature has a value that the guest can have set."""
    return all(value_fits(of.model, key, number) for key, number in value.items())


def clock(of: Modelled, value: list[int]) -> bool:
    """Whether it is the timestamp's distance from the host's clock (ms, below 2**48), and whether that was set."""
    offset, was_set = value
    return type(offset) is int and abs(offset) < 1 << CLOCK_BITS and was_set in (0, 1) and isinstance(was_set, int)


def event_requests(of: Modelled, value: list[int]) -> bool:
    """Whether no more Asynchronous Event Requests wait than may (`REQUEST_LIMIT`)."""
    return len(value) <= REQUEST_LIMIT


def events(of: Modelled, value: list[list[int]]) -> bool:
    """Whether each event that waits has a type and a log page of the specification, and no type twice."""
    types = [EventType(type) for type, _information, page in value if LogPage(page)]
    return len(set(types)) == len(types)


def event_types(of: Modelled, value: list[int]) -> bool:
    """Whether they are types of events, each once."""
    return len({EventType(type) for type in value}) == len(value)


def changed_namespaces(of: Modelled, value: list[int]) -> bool:
    """Whether they are identifiers of this controller's namespaces, each once."""
    return len(set(value)) == len(value) and all(1 <= nsid <= of.model.namespaces for nsid in value)


def serial(of: Modelled, value: str) -> bool:
    """Whether it is a serial number: ASCII, 20 characters at most (section 1.5)."""
    return len(value) <= SERIAL_SIZE and value.isascii() and value.isprintable()


def namespaces(of: Modelled, value: list[list[int]]) -> bool:
    """Whether they are as `Namespace.save` has them; whether the images here hold them is another question."""
    sound = [exists < 2 and attached < 2 and shift in FORMATS for exists, attached, _blocks, shift in value]
    return len(sound) == of.model.namespaces and all(sound)


def errors(of: Modelled, value: list[bytes]) -> bool:
    """Whether they are entries of the error log, 64 bytes each, and no more than it has."""
    return len(value) <= ERROR_ENTRIES and all(type(each) is bytes and len(each) == ERROR_ENTRY for each in value)
