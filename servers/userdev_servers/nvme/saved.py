"""What a controller can have in its state: the checks of what `Nvme` declares, each of the controller and a value.

Types and bits are declared there. So a saved state that says something else is refused whole, and nothing of it is
found later, by a guest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from userdev_servers.nvme.events import REQUEST_LIMIT
from userdev_servers.nvme.features import value_fits
from userdev_servers.nvme.logs import ENTRY_SIZE, ERROR_ENTRIES
from userdev_servers.nvme.namespace import FORMATS
from userdev_servers.nvme.spec import PAGE, Cc, EventType, LogPage

if TYPE_CHECKING:
    from userdev_servers.nvme.nvme import Nvme
    from userdev_servers.nvme.queues import SavedQueues

ADMIN_ENTRIES = 4096
"""Of each of the admin queues, at most: what AQA can say."""
SERIAL_SIZE = 20
CLOCK_BITS = 48


def configuration(device: Nvme, value: int) -> bool:
    return not value & ~Cc.WRITABLE


def admin_sizes(device: Nvme, value: int) -> bool:
    return not value & ~0x0FFF0FFF


def admin_base(device: Nvme, value: int) -> bool:
    return not value % PAGE


def queues(device: Nvme, value: SavedQueues) -> bool:
    """Those that the guest can have made: each once, where its entries can be, and the admin pair before all others."""
    completions, submissions = value
    completion_ids = [_completion_queue(device, *each) for each in completions]
    submission_ids = [_submission_queue(device, completion_ids, *each) for each in submissions]
    each_once = all(len(set(ids)) == len(ids) for ids in (completion_ids, submission_ids))
    return each_once and (0 in completion_ids) is (0 in submission_ids) is bool(completion_ids)


def _completion_queue(
    device: Nvme, id: int, base: int, size: int, vector: int, interrupts: int, head: int, tail: int, phase: int
) -> int:
    """Its identifier; raises ValueError for one that there cannot be."""
    _check_ring(device, id, base, size, head, tail)
    if vector >= max(1, device.vectors) or interrupts > 1 or phase > 1:
        raise ValueError(f"completion queue {id} has vector {vector}, interrupts {interrupts}, phase {phase}")
    return id


def _submission_queue(
    device: Nvme, completion_ids: list[int], id: int, base: int, size: int, completion: int, head: int, tail: int
) -> int:
    """The same."""
    _check_ring(device, id, base, size, head, tail)
    if completion not in completion_ids or bool(completion) is not bool(id):
        raise ValueError(f"submission queue {id} completes to queue {completion}")
    return id


def _check_ring(device: Nvme, id: int, base: int, size: int, head: int, tail: int) -> None:
    largest = device.queue_entries if id else ADMIN_ENTRIES
    if id > device.max_queues or base % PAGE or not 2 <= size <= largest or max(head, tail) >= size:
        raise ValueError(f"queue {id} has {size} entries at {base:#x}, from {head} to {tail}")


def shadow_buffers(device: Nvme, value: list[int]) -> bool:
    """None, or two pages."""
    return not value or (len(set(value)) == len(value) == 2 and not any(address % PAGE for address in value))


def settings(device: Nvme, value: dict[int, int]) -> bool:
    return all(value_fits(device, key, number) for key, number in value.items())


def clock(device: Nvme, value: list[int]) -> bool:
    offset, was_set = value
    return type(offset) is int and abs(offset) < 1 << CLOCK_BITS and was_set in (0, 1) and isinstance(was_set, int)


def event_requests(device: Nvme, value: list[int]) -> bool:
    return len(value) <= REQUEST_LIMIT


def events(device: Nvme, value: list[list[int]]) -> bool:
    types = [EventType(type) for type, _information, page in value if LogPage(page)]
    return len(set(types)) == len(types)


def event_types(device: Nvme, value: list[int]) -> bool:
    return len({EventType(type) for type in value}) == len(value)


def changed_namespaces(device: Nvme, value: list[int]) -> bool:
    return len(set(value)) == len(value) and all(1 <= nsid <= len(device.namespaces) for nsid in value)


def serial(device: Nvme, value: str) -> bool:
    """What Identify can say: ASCII (section 1.5)."""
    return len(value) <= SERIAL_SIZE and value.isascii() and value.isprintable()


def namespaces(device: Nvme, value: list[list[int]]) -> bool:
    """As `Namespace.save` has them. Whether the images here hold them is another question."""
    sound = [exists < 2 and attached < 2 and shift in FORMATS for exists, attached, _blocks, shift in value]
    return len(sound) == len(device.namespaces) and all(sound)


def errors(device: Nvme, value: list[bytes]) -> bool:
    return len(value) <= ERROR_ENTRIES and all(type(each) is bytes and len(each) == ENTRY_SIZE for each in value)
