"""A controller as a PCI function: its options, its registers, its life from enable to shutdown, and how it moves.

What the controller is and has is `controller`'s concern, the work in its queues that of `engine`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

from userdev.errors import UserError
from userdev_servers.block.images import open_images
from userdev_servers.control import ControlSocket
from userdev_servers.nvme import checks, control
from userdev_servers.nvme.control import CHANGING
from userdev_servers.nvme.controller import Controller, Outcome
from userdev_servers.nvme.copying import ImageCopy
from userdev_servers.nvme.doorbell_page import DoorbellPage
from userdev_servers.nvme.doorbells import Doorbells
from userdev_servers.nvme.engine import Engine
from userdev_servers.nvme.identify import serial_of
from userdev_servers.nvme.io_commands import write_failure
from userdev_servers.nvme.model import MAX_QUEUES, QUEUE_ENTRIES, SERIAL_SIZE, VERSION, Model
from userdev_servers.nvme.namespace import Namespace, check_images
from userdev_servers.nvme.spec import DOORBELLS, PAGE, SUBSYSTEM_RESET_WORD, Cc, Csts
from userdev_servers.nvme.state import ControllerState
from vfio_user.device import (
    Bar,
    IntX,
    MigrationState,
    MsiX,
    PciDevice,
    PciExpress,
    PciIds,
    Quiesce,
    ResetKind,
    Storage,
    register,
)
from vfio_user.device import stored_register as stored

MAX_PAGE_SHIFT = 4
"""Guest pages of 4 KiB << 0 to 4 KiB << 4."""
DOORBELL_COUNT = 2 * (MAX_QUEUES + 1)
BAR_SIZE = 0x4000
TIMEOUT_HALF_SECONDS = 40
"""CAP.TO, in 500 ms: how long enabling and disabling may take. Disabling waits for the disk."""
CAPABILITIES = (QUEUE_ENTRIES - 1) | 1 << 16 | TIMEOUT_HALF_SECONDS << 24 | 1 << 37 | MAX_PAGE_SHIFT << 52
"""MQES, CQR, TO, CSS: NVM, MPSMAX."""
SUBSYSTEM_RESET = 1 << 36
"""CAP.NSSRS."""


class Nvme(ControllerState, PciDevice):
    """An NVMe 1.4 controller whose namespaces are files or block devices."""

    ids = PciIds(0x4E58, 0x0001, class_code=0x010802, revision=1, subsystem_vendor=0x4E58, subsystem=0x0001)
    """Those of SPDK's vfio-user target: drivers bind by the class, and have no quirks for these."""
    bars = (Bar(0, size=BAR_SIZE, bits=64),)
    state_version = 2

    admin_sizes: int = stored(bar=0, offset=0x24, width=4, writable=0x0FFF0FFF, check=checks.admin_sizes)
    admin_sq: int = stored(bar=0, offset=0x28, width=8, writable=~0xFFF, check=checks.admin_base)
    admin_cq: int = stored(bar=0, offset=0x30, width=8, writable=~0xFFF, check=checks.admin_base)

    def __init__(
        self,
        *,
        image: Annotated[
            str, "FILE[:SIZE][:ro] of each namespace, or memory:SIZE, with commas between them; SIZE makes a new file"
        ] = "",
        serial: Annotated[str, "serial number; made from the first image's path if not given"] = "",
        queues: Annotated[int, "I/O queue pairs, 1 to 64"] = 8,
        block_size: Annotated[int, "bytes of a block until the guest formats: 512 or 4096"] = 512,
        shadow_doorbells: Annotated[
            bool | None, "offer Doorbell Buffer Config; yes, unless doorbells are mapped"
        ] = None,
        map_doorbells: Annotated[
            str,
            "let the client map the doorbells, in this file (in a tmpfs), which a replacement opens again; or: memfd",
        ] = "",
        doorbell_interval: Annotated[int, "milliseconds between looks at mapped doorbells of an idle guest"] = 8,
        msix: Annotated[bool, "MSI-X; without it the device has INTx, and QEMU can unplug it"] = True,
        subsystem_reset: Annotated[
            bool, "offer NVM subsystem resets; Linux notices one when it resets the controller, and not before"
        ] = False,
        migrate_image: Annotated[
            bool, "migrations copy the images, for hosts that do not share them; memory is copied always"
        ] = False,
        control: Annotated[str, "listen here for JSON lines: namespaces, resize, doorbells, break, mend"] = "",
    ) -> None:
        if not image:
            raise UserError("no image is given", hint="--image FILE[:SIZE], for example --image disk.img:64M")
        if not 1 <= queues <= MAX_QUEUES:
            raise UserError(f"a controller has 1 to {MAX_QUEUES} I/O queue pairs, not {queues}")
        if block_size not in (512, 4096):
            raise UserError(f"blocks have 512 or 4096 bytes, not {block_size}")
        if doorbell_interval < 1:
            raise UserError(f"idle doorbells are looked at every millisecond or less often, not {doorbell_interval}")
        if not checks.serial(self, serial):
            raise UserError(f"a serial number is {SERIAL_SIZE} characters of ASCII at most, not {serial!r}")
        with ExitStack() as opened:  # what was opened is closed where the rest cannot be made
            page = DoorbellPage(map_doorbells, DOORBELL_COUNT, BAR_SIZE) if map_doorbells else None
            if page is not None:
                opened.callback(page.close)
            backings = open_images(image, block_size)
            for backing in backings:
                opened.callback(backing.close)
            vectors = queues + 1 if msix else 0
            self.model = Model(
                queues=queues,
                vectors=vectors,
                namespaces=len(backings),
                shadow_doorbells=not map_doorbells if shadow_doorbells is None else shadow_doorbells,
                vendor=self.ids.vendor,
                subsystem_vendor=self.ids.subsystem_vendor,
            )
            super().__init__(interrupts=IntX() | MsiX(vectors, bar=4), capabilities=(PciExpress(flr=True),))
            self._resets_subsystem = subsystem_reset
            self.serial = serial or serial_of(backings[0].path)
            namespaces = [
                Namespace.whole(number, backing, block_size, copied=migrate_image or backing.in_memory)
                for number, backing in enumerate(backings, 1)
            ]
            self.copies = [ImageCopy(f"namespace {each.nsid}", each.backing) for each in namespaces if each.copied]
            """What migrations take along of the images."""
            self.controller = Controller(self, self, namespaces, page)
            self.engine = Engine(self.controller, self, idle=self._finish_disabling, woken=self._watch_doorbells)
            self.doorbells: Doorbells | None = None
            self.doorbell_messages = 0
            if page is not None:
                self.let_map(0, DOORBELLS, PAGE, page.fd)
                pause = doorbell_interval / 1000
                self.doorbells = Doorbells(page, self.controller, self.engine, self.call_later, pause)
            self._control = ControlSocket(Path(control), self, CONTROL, changing=CHANGING) if control else None
            opened.pop_all()

    # Registers

    @register(bar=0, offset=0x00, width=8)
    def capabilities_register(self) -> int:
        """CAP: what the controller can (section 3.1.1)."""
        return CAPABILITIES | (SUBSYSTEM_RESET if self._resets_subsystem else 0)

    @register(bar=0, offset=0x08, width=4)
    def version_register(self) -> int:
        """VS: 1.4 (section 3.1.2)."""
        return VERSION

    @register(bar=0, offset=0x0C, width=4, merge=False)
    def mask_interrupts(self, value: int) -> None:
        """INTMS: mask vectors of INTx; a read gives the mask (section 3.1.3)."""
        self.interrupt_mask |= value
        self.controller.queues.update_line()

    @mask_interrupts.reader
    def _(self) -> int:
        return self.interrupt_mask

    @register(bar=0, offset=0x10, width=4, merge=False)
    def unmask_interrupts(self, value: int) -> None:
        """INTMC: unmask vectors of INTx (section 3.1.4)."""
        self.interrupt_mask &= ~value
        self.controller.queues.update_line()

    @unmask_interrupts.reader
    def _(self) -> int:
        return self.interrupt_mask

    @register(bar=0, offset=0x14, width=4)
    def configure(self, value: int) -> None:
        """CC: enable or disable the controller, or shut it down (section 3.1.5)."""
        old, new = self.configuration, value & Cc.WRITABLE
        self.configuration = new
        if new & ~old & Cc.ENABLE and not self.engine.closing:
            self._enable()
        elif old & ~new & Cc.ENABLE:
            self._disable()
        if new & Cc.SHUTDOWN and not old & Cc.SHUTDOWN:
            self._shut_down()
        elif old & Cc.SHUTDOWN and not new & Cc.SHUTDOWN:
            self.status &= ~Csts.SHUTDOWN

    @configure.reader
    def _(self) -> int:
        return self.configuration

    @register(bar=0, offset=0x1C, width=4, merge=False)
    def write_status(self, value: int) -> None:
        """CSTS: a 1 clears that there was a subsystem reset; nothing else can be written (section 3.1.6)."""
        self.status &= ~(value & Csts.SUBSYSTEM_RESET)

    @write_status.reader
    def _(self) -> int:
        return self.status

    @register(bar=0, offset=0x20, width=4, merge=False)
    def reset_subsystem(self, value: int) -> None:
        """NSSR: "NVMe" resets the subsystem, where that is offered (section 3.1.7)."""
        if self._resets_subsystem and value == SUBSYSTEM_RESET_WORD:
            self.configuration = self.admin_sizes = self.admin_sq = self.admin_cq = 0
            self.clock = [0, 0]
            self.status |= Csts.SUBSYSTEM_RESET
            self._disable()

    @register(bar=0, offset=DOORBELLS, width=4, count=DOORBELL_COUNT, merge=False)
    def doorbell(self, index: int, value: int) -> None:
        """The doorbells: tail of a submission queue and head of a completion queue by turns (sections 3.1.24 and
        3.1.25).
        """
        self.doorbell_messages += 1
        if self.doorbells is not None:
            self.doorbells.page.store(index, value)
        self.engine.ring(index, value)

    # The life of the controller

    def _enable(self) -> None:
        sq_size, cq_size = (self.admin_sizes & 0xFFF) + 1, (self.admin_sizes >> 16) + 1
        wrong = {
            "a command set or arbitration that there is not": self.configuration & (Cc.COMMAND_SET | Cc.ARBITRATION),
            "a page size that there is not": self.page_size > PAGE << MAX_PAGE_SHIFT,
            "admin queues of one entry": min(sq_size, cq_size) < 2,
            "admin queues that do not begin at a page": (self.admin_sq | self.admin_cq) & self.page_size - 1,
        }
        if reasons := [reason for reason, found in wrong.items() if found]:
            self.controller.fail(reasons[0])
            return
        try:
            self.controller.take_over_images()
        except OSError as error:
            self.controller.fail(str(error.strerror))
            return
        self.engine.open((self.admin_sq, sq_size), (self.admin_cq, cq_size))
        self.status = self.status & ~(Csts.FATAL | Csts.SHUTDOWN) | Csts.READY
        self._watch_doorbells()

    def _disable(self) -> None:
        """CSTS.RDY falls when the commands under way have ended: at once, unless some wait for the disk."""
        self.engine.closing = True
        self._finish_disabling()

    def _finish_disabling(self) -> None:
        """Whenever commands have ended: the rest of `_disable`, if those were the last."""
        if not (self.engine.closing and self.engine.idle):
            return
        self.engine.closing = False
        self.engine.forget()
        self.status &= Csts.SUBSYSTEM_RESET | Csts.SHUTDOWN
        self.controller.was_reset_at = monotonic()
        self.forget_what_the_guest_set()
        self.interrupts.lower()
        if self.configuration & Cc.ENABLE:
            self._enable()

    def _shut_down(self) -> None:
        self.status = self.status & ~Csts.SHUTDOWN | Csts.SHUTDOWN_UNDER_WAY
        self.engine.work()

        def done(outcome: Outcome) -> None:
            if outcome:  # there is no command whose status could tell
                self.controller.fail(f"shutdown: {outcome}")
            elif self.configuration & Cc.SHUTDOWN:
                self.status = self.status & ~Csts.SHUTDOWN | Csts.SHUTDOWN_COMPLETE

        self.controller.background.submit(self.controller.sync_namespaces, done)

    def _watch_doorbells(self) -> None:
        if self.doorbells is not None:
            self.doorbells.watch()

    # Reset, standing still, clients

    def on_reset(self, kind: ResetKind) -> None:
        """End commands that are under way and, but for a client that has gone, drop the queues."""
        self.controller.drain()  # nothing waits for the disk any more where the device was quiesced before
        if kind is not ResetKind.LOST_CONNECTION:
            self.status &= Csts.SUBSYSTEM_RESET  # that of the last one, which this is not
            self.engine.reset()
            self.controller.was_reset_at = monotonic()
            if self.doorbells is not None:
                self.doorbells.watch_anew()

    def on_quiesce(self) -> Quiesce | None:
        """Commands that were begun are ended; those in a queue stay there, for whoever goes on."""
        waiting = self.engine.halt()
        if self.doorbells is not None:
            self.doorbells.settle()
        return waiting

    def on_resume(self) -> None:
        """Look at the queues and at mapped doorbells again."""
        self.engine.go_on()
        self._watch_doorbells()

    def on_attach(self) -> None:
        """Look at mapped doorbells from the beginning: the client may have written them before it attached."""
        if self.doorbells is not None:
            self.doorbells.watch_anew()

    def on_close(self) -> None:
        """Close the control socket, then end what threads are at, then close the doorbell page and the images."""
        if self._control is not None:
            self._control.close()
        self.controller.background.close()
        if self.doorbells is not None:
            self.doorbells.page.close()
        self.controller.close()

    # Moving

    def identity(self) -> dict[str, Any]:
        """The options that have to be alike at a migration's destination: also namespaces and queues."""
        return {**super().identity(), "namespaces": self.model.namespaces, "queues": self.model.queues}

    def storages(self) -> Sequence[Storage]:
        """The images that a migration copies, none unless `migrate_image`."""
        return self.copies

    def on_save(self) -> None:
        """Note queues and namespaces in the declared state, and sign the doorbell page for them."""
        self.controller.note_parts()
        if self.doorbells is not None:
            self.doorbells.sign(self.saved_queues)

    def on_check(self, values: Mapping[str, Any]) -> None:
        """Look whether the images of this side hold the namespaces of a saved state.

        Raises:
            ProtocolError: EINVAL where one is too small.
        """
        check_images(values["saved_namespaces"], self.controller.namespaces)

    def on_migration(self, state: MigrationState) -> None:
        """The image is where both hosts find it: there is nothing that this one has in its page cache alone, and only
        one of them has it locked.
        """
        controller = self.controller
        match state:
            case MigrationState.PRE_COPY:  # in good time, so that little is left to do while the guest stands still
                controller.background.submit(controller.sync_namespaces, self._tell_of_loss)
            case MigrationState.STOP:
                controller.sync_namespaces()
            case MigrationState.STOP_COPY:
                controller.hand_over_images()
            case MigrationState.RUNNING:
                controller.take_over_images()

    def _tell_of_loss(self, outcome: Outcome) -> None:
        """No command has asked for it, so SMART and an event tell the guest."""
        write_failure(self.controller, outcome)

    def on_load(self) -> None:
        """Make queues and namespaces of the declared state, and go on with what the queues hold."""
        self.controller.load()
        if self.doorbells is not None:
            self.doorbells.load(self.saved_queues)
        self.engine.schedule_mapped()


def doorbells(device: Nvme, request: Mapping[str, Any]) -> control.DoorbellUse:
    """{"command": "doorbells"}: how many were rung by messages, and how often those that are mapped were looked at."""
    return {"messages": device.doorbell_messages, "looks": device.doorbells.looks if device.doorbells else 0}


def _of_controller(command: control.Command) -> Callable[[Nvme, Mapping[str, Any]], Mapping[str, object]]:
    return lambda device, request: command(device.controller, request)


CONTROL = {name: _of_controller(command) for name, command in control.COMMANDS.items()} | {"doorbells": doorbells}
