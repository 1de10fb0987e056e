"""What an author may override to hear of the client's ways with a device; the base of `PciDevice`.

All of it is called where handlers run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfio_user.device.dma_region import DmaRegion
    from vfio_user.device.lifecycle import Quiesce, ResetKind
    from vfio_user.pci import Capability, ConfigSpace
    from vfio_user.wire.constants import MigrationState


class Hooks:
    """Every hook, as it is where nobody overrides it."""

    config: ConfigSpace

    # The device's life.

    def on_attach(self) -> None:
        """A client has come. Its memory is not mapped yet, and work can be planned; it is called for each client.

        What is raised ends the session: the client is hung up on.
        """

    def on_close(self) -> None:
        """The device is given back, with nobody attached: end threads, close files. Once."""

    def on_reset(self, kind: ResetKind) -> None:
        """After declared state, registers of PCI and pending interrupts are as after reset; not at construction.

        With LOST_CONNECTION nothing was reset: the client is gone and work for it must end. The device stands still,
        unless it refused to: the guest's own resets and the end of a client come all the same, and work that is still
        under way has to end here.
        """

    def on_quiesce(self) -> Quiesce | None:
        """Stand still: no DMA and no interrupts until `on_resume`. Before memory is mapped or unmapped, before resets
        and changes of migration state, and when the client has gone.

        Return None when that is so already; or a `Quiesce` whose `done` is called, from any thread, once it is: also
        by `call_soon`, which goes on meanwhile. Raise ProtocolError, or `Quiesce.fail`, to refuse: DMA_MAP, DMA_UNMAP,
        DEVICE_RESET and changes of migration state are then answered with that errno, and nothing has changed. A reset
        of the guest's (FLR, waking from D3hot) cannot be refused, as PCI knows no way to say so, nor can the end of a
        client: they come all the same, and the refusal is logged.

        A client that asked waits as long as that takes. When it has gone the device has 5 s, or 2 s from when the next
        client has come; then it is taken to stand still, and what it has not ended by then it ends in `on_reset`.

        It is not asked again until `on_resume`, however many need the device to stand still, or until it refused.
        """
        return None

    def on_resume(self) -> None:
        """Go on: what `on_quiesce` was for is done; once for each time that was asked and did not refuse.

        A device that is stopped by migration goes on when that starts it, one whose client has gone when the next one
        has come, whose memory is not mapped yet: each DMA_MAP is followed by an `on_resume` of its own.
        """

    # Client memory, and accesses.

    def on_dma_map(self, region: DmaRegion) -> None:
        """Client memory came; again for a region that the client maps twice. A range of no bytes is none."""

    def on_dma_unmap(self, region: DmaRegion) -> None:
        """Client memory is going: the last moment to use it. Views of it must be given up. What is written here is in
        the dirty bitmap that is asked for with the unmap.
        """

    def unclaimed_read(self, region: int, offset: int, count: int) -> bytes:
        """A read of bytes where nothing is declared. Zeros."""
        return bytes(count)

    def unclaimed_write(self, region: int, offset: int, data: bytes) -> None:
        """A write of bytes where nothing is declared. Ignored."""

    def on_irq_mask(self, mechanism: str, vectors: Sequence[int], masked: bool) -> None:
        """The client has masked some vectors of "intx", "msi" or "msix" by SET_IRQS, or unmasked them; INTx also by
        the eventfd that it gave for that.

        What is masked stays pending without this. It is for a device that does less while nobody listens.
        """

    # Configuration space.

    def on_config_read(self, offset: int, count: int) -> None:
        """The client is about to read these bytes of configuration space: bring up to date what changes by itself, by
        `self.config.set`. Raise ProtocolError to refuse with its errno.
        """

    def on_config_write(self, offset: int, data: bytes) -> None:
        """The client has written these bytes of configuration space, and what of them can be written has been.

        To hear of one register, with its old and new value, there is `self.config.watch`.
        """

    def capability_read(self, capability: Capability, offset: int, count: int) -> bytes:
        """Answer a read of a capability that is `Placed(..., callback=True)`, behind its header. As configuration space
        has it, unless overridden.

        offset: in configuration space, where `self.config.find_capability` tells what the capability's own is.
        """
        return self.config.read(offset, count)

    def capability_write(self, capability: Capability, offset: int, data: bytes) -> None:
        """Take a write of such a capability. As configuration space does, unless overridden."""
        self.config.write(offset, data)

    # Migration.

    def on_migration(self, state: MigrationState) -> None:
        """For what a device has outside of its state, such as an image that both hosts share. `state` is about to be:

        PRE_COPY: the device is going to be stopped soon. STOP: it stands still, and what it has acknowledged must be
        where another host finds it. STOP_COPY: its state is handed over, and from now on another may run in its place.
        RUNNING: it goes on, or begins with the state that was loaded; also where pre-copy has been given up.

        What is raised refuses the change, with the errno of an OSError: the device stays in the state before. One that
        a client has left stopped, and that cannot go on for the next one, is reset and runs all the same.
        """

    def on_save(self) -> None:
        """State is about to be saved or digested, or looked at whether it could be: bring what is declared up to date.

        The device may be running, and is called again before each use.
        """

    def on_check(self, values: Mapping[str, Any]) -> None:
        """A saved state is looked at before it is loaded. What is declared has been checked, each value by itself; here
        they can be compared with each other and with the device. Raise ProtocolError (EINVAL) with the reason to refuse
        it; change nothing.

        values: by the names that they are declared by, in the form they are saved in.
        """

    def save_extra(self) -> bytes:
        """State in a form of the author's own, beside what is declared: of a library that saves itself, say.

        The same bytes for the same state, on either side: it is compared. `load_extra` gets them.
        """
        return b""

    def load_extra(self, data: bytes) -> None:
        """Become what `save_extra` saved; declared state is loaded already. Raise ProtocolError (EINVAL) for bytes that
        are none of its own: the device then gets its former ones back, and the state is refused.
        """

    def on_load(self) -> None:
        """After `load_state`: plan again what the state says is under way.

        The device stands still until `on_resume`. What is planned waits for that by itself. A thread is let go there:
        what it changes before makes the state another than the one that was saved, and the migration is given up.

        What is raised refuses the state; the device has its former one then, and this is called for that.
        """
