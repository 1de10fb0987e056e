"""A device's migration: one state machine, and the verbs that its two faces ask, v2's messages and v1's region.

It belongs to the device and outlives sessions. A client that goes away takes its streams and its dirty log along, and
the next one finds the device running, whatever state it was left in: nobody is locked out by a predecessor that died in
STOP_COPY. Until then a device that was stopped stays so, for it may run elsewhere already.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

from userdev.declare import values
from userdev.errors import AUTHORS_FAILURES, ProtocolError
from vfio_user.migration.loading import Loading
from vfio_user.migration.machine import (
    ERROR,
    PRE_COPY,
    RESUMING,
    RUNNING,
    SAVING,
    STOP,
    STOP_COPY,
    StateMachine,
)
from vfio_user.migration.migratable import Migratable
from vfio_user.migration.saving import Saving
from vfio_user.wire.constants import MigrationState

log = logging.getLogger(__name__)

_LEFT_IN = {PRE_COPY: RUNNING, STOP_COPY: STOP, RESUMING: STOP}
"""Where a client that goes away leaves the device."""


class Migration:
    """All of a device's migration. Called on its session's thread, but for the log's marks."""

    page_size = 4096
    """The page size of v1's dirty log, as offered in VERSION."""

    def __init__(self, device: Migratable) -> None:
        self.device = device
        self._stop_device: Callable[[], None] = device.stop
        self._watchers: list[Callable[[], None]] = []
        self._saving: Saving | None = None
        self._loading: Loading | None = None
        self._machine = StateMachine(
            {
                (RUNNING, STOP): self._stop,
                (STOP, RUNNING): self._start,
                (STOP, STOP_COPY): self._begin_saving_stopped,
                (RUNNING, PRE_COPY): self._begin_saving,
                (PRE_COPY, STOP_COPY): self._stop_while_saving,
                (PRE_COPY, RUNNING): self._give_up_saving,
                (STOP_COPY, STOP): self._drop_streams,
                (STOP, RESUMING): self._begin_loading,
                (RESUMING, STOP): self._load,
            },
            checks=dict.fromkeys(SAVING, self._check_savable),
            entered=self._entered,
        )

    # State

    @property
    def state(self) -> MigrationState:
        """The device's migration state, in v2 terms."""
        return self._machine.state

    def set_state(self, state: int) -> None:
        """Go to a v2 state; raises ProtocolError as `StateMachine.request`."""
        self._machine.request(state)

    def set_v1_state(self, value: int) -> None:
        """Go to a state by its v1 value; raises ProtocolError as `StateMachine.request_v1`."""
        self._machine.request_v1(value)

    def watch(self, entered: Callable[[], None]) -> Callable[[], None]:
        """Call `entered` whenever there is another state, until what is returned is called. It must not raise."""
        self._watchers.append(entered)
        return lambda: self._watchers.remove(entered)

    def was_reset(self) -> None:
        """DEVICE_RESET has been carried out. It leaves ERROR, and otherwise the state as it is."""
        if self._machine.recover():
            self._drop_streams()
            self._run()

    def attach(self, stop: Callable[[], None] | None = None) -> None:
        """A client has come: the device runs. `stop` replaces the device's own until it goes: a session's waits until
        the device stands still.
        """
        self._stop_device = stop or self.device.stop
        if self.state is not RUNNING:
            log.info("migration: a new client, %s to RUNNING", self.state.name)
            self._machine.enter(RUNNING)
            self._run()

    def detach(self) -> None:
        """The client has gone: its streams and its dirty log end."""
        self._stop_device = self.device.stop
        self.device.dma.stop_log()
        if self.state is PRE_COPY:
            try:
                self.device.on_migration(RUNNING)
            except AUTHORS_FAILURES as error:
                log.warning("migration: the device ran all along, and now says: %s", error)
        self._drop_streams()
        self._machine.enter(_LEFT_IN.get(self.state, self.state))

    def close(self) -> None:
        """The device goes."""
        self._drop_streams()

    # The dirty log

    def start_log(self, page_size: int | None = None) -> None:
        """Log what the device writes of its client's memory, in pages of so many bytes; None: of `page_size`.

        Raises:
            ProtocolError: EINVAL, a page size that is none, or not that of a running log.
        """
        self.device.dma.start_log(self.page_size if page_size is None else page_size)

    def stop_log(self) -> None:
        """Log no more, and drop what was logged."""
        self.device.dma.stop_log()

    def take_dirty(self, iova: int, length: int, page_size: int) -> bytearray:
        """The bitmap of a range, whose pages are thereby clean; raises as `ClientMemory.take_dirty`."""
        return self.device.dma.take_dirty(iova, length, page_size)

    def dirty_report(self, iova: int, length: int, page_size: int) -> Callable[[], bytearray]:
        """What takes that bitmap when it is called, also of memory that is unmapped by then; raises as `take_dirty`."""
        return self.device.dma.dirty_report(iova, length, page_size)

    # Streams

    def read_state(self, size: int) -> bytes:
        """The next bytes of the saved state; raises ProtocolError (EINVAL) unless one is being saved."""
        return self._being_saved().read(size)

    def pending_state(self) -> int:
        """The bytes left to read, as far as known; raises as `read_state`."""
        return self._being_saved().pending()

    def write_state(self, data: bytes) -> None:
        """The next bytes of a state to load; raises ProtocolError (EINVAL) unless in RESUMING, or if it is refused."""
        if self._loading is None:
            raise ProtocolError(f"migration: no state is loaded in {self.state.name}", errno.EINVAL)
        try:
            self._loading.write(data)
        except ProtocolError as error:
            log.warning("%s", error)
            raise

    def _being_saved(self) -> Saving:
        if self._saving is None:
            raise ProtocolError(f"migration: no state is saved in {self.state.name}", errno.EINVAL)
        return self._saving

    # Arcs

    def _check_savable(self) -> None:
        """A state that nobody could load is refused while the device still runs."""
        try:
            self.device.check_savable()
            for name, value in self.device.identity().items():
                _check_encodable(f"identity cannot be saved: {name}", value)
            _check_encodable("state cannot be saved", dict(self.device.save_state()))
        except ProtocolError as error:
            log.warning("migration: %s", error)
            raise

    def _stop(self) -> None:
        self._stop_device()
        try:
            self.device.on_migration(STOP)
        except BaseException:
            self.device.start()
            raise

    def _start(self) -> None:
        self.device.on_migration(RUNNING)
        self.device.start()

    def _run(self) -> None:
        """Whatever there was before, the device runs: as after a reset, if it may not go on as what it was."""
        try:
            self.device.on_migration(RUNNING)
        except AUTHORS_FAILURES as error:
            log.warning("migration: the device begins anew: %s", error)
            self.device.client_reset()
        self.device.start()

    def _begin_saving(self) -> None:
        self.device.on_migration(PRE_COPY)
        self._saving = Saving(self.device)

    def _give_up_saving(self) -> None:
        """The device ran all along, and is told that it will not be stopped after all."""
        self.device.on_migration(RUNNING)
        self._drop_streams()

    def _begin_saving_stopped(self) -> None:
        self.device.on_migration(STOP_COPY)
        self._saving = Saving(self.device)
        self._saving.stopped()

    def _stop_while_saving(self) -> None:
        self._stop()
        try:
            self.device.on_migration(STOP_COPY)
            self._being_saved().stopped()
        except AUTHORS_FAILURES:
            self._start()  # in PRE_COPY, as before
            raise

    def _begin_loading(self) -> None:
        self._loading = Loading(self.device)

    def _load(self) -> None:
        """A state that is refused leaves the device as it was, and the machine in ERROR: the stream is used up.

        linux/vfio.h lets it stay in RESUMING as well, which could be left by nothing but a reset.
        """
        assert self._loading is not None
        try:
            self._loading.apply()
        except AUTHORS_FAILURES as error:
            self._machine.fail(str(error))
            raise
        finally:
            self._drop_streams()

    def _drop_streams(self) -> None:
        if self._saving is not None:
            self._saving.close()
            self._saving = None
        if self._loading is not None:
            self._loading.close()
            self._loading = None

    def _entered(self) -> None:
        if self.state is ERROR:
            self._drop_streams()
        for entered in self._watchers:
            entered()


def _check_encodable(what: str, value: object) -> None:
    try:
        values.encode(value)
    except TypeError as error:
        raise ProtocolError(f"the device's {what}: {error}", errno.EIO) from None
