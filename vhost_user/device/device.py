"""A virtio device: what an author subclasses, and what a back-end serves.

    class Rng(VhostDevice):
        '''Gives random bytes.'''

        virtio_id = 4
        queues = Queues(1, size=256)

        @queue(0)
        def fill(self, chain: Chain) -> int:
            return chain.write(os.urandom(chain.writable))

Handlers and hooks run one at a time, on the session's thread. A device's own threads use `call_soon` to get there. A
request that has to wait for something is a function that its handler returns (`Later`).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from threading import RLock
from typing import Any, Protocol

from userdev.declare.construction import followed_by
from userdev.declare.declared import authors_frame, declarations, source_of
from userdev.declare.returned import check_by, check_work
from userdev.declare.state import Snapshot
from userdev.declare.unused import warn_of_unused_in
from userdev.errors import AUTHORS_FAILURES, DeclarationError, ProtocolError
from vhost_user.device import saved
from vhost_user.device.class_check import PLAIN, SAID, check_class, takers_of, wrong_attribute
from vhost_user.device.config import ConfigField, ConfigSpace
from vhost_user.device.queues import QueueHandler, Queues, Taken
from vhost_user.device.sample import SampleRequest
from vhost_user.device.supply import Supply, SupplyQueue
from vhost_user.rings import Chain

log = logging.getLogger("vhost_user.device")


class Link(Protocol):
    """The way from a device to its front-end, as long as there is one."""

    def config_changed(self) -> None:
        """Tell the driver that configuration space has changed. From any thread."""

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` where handlers run. From any thread."""


_MODEL, _SOURCE = "a virtio device's model", "where a virtio device is written"
"""Names of attributes that no author can take."""


