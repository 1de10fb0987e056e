"""What a virtio device says in its class is looked at when that is made, with all else of the class."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntFlag
from types import MappingProxyType

from userdev.declare.class_check import ClassCheck
from userdev.declare.declared import declarations
from userdev.declare.values import shown
from vhost_user.device.config import ConfigField, place
from vhost_user.device.queues import QueueHandler, Queues
from vhost_user.device.sample import SampleRequest
from vhost_user.device.supply import SupplyQueue

SAID = frozenset({"virtio_id", "queues", "features", "sample_request"})

PLAIN = MappingProxyType({"virtio_id": (int,), "features": (int,)})
"""Those of them that only their names tell from an author's own, with the types of their values."""

OWN_FEATURES = (1 << 24) - 1 | ((1 << 64) - 1) & ~((1 << 50) - 1)
"""Bits of features that are a device type's own (virtio 1.3, "Feature Bits"): 0 to 23, and from 50 on."""


def check_class(device_class: type, framework: type) -> None:
    """Check the body of a class that is a whole device; `framework` is the class that all devices have.

    Raises:
        DeclarationError: with the class, the name, and the place where that is written.
    """
    _Check(device_class, framework).run()


class WrongTakers(ValueError):
    """Queues that are not taken care of; `hint` says what to write."""

    def __init__(self, what: str, hint: str) -> None:
        super().__init__(what)
        self.hint = hint


def takers_of(device_class: type, queues: Queues) -> dict[int, QueueHandler | SupplyQueue]:
    """What takes the requests of the queues, by queue: a function, or the device when it has something to say.

    Raises:
        WrongTakers: several do, nothing does, or there is no such queue.
    """
    found: dict[int, QueueHandler | SupplyQueue] = {}
    handlers = declarations(device_class, QueueHandler)
    supplies = declarations(device_class, SupplyQueue)
    said: list[tuple[int, QueueHandler | SupplyQueue]] = [
        *((index, handler) for handler in handlers for index in handler.indices),
        *((supply.index, supply) for supply in supplies),
    ]
    left = sorted({*range(queues.count)} - {index for index, _ in said})
    for index, taker in said:
        if index >= queues.count:
            more = f"the class has queues = Queues({queues.count}), and {index} is the {index + 1}th"
            what = f"{taker.name} takes queue {index}, and there are {queues.count}"
            raise WrongTakers(what, _one_of(left, taker) or more)
        if index in found:
            what = f"{taker.name} takes queue {index}, and {found[index].name} does so too"
            raise WrongTakers(what, _one_of(left, taker) or f"no other queue is left: one of them takes {index}")
        found[index] = taker
    rest = [handler for handler in handlers if not handler.indices]
    if len(rest) > 1:
        what = f"{rest[1].name} takes all queues that are left, and {rest[0].name} does so too"
        raise WrongTakers(what, "say which queues one of them takes: @queue(0)")
    for index in range(queues.count):
        if index not in found and not rest:
            hint = f"write @queue({index}) above a function, or NAME = supply({index})"
            raise WrongTakers(f"nothing takes the requests of queue {index}", hint)
        if index not in found:
            found[index] = rest[0]
    return found


def _one_of(left: Sequence[int], taker: QueueHandler | SupplyQueue) -> str:
    """What to write for one of the queues that nothing takes by its number; nothing where all are taken."""
    how = "supply" if isinstance(taker, SupplyQueue) else "@queue"
    return f"nothing takes queue {left[0]}: write {how}({left[0]})" if left else ""


class _Check(ClassCheck):
    said = SAID
    plain = PLAIN
    guide = "vfio-user docs vhost-user"

    def run(self) -> None:
        super().run()
        if "virtio_id" not in vars(self._class) and not hasattr(self._class, "virtio_id"):
            hint = 'virtio_id = 4 is an entropy source (virtio 1.3, "Device Types")'
            from difflib import get_close_matches  # a class without mistakes need not wait for it

            numbers = [name for name, value in vars(self._class).items() if type(value) is int]
            alike = get_close_matches("virtio_id", numbers, 1)
            near = f"did you mean virtio_id by {alike[0]}? " if alike else ""
            self.refuse("", "does not say what it is: it has no virtio_id", hint=near + hint)
        queues = getattr(self._class, "queues", None)
        if not isinstance(queues, Queues):
            said = [name for name, value in vars(self._class).items() if isinstance(value, Queues)]
            near = f"did you mean queues by {said[0]}? " if said else ""
            self.refuse("", "does not say which queues it has", hint=f"{near}queues = Queues(1, size=256)")
        for field, wrong in place(declarations(self._class, ConfigField)):
            self.refuse(field.name, wrong, field.source, "give it an offset that is free")
        try:
            takers_of(self._class, queues)
        except WrongTakers as error:
            self.refuse("", f"has queues that are not taken care of: {error}", hint=error.hint)

    def check_attribute(self, name: str, value: object) -> None:
        if name not in SAID or isinstance(value, property):
            return  # what a property returns is looked at when a device is made
        if wrong := wrong_attribute(name, value):
            self.refuse(name, wrong[0], hint=wrong[1])


def wrong_attribute(name: str, value: object) -> tuple[str, str] | None:
    """The mistake in a class attribute, and what would be right; None: nothing."""
    if name == "queues":
        wrong = not isinstance(value, Queues)
        return (f"is {shown(value)}, and no Queues", "write queues = Queues(1, size=256)") if wrong else None
    if name == "sample_request":
        wrong = not isinstance(value, SampleRequest | None)
        return (f"is {shown(value)}, and no SampleRequest", "SampleRequest(0, b'hello', 64), say") if wrong else None
    number = value if type(value) is int or isinstance(value, IntFlag) else -1
    if name == "virtio_id" and not 0 < number < 1 << 16:
        return f"is {shown(value)}, and no number of a device type", 'virtio 1.3, "Device Types", has them'
    if name == "features" and number < 0:
        return f"is {shown(value)}, and no set of feature bits", "write features = 1 << 9"
    if name == "features" and number & ~OWN_FEATURES:
        bits = ", ".join(str(bit) for bit in range(number.bit_length()) if number & ~OWN_FEATURES & 1 << bit)
        return f"has bits that are not a device's own: {bits}", "those of queues and transport are offered anyway"
    return None
