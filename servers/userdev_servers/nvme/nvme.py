"""The controller as a PCI function: its options, its registers, its life from enable to shutdown, and how it moves.

What is in the queues is the concern of `engine`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from userdev.errors import UserError
from userdev_servers.block.images import open_images
from userdev_servers.control import ControlSocket
from userdev_servers.nvme import control, saved
from userdev_servers.nvme.background import Outcome
from userdev_servers.nvme.copying import ImageCopy
from userdev_servers.nvme.doorbells import Doorbells
from userdev_servers.nvme.engine import Engine
from userdev_servers.nvme.events import Events
from userdev_servers.nvme.features import defaults
from userdev_servers.nvme.identify import serial_of
from userdev_servers.nvme.io_commands import sync_all, write_failure
from userdev_servers.nvme.logs import ErrorLog
from userdev_servers.nvme.namespace import Namespace, check_images
from userdev_servers.nvme.spec import (
    DOORBELLS,
    PAGE,
    SUBSYSTEM_RESET_WORD,
    Cc,
    Csts,
    EventType,
    Failure,
    LogPage,
    Status,
)
from vfio_user.device import (
    Bar,
    IntX,
    Link,
    MigrationState,
    MsiX,
    PciDevice,
    PciExpress,
    PciIds,
    Quiesce,
    ResetKind,
    Storage,
    register,
    state,
)
from vfio_user.device import stored_register as stored

log = logging.getLogger("vfio_user.servers.nvme")

MAX_QUEUES = 64
QUEUE_ENTRIES = 2048
MAX_PAGE_SHIFT = 4
"""Guest pages of 4 KiB << 0 to 4 KiB << 4."""
DOORBELL_COUNT = 2 * (MAX_QUEUES + 1)
BAR_SIZE = 0x4000
TIMEOUT = 40
"""CAP.TO, in 500 ms: how long enabling and disabling may take. Disabling waits for the disk."""
CAPABILITIES = (QUEUE_ENTRIES - 1) | 1 << 16 | TIMEOUT << 24 | 1 << 37 | MAX_PAGE_SHIFT << 52
"""MQES, CQR, TO, CSS: NVM, MPSMAX."""
SUBSYSTEM_RESET = 1 << 36
"""CAP.NSSRS."""


class Nvme(PciDevice):
    """An NVMe 1.4 controller whose namespaces are files or block devices."""

    ids = PciIds(0x4E58, 0x0001, class_code=0x010802, revision=1, subsystem_vendor=0x4E58, subsystem=0x0001)
    """Those of SPDK's vfio-user target: drivers bind by the class, and have no quirks for these."""
    bars = (Bar(0, size=BAR_SIZE, bits=64),)
    state_version = 1
    version_number = 0x00010400
    queue_entries = QUEUE_ENTRIES

    interrupt_mask: int = state(0, bits=32)
    configuration: int = state(0, bits=32, check=saved.configuration)
    status: int = state(0, bits=5)
    admin_sizes: int = stored(bar=0, offset=0x24, width=4, writable=0x0FFF0FFF, check=saved.admin_sizes)
    admin_sq: int = stored(bar=0, offset=0x28, width=8, writable=~0xFFF, check=saved.admin_base)
    admin_cq: int = stored(bar=0, offset=0x30, width=8, writable=~0xFFF, check=saved.admin_base)

    saved_queues: list[list[list[int]]] = state([[], []], bits=64, depth=3, check=saved.queues)
    """What is saved, and `on_load` makes queues of: completion queues, submission queues."""
    shadow_buffers: list[int] = state([], bits=64, check=saved.shadow_buffers)
    """Addresses of shadow doorbells and of event indexes, once the guest has given them."""
    settings: dict[int, int] = state({}, bits=32, check=saved.settings)
    """Features that were set, by identifier."""
    clock: list[int] = state([0, 0], check=saved.clock)
    """Timestamp feature: milliseconds to add to the host's clock, and whether the guest set it."""
    event_requests: list[int] = state([], bits=16, check=saved.event_requests)
    """Command identifiers of Asynchronous Event Requests that wait."""
    events: list[list[int]] = state([], bits=8, depth=2, check=saved.events)
    """Events that wait for a request: type, information, log page."""
    event_types_sent: list[int] = state([], bits=8, check=saved.event_types)
    """Types that are silent until their log page is read."""
    changed_namespaces: list[int] = state([], bits=32, check=saved.changed_namespaces)

    serial: str = state("", keep=True, check=saved.serial)
    saved_namespaces: list[list[int]] = state([], keep=True, bits=64, depth=2, check=saved.namespaces)
    errors: list[bytes] = state([], keep=True, check=saved.errors)
    error_count: int = state(0, keep=True, bits=64)
    media_errors: int = state(0, keep=True, bits=64)
    sectors_read: int = state(0, keep=True, bits=64)
    sectors_written: int = state(0, keep=True, bits=64)
    reads: int = state(0, keep=True, bits=64)
    writes: int = state(0, keep=True, bits=64)

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
        if not saved.serial(self, serial):
            raise UserError(f"a serial number is {saved.SERIAL_SIZE} characters of ASCII at most, not {serial!r}")
        self.max_queues = queues
        self.offers_shadow_doorbells = not map_doorbells if shadow_doorbells is None else shadow_doorbells
        self.vectors = queues + 1 if msix else 0
        super().__init__(
            interrupts=IntX() | MsiX(self.vectors, bar=4),
            capabilities=(PciExpress(flr=True),),
        )
        self._resets_subsystem = subsystem_reset
        self.doorbell_messages = 0
        self.doorbells: Doorbells | None = None
        if map_doorbells:
            self.doorbells = Doorbells(self, map_doorbells, DOORBELL_COUNT, BAR_SIZE, doorbell_interval / 1000)
        shift = block_size.bit_length() - 1
        backings = open_images(image, block_size)
        self.serial = serial or serial_of(backings[0].path)
        self.namespaces = [
            Namespace(number, backing, True, True, backing.size >> shift, shift)
            for number, backing in enumerate(backings, 1)
        ]
        self.copies = [
            ImageCopy(f"namespace {each.nsid}", each.backing)
            for each in self.namespaces
            if not each.read_only and (migrate_image or each.backing.in_memory)
        ]
        """What migrations take along of the images."""
        self._copied = {copy.backing for copy in self.copies}
        self.default_settings = defaults(self)
        self.engine = Engine(self)
        self.event_queue = Events(self)
        self.error_log = ErrorLog(self)
        self._control = ControlSocket(Path(control), self, CONTROL, changing=("resize",)) if control else None

    def identity(self) -> dict[str, Any]:
        return {**super().identity(), "namespaces": len(self.namespaces), "queues": self.max_queues}

    def close(self) -> None:
        if self._control is not None:
            self._control.close()
        self.engine.close()
        super().close()
        if self.doorbells is not None:
            self.doorbells.close()
        for namespace in self.namespaces:
            namespace.backing.close()

    def attach(self, link: Link) -> None:
        super().attach(link)
        if self.doorbells is not None:
            self.doorbells.watch_anew()

    # Registers

    @register(bar=0, offset=0x00, width=8)
    def capabilities_register(self) -> int:
        return CAPABILITIES | (SUBSYSTEM_RESET if self._resets_subsystem else 0)

    @register(bar=0, offset=0x08, width=4)
    def version_register(self) -> int:
        return self.version_number

    @register(bar=0, offset=0x0C, width=4, merge=False)
    def mask_interrupts(self, value: int) -> None:
        self.interrupt_mask |= value
        self.engine.update_line()

    @mask_interrupts.reader
    def _(self) -> int:
        return self.interrupt_mask

    @register(bar=0, offset=0x10, width=4, merge=False)
    def unmask_interrupts(self, value: int) -> None:
        self.interrupt_mask &= ~value
        self.engine.update_line()

    @unmask_interrupts.reader
    def _(self) -> int:
        return self.interrupt_mask

    @register(bar=0, offset=0x14, width=4)
    def configure(self, value: int) -> None:
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
        self.status &= ~(value & Csts.SUBSYSTEM_RESET)

    @write_status.reader
    def _(self) -> int:
        return self.status

    @register(bar=0, offset=0x20, width=4, merge=False)
    def reset_subsystem(self, value: int) -> None:
        if self._resets_subsystem and value == SUBSYSTEM_RESET_WORD:
            self.configuration = 0
            self.status |= Csts.SUBSYSTEM_RESET
            self._disable()

    @register(bar=0, offset=DOORBELLS, width=4, count=DOORBELL_COUNT, merge=False)
    def doorbell(self, index: int, value: int) -> None:
        self.doorbell_messages += 1
        if self.doorbells is not None:
            self.doorbells.store(index, value)
        self.ring(index, value)

    def ring(self, index: int, value: int) -> None:
        """A doorbell of the guest's: by a message, or seen in the page."""
        queue, is_completion = index >> 1, index & 1
        if is_completion:
            self.engine.completion_doorbell(queue, value & 0xFFFF)
        else:
            self.engine.submission_doorbell(queue, value & 0xFFFF)

    # The life of the controller

    @property
    def page_size(self) -> int:
        """The guest's."""
        return PAGE << ((self.configuration & Cc.PAGE_SIZE) >> 7)

    @property
    def enabled(self) -> bool:
        return bool(self.status & Csts.READY)

    def _enable(self) -> None:
        sq_size, cq_size = (self.admin_sizes & 0xFFF) + 1, (self.admin_sizes >> 16) + 1
        wrong = {
            "a command set or arbitration that there is not": self.configuration & (Cc.COMMAND_SET | Cc.ARBITRATION),
            "a page size that there is not": self.page_size > PAGE << MAX_PAGE_SHIFT,
            "admin queues of one entry": min(sq_size, cq_size) < 2,
            "admin queues that do not begin at a page": (self.admin_sq | self.admin_cq) & self.page_size - 1,
        }
        if reasons := [reason for reason, found in wrong.items() if found]:
            self.fail(reasons[0])
            return
        try:
            self._take_over_images()
        except OSError as error:
            self.fail(str(error.strerror))
            return
        self.engine.open((self.admin_sq, sq_size), (self.admin_cq, cq_size))
        self.status = self.status & ~(Csts.FATAL | Csts.SHUTDOWN) | Csts.READY
        if self.doorbells is not None:
            self.doorbells.watch()

    def _disable(self) -> None:
        """CSTS.RDY falls when the commands under way have ended: at once, unless some wait for the disk."""
        self.engine.closing = True
        self.finish_disabling()

    def finish_disabling(self) -> None:
        """Whenever commands have ended: the rest of `_disable`, if those were the last."""
        if not (self.engine.closing and self.engine.idle):
            return
        self.engine.closing = False
        self.engine.forget()
        self.status &= Csts.SUBSYSTEM_RESET | Csts.SHUTDOWN
        self.shadow_buffers = []
        self.settings = {}
        self.event_requests, self.events, self.event_types_sent = [], [], []
        self.interrupts.lower()
        if self.configuration & Cc.ENABLE:
            self._enable()

    def _shut_down(self) -> None:
        self.status = self.status & ~Csts.SHUTDOWN | Csts.SHUTDOWN_UNDER_WAY
        self.engine.work()

        def done(outcome: Outcome) -> None:
            if outcome:  # there is no command whose status could tell
                self.fail(f"shutdown: {outcome}")
            elif self.configuration & Cc.SHUTDOWN:
                self.status = self.status & ~Csts.SHUTDOWN | Csts.SHUTDOWN_COMPLETE

        self.engine.background.submit(self.sync_namespaces, done)

    def fail(self, reason: str) -> None:
        """Fatal error: the guest has to reset the controller."""
        log.error("fatal: %s", reason)
        self.status |= Csts.FATAL
        self.engine.give_up()

    # Namespaces

    def namespace(self, nsid: int) -> Namespace:
        """The namespace of a valid identifier, whether it exists or not; raises Failure for an invalid one."""
        if not 1 <= nsid <= len(self.namespaces):
            raise Failure(Status.INVALID_NAMESPACE)
        return self.namespaces[nsid - 1]

    def active_namespace(self, nsid: int) -> Namespace:
        """Raises Failure for one that this controller gives no access to, too."""
        namespace = self.namespace(nsid)
        if not (namespace.exists and namespace.attached):
            raise Failure(Status.INVALID_FIELD)
        return namespace

    def sync_namespaces(self) -> None:
        """Bring everything that was written to the disk; waits for it. Raises OSError."""
        sync_all(self.namespaces)

    def namespace_changed(self, namespace: Namespace) -> None:
        """Something that Identify tells of it is different: note it, and tell a guest that wants to know."""
        if namespace.nsid not in self.changed_namespaces:
            self.changed_namespaces.append(namespace.nsid)
        self.event_queue.add(EventType.NOTICE, 0, LogPage.CHANGED_NAMESPACES)
        self.engine.interrupt()

    # Reset, standing still, moving

    def on_reset(self, kind: ResetKind) -> None:
        self.engine.drain()  # nothing waits for the disk any more where the device was quiesced before
        if kind is not ResetKind.LOST_CONNECTION:
            self.engine.reset()
            if self.doorbells is not None:
                self.doorbells.watch_anew()

    def on_quiesce(self) -> Quiesce | None:
        """Commands that were begun are ended; those in a queue stay there, for whoever goes on."""
        return self.engine.halt()

    def on_resume(self) -> None:
        self.engine.go_on()

    def storages(self) -> Sequence[Storage]:
        return self.copies

    def save_state(self) -> dict[str, Any]:
        self._note_parts()
        if self.doorbells is not None:
            self.doorbells.sign(self.saved_queues)
        return super().save_state()

    def check_savable(self) -> None:
        self._note_parts()
        super().check_savable()

    def _note_parts(self) -> None:
        """What is no declared state by itself."""
        self.saved_queues = self.engine.save()
        self.saved_namespaces = [namespace.save() for namespace in self.namespaces]

    def check_state(self, state: Mapping[str, Any]) -> None:
        super().check_state(state)
        check_images(state["values"]["saved_namespaces"], self.namespaces)

    def on_migration(self, state: MigrationState) -> None:
        """The image is where both hosts find it: there is nothing that this one has in its page cache alone, and only
        one of them has it locked.
        """
        match state:
            case MigrationState.PRE_COPY:  # in good time, so that little is left to do while the guest stands still
                self.engine.background.submit(self.sync_namespaces, self._tell_of_loss)
            case MigrationState.STOP:
                self.sync_namespaces()
            case MigrationState.STOP_COPY:
                for namespace in self.namespaces:
                    namespace.backing.hand_over()
            case MigrationState.RUNNING:
                self._take_over_images()

    def _tell_of_loss(self, outcome: Outcome) -> None:
        """No command has asked for it, so SMART and an event tell the guest."""
        write_failure(self, outcome)

    def _take_over_images(self) -> None:
        """Raises InUse while another has one of them."""
        for namespace in self.namespaces:
            namespace.backing.take_over()

    def on_load(self) -> None:
        for namespace, parts in zip(self.namespaces, self.saved_namespaces, strict=True):
            if namespace.backing not in self._copied:
                namespace.backing.forget()
            namespace.load(parts)
        self.engine.load(self.saved_queues)

    def setting(self, feature: int) -> int:
        """The value of a feature: what was set, or the default."""
        value = self.settings.get(feature)
        return self.default_settings[feature] if value is None else value


CONTROL = control.COMMANDS