class VhostDevice:
    """Base of all devices. A subclass declares; an instance is one device, which outlives its front-ends.

    `queue` declares who takes requests, `state` what resets clear, `config_field` what the driver reads.
    """

    virtio_id: int
    """What it is (virtio 1.3, "Device Types")."""
    queues: Queues
    """An instance may have others than its class, set in `__init__`."""
    features: int = 0
    """Feature bits of its own type, which the driver may take or leave."""
    sample_request: SampleRequest | None = None
    """What checks of any back-end may have it do (`--device` of `vhost-user conformance`)."""

    def __init_subclass__(cls, *, abstract: bool = False, **arguments: Any) -> None:
        """Refuse what is wrong with the class, unless it is `abstract`: the base of others."""
        super().__init_subclass__(**arguments)
        if not abstract:
            check_class(cls, VhostDevice)
        setattr(cls, _SOURCE, source_of(authors_frame()))
        if (constructor := vars(cls).get("__init__")) is not None:
            cls.__init__ = followed_by(constructor, _constructed)  # type: ignore[method-assign]

    def __new__(cls, *_: Any, **__: Any) -> VhostDevice:
        """Have the declared values there before any `__init__` runs."""
        device = super().__new__(cls)
        vars(device)[_MODEL] = DeviceModel(device)
        return device

    def __init__(self) -> None:
        """Whatever constructors there are: when the last of them is done, `DeviceModel.constructed` looks at it."""

    # Hooks: what an author may override. All of it is called where handlers run.

    def on_attach(self) -> None:
        """A front-end has come; what is raised ends its session."""

    def on_detach(self) -> None:
        """It is gone. No queue runs any more."""

    def on_features(self, features: int) -> None:
        """The driver has chosen these of the features: bits of the device's own, and all others."""

    def on_start(self, queue: int) -> None:
        """A queue runs: its requests come from now on."""

    def on_stop(self, queue: int) -> None:
        """A queue does not run any more; all of its requests were given back."""

    def on_supply(self, queue: int) -> None:
        """A queue of `supply` runs, or has buffers again after it had none; also after the device has given some."""

    def on_reset(self) -> None:
        """The driver has reset the device: no queue runs, declared state is as after power-on."""

    def on_save(self) -> None:
        """Declared state is about to be saved, with all queues stopped: bring it up to date."""

    def on_check(self, values: Mapping[str, Any]) -> None:
        """A saved state is looked at before it is loaded. What is declared has been checked, each value by itself; here
        they can be compared with each other and with the device. Raise ProtocolError (EINVAL) with the reason to refuse
        it; change nothing.

        values: by the names that they are declared by, in the form they are saved in.
        """

    def on_load(self) -> None:
        """Declared state is what was saved by another device: go on from there.

        What is raised refuses the state; the values are the former ones then, and this is called for them.
        """

    def on_config(self, name: str) -> None:
        """The driver has written this field of configuration space."""

    def on_close(self) -> None:
        """The device is given back, with nobody attached: end threads, close files. Once."""

    # What an author calls.

    def config_changed(self) -> None:
        """Tell the driver to read configuration space again: its fields have other values. From any thread.

        A front-end that comes later is told too: one that was here before does not read it anew.
        """
        model_of(self).config_changed()

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` where handlers run. From any thread; without a front-end, when the next one has come.

        Raises:
            WrongValue: `work` cannot be called.
        """
        check_work("call_soon", work)
        model_of(self).call_soon(work)

    def close(self) -> None:
        """Give it back; idempotent."""
        model_of(self).close()


class DeviceModel:
    """A device as a back-end sees it: which functions take requests, its configuration space, its declared state."""

    def __init__(self, device: VhostDevice) -> None:
        self.device = device
        self.config = ConfigSpace(device, declarations(type(device), ConfigField))
        self._link: Link | None = None
        self._waiting: list[Callable[[], None]] = []
        """Work that came while there was nobody."""
        self._is_changed = False
        """Configuration space, while there was nobody: QEMU, reconnected, goes on with what it has read before."""
        self._lock = RLock()
        self.takers: list[Callable[[Chain], Taken] | Supply] = []
        """By the number of their queue."""
        self._supplies = {taker.name: Supply(taker.index) for taker in declarations(type(device), SupplyQueue)}
        vars(device).update(self._supplies)
        self._snapshot = Snapshot(device)
        self._snapshot.power_on()
        self._closed = False

    def constructed(self) -> None:
        """Look at what `__init__` has made of the device.

        Raises:
            DeclarationError: it cannot be served, or a value could not be saved.
        """
        device, kind = self.device, type(self.device)
        for name in SAID:
            if wrong := wrong_attribute(name, getattr(device, name)):
                raise DeclarationError(
                    f"{kind.__qualname__}.{name} {wrong[0]} ({getattr(kind, _SOURCE)})", hint=wrong[1]
                )
        try:
            found = takers_of(kind, device.queues)
            self.config.read()
            if device.sample_request is not None:
                device.sample_request.check(device.queues)
        except ValueError as error:
            hint = "what __init__ has set and what the class declares contradict each other"
            raise DeclarationError(f"{kind.__qualname__}: {error} ({getattr(kind, _SOURCE)})", hint=hint) from None
        self.takers = [
            taker.__get__(device) if isinstance(taker, QueueHandler) else self._supplies[taker.name]
            for taker in (found[number] for number in sorted(found))
        ]
        self._snapshot.take_as_after_reset()
        warn_of_unused_in(device, VhostDevice, PLAIN)

    def attach(self, link: Link) -> None:
        """A front-end has come, and is reached by `link`."""
        with self._lock:
            self._link, waiting, self._waiting = link, self._waiting, []
            changed, self._is_changed = self._is_changed, False
        for work in waiting:
            link.call_soon(work)
        if changed:
            link.config_changed()

    def detach(self) -> None:
        """It is gone."""
        with self._lock:
            self._link = None

    def config_changed(self) -> None:
        """Tell the driver that configuration space has changed; where there is no front-end, by the next one."""
        with self._lock:
            if self._link is None:
                self._is_changed = True
            else:
                self._link.config_changed()

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` where handlers run."""
        with self._lock:
            if self._link is None:
                self._waiting.append(work)
            else:
                self._link.call_soon(work)

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` where handlers run; here and now where there is no front-end, which waits for it then."""
        with self._lock:
            if self._link is None:
                work()
            else:
                self._link.call_soon(work)

    def save(self) -> bytes:
        """Declared state, as another device's `load` takes it.

        Raises:
            ProtocolError: EIO, it cannot be saved, or the device has failed.
        """
        with self._authors("on_save"):
            self.device.on_save()
        return saved.to_bytes(self._identity, self._snapshot.save())

    def load(self, state: bytes) -> None:
        """Have declared state be what another device has saved.

        Raises:
            ProtocolError: it is refused, or the device has failed at it; then nothing has changed.
        """
        values = saved.from_bytes(self._identity, state)
        self._snapshot.check(values)
        with self._authors("on_check"):
            check_by(self.device.on_check, values)
        before = dict(vars(self.device))
        self._snapshot.load(values)
        try:
            with self._authors("on_load"):
                self.device.on_load()
        except ProtocolError:
            vars(self.device).update({name: before[name] for name in values})
            with suppress(ProtocolError), self._authors("on_load"):
                self.device.on_load()  # what it makes of its state is to be of this one again
            raise

    @property
    def _identity(self) -> dict[str, Any]:
        return {"device": type(self.device).__qualname__, "virtio_id": int(self.device.virtio_id)}

    @contextmanager
    def _authors(self, hook: str) -> Iterator[None]:
        try:
            yield
        except ProtocolError:
            raise
        except AUTHORS_FAILURES as error:
            log.exception("the device failed at %s", hook)
            raise ProtocolError(f"{type(self.device).__name__} has failed at {hook}: {error}", errno.EIO) from None

    def reset(self) -> None:
        """Declared state as after power-on; the device is told."""
        self._snapshot.reset()
        self.device.on_reset()

    def close(self) -> None:
        """Give it back."""
        if not self._closed:
            self._closed = True
            self.device.on_close()


def _constructed(device: VhostDevice) -> None:
    model_of(device).constructed()


VhostDevice.__init__ = followed_by(VhostDevice.__init__, _constructed)  # type: ignore[method-assign]


def model_of(device: VhostDevice) -> DeviceModel:
    """The model of a device, which a back-end serves."""
    model: DeviceModel = vars(device)[_MODEL]
    return model
