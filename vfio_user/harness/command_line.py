"""A machine as data, and the QEMU command line that follows from it.

`MachineConfig` is what a guest can see of its machine: it decides whether a checkpoint fits. `Wiring` is how the
harness reaches the machine: it differs in every run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypedDict

from packaging.version import Version

from userdev.errors import UserError
from vfio_user.harness.attachment import Attachment, escaped
from vfio_user.harness.timeouts import Accelerator

AGENT_PORT = "org.vfio-user.agent.0"
AGENT = "agent"
"""The id of the device that is that port: QEMU's VSERPORT_CHANGE has it."""

# Where devices sit on pcie.0: pinned, because a restored machine needs each where it was, and QEMU does not check.
_SERIAL_AT = "0x2"
_NETWORK_AT = "0x3"
_ENTROPY_AT = "0x4"
_ROOT_DEVICES_AT = 0x8
_SLOTS_AT = 0x10
_FUNCTIONS = 8
MAX_ROOT_DEVICES = _SLOTS_AT - _ROOT_DEVICES_AT
MAX_SLOTS = 8 * _FUNCTIONS

# Address space kept free behind each root port for hot-plug, in MiB; QEMU's default is 2. The firmware does not align a
# window, so that only one twice as large as a BAR is sure to have a place for it.
SLOT_MEMORY_64 = 2048  # prefetchable, above 4 GiB
_SLOT_MEMORY = 128  # below 4 GiB, where q35 has about 1 GiB for all slots and the root bus together
_ALL_SLOTS_MEMORY = 768

_DEFAULT_CPU: dict[Accelerator, str] = {"kvm": "host", "tcg": "qemu64"}
# The kernel's test of its timer fails when the host is busy, and it panics. Its tests of ciphers, which nothing in a
# guest of ours uses, are a tenth of a boot, with what else it does for keys. Each of its indirect calls goes around a
# weakness that no processor of TCG has, which is a fifth of what QEMU translates when a device is plugged in. To
# protect its own text and constants, and to look whether all are, is a fifteenth of a boot.
_WITHOUT_KVM = (
    "no_timer_check",
    "cryptomgr.notests",
    "initcall_blacklist=crypto_kdf108_init,jent_mod_init,init_encrypted,load_system_certificate_list",
    "mitigations=off",
    "rodata=off",
)
# A processor of TCG has 40 bits of physical address unless told otherwise, and one of AMD keeps the last 12 GiB below
# 1 TiB for HyperTransport (hw/i386/pc.c): where the firmware puts the windows, so that Linux takes none of them.
_TCG_PHYSICAL_BITS = 39


@dataclass(frozen=True)
class MachineConfig:
    """The hardware of a guest. `memory` is in MiB; `machine` is a versioned machine type ("pc-q35-11.1").

    `spare_memory` is how many MiB more can be plugged in while it runs, as one module.
    `slots` is the number of root ports that devices can be hot-plugged into; `modules` are kernel modules that the
    image loads at boot; `devices` are further values for `-device`, there from the start.
    """

    machine: str
    accelerator: Accelerator
    cpu: str = ""
    cpus: int = 1
    memory: int = 512
    spare_memory: int = 0
    slots: int = 6
    iommu: bool = False
    modules: tuple[str, ...] = ()
    kernel_options: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.slots <= MAX_SLOTS:
            raise UserError(f"a machine has 1 to {MAX_SLOTS} slots, not {self.slots}")
        if self.memory < 128 or self.cpus < 1:
            raise UserError("a machine needs at least 128 MiB of memory and one processor")

    @property
    def cpu_model(self) -> str:
        """The value of QEMU's `-cpu`: the accelerator's default where none was asked for, of 39 physical bits under
        TCG.
        """
        model = self.cpu or _DEFAULT_CPU[self.accelerator]
        if self.accelerator == "kvm" or "phys-bits=" in model:
            return model
        return f"{model},phys-bits={_TCG_PHYSICAL_BITS}"

    @property
    def slot_memory(self) -> int:
        """MiB that each slot has for BARs that are not prefetchable, or only of 32 bits: a power of two."""
        share = _ALL_SLOTS_MEMORY // self.slots
        return min(_SLOT_MEMORY, 1 << share.bit_length() - 1)


class HardwareOptions(TypedDict, total=False):
    """The fields of `MachineConfig` that a test chooses, as keywords."""

    cpu: str
    cpus: int
    memory: int
    spare_memory: int
    slots: int
    iommu: bool
    modules: tuple[str, ...]
    kernel_options: tuple[str, ...]


def machine_type(version: Version) -> str:
    """The newest q35 machine type of a QEMU of this version: versioned, so that its hardware never changes."""
    return f"pc-q35-{version.major}.{version.minor}"


def slot_name(index: int) -> str:
    """The id of a root port, as `bus=` of a device takes it."""
    return f"slot{index}"


def slot_address(index: int) -> str:
    """The guest's name for a root port: its folder in /sys/bus/pci/devices."""
    return f"0000:00:{_SLOTS_AT + index // _FUNCTIONS:02x}.{index % _FUNCTIONS}"


def root_address(index: int) -> str:
    """The guest's name for a device on the root bus itself, there from the start: nothing can be plugged in there."""
    if not 0 <= index < MAX_ROOT_DEVICES:
        raise UserError(f"the root bus has places for {MAX_ROOT_DEVICES} devices")
    return f"0000:00:{_ROOT_DEVICES_AT + index:02x}.0"


Place = int | str
"""Where a device is: behind the root port of this index, or at this address of the root bus."""


def bus_place(place: Place) -> dict[str, object]:
    """The arguments of a device that put it there."""
    return {"bus": slot_name(place)} if isinstance(place, int) else {"bus": "pcie.0", "addr": place[-4:]}


Endpoint = int | Path | Literal["stdio"]
"""One end of a channel: an inherited, connected socket; a path at which QEMU listens; or QEMU's own terminal."""


@dataclass(frozen=True)
class Wiring:
    """The channels between the harness and a machine. None leaves a channel out; an agent left out answers nobody.

    `trace` is the file for QEMU's trace of the events that `traced` names by patterns, `monitor` a path at which a
    person's QMP tool may connect beside the harness. `memory` is an inherited file that is the guest's memory; without
    one QEMU makes its own.
    """

    qmp: Endpoint | None
    console: Endpoint
    agent: Endpoint | None = None
    qtest: Endpoint | None = None
    monitor: Path | None = None
    trace: Path | None = None
    traced: tuple[str, ...] = ()
    memory: int | None = None


@dataclass(frozen=True)
class Start:
    """What a machine boots. With `restore` it waits, paused, for QMP `migrate-incoming`, and boots only at a reset.

    With `firmware` the machine's firmware looks for a disk to boot from, and kernel and initramfs are left out;
    `attached` are devices of servers that are there from the start.
    """

    kernel: Path
    initramfs: Path
    firmware: bool = False
    restore: bool = False
    attached: tuple[Attachment, ...] = ()


def command_line(
    qemu: Sequence[str], config: MachineConfig, wiring: Wiring, start: Start, name: str = "guest"
) -> list[str]:
    """The whole command. `qemu` is how QEMU is called, with the options that it always needs."""
    return [
        *qemu,
        *_hardware(config, name, wiring.memory),
        *_channels(wiring),
        *_devices(config),
        *(word for attachment in start.attached for word in attachment.options),
        *_start(config, start),
    ]


def hardware(config: MachineConfig) -> list[str]:
    """The part of the command that a guest can notice: two machines that share it can have each other's checkpoints."""
    return [*_hardware(config, ""), *_devices(config), *kernel_options(config)]


def _hardware(config: MachineConfig, name: str, memory: int | None = None) -> Iterator[str]:
    irqchip = ",kernel-irqchip=split" if config.iommu and config.accelerator == "kvm" else ""
    yield from ("-name", escaped(name))
    yield from ("-no-user-config", "-nodefaults", "-display", "none")
    # vfio-user: the server maps the guest's memory, so it has to be shared and to have a file descriptor.
    # QEMU leaves memory out of what it saves and loads only where it has opened it by a name.
    backend = "memory-backend-memfd" if memory is None else f"memory-backend-file,mem-path=/dev/fd/{memory}"
    yield from ("-object", f"{backend},id=ram,size={config.memory}M,share=on")
    yield from ("-machine", f"{config.machine},memory-backend=ram{irqchip}")
    yield from ("-accel", config.accelerator)
    spare = f",slots=1,maxmem={config.memory + config.spare_memory}M" if config.spare_memory else ""
    yield from ("-cpu", config.cpu_model, "-smp", str(config.cpus), "-m", f"{config.memory}M{spare}")
    yield from ("-action", "panic=none")  # a kernel that has panicked may still say on the console why


def _channels(wiring: Wiring) -> Iterator[str]:
    if wiring.qmp is not None:
        yield from ("-chardev", _chardev("qmp", wiring.qmp), "-qmp", "chardev:qmp")
    if wiring.monitor is not None:
        yield from ("-chardev", _chardev("monitor", wiring.monitor), "-qmp", "chardev:monitor")
    yield from ("-chardev", _chardev("console", wiring.console), "-serial", "chardev:console")
    if wiring.console == "stdio":
        yield from ("-monitor", "chardev:console")
    if wiring.qtest is not None:
        yield from ("-chardev", _chardev("qtest", wiring.qtest), "-qtest", "chardev:qtest", "-qtest-log", "none")
    # The port is part of the hardware; without a channel its other end is nowhere.
    yield from ("-chardev", "null,id=agent" if wiring.agent is None else _chardev("agent", wiring.agent))
    if wiring.trace is not None:
        yield from (word for pattern in wiring.traced for word in ("-trace", pattern))
        yield from ("-D", str(wiring.trace))


def _devices(config: MachineConfig) -> Iterator[str]:
    if config.iommu:  # before every device whose DMA it is to translate
        yield from ("-device", "intel-iommu,intremap=on,caching-mode=on")
    yield from ("-device", f"virtio-serial-pci,id=serial,bus=pcie.0,addr={_SERIAL_AT}")
    yield from ("-device", f"virtserialport,id={AGENT},bus=serial.0,nr=1,chardev=agent,name={AGENT_PORT}")
    # The guest reaches nobody; the host reaches its SSH server through a port that the kernel chooses.
    yield from ("-netdev", "user,id=network,restrict=on,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22")
    # A guest that was restored or moved has nobody to tell where it is now.
    yield from ("-device", f"virtio-net-pci,netdev=network,guest_announce=off,romfile=,bus=pcie.0,addr={_NETWORK_AT}")
    yield from ("-device", f"virtio-rng-pci,bus=pcie.0,addr={_ENTROPY_AT}")
    yield from ("-device", "pvpanic")  # the kernel tells it when it panics, and QMP tells us
    for index in range(config.slots):
        yield from ("-device", _root_port(index, config.slot_memory))
    for device in config.devices:
        yield from ("-device", device)


def _root_port(index: int, memory: int) -> str:
    device, function = divmod(index, _FUNCTIONS)
    return (
        f"pcie-root-port,id={slot_name(index)},bus=pcie.0,addr={_SLOTS_AT + device:#x}.{function}"
        f"{',multifunction=on' if function == 0 else ''},chassis={index + 1},slot={index + 1}"
        f",mem-reserve={memory}M,pref64-reserve={SLOT_MEMORY_64}M"
    )


def kernel_options(config: MachineConfig) -> Iterator[str]:
    """What the kernel is told, word by word."""
    modules = (f"mods={','.join(config.modules)}",) if config.modules else ()
    slow = _WITHOUT_KVM if config.accelerator == "tcg" else ()
    yield from ("console=ttyS0", "loglevel=4", *slow, *modules, *config.kernel_options)


def _start(config: MachineConfig, start: Start) -> Iterator[str]:
    if not start.firmware:
        append = " ".join(kernel_options(config))
        yield from ("-kernel", str(start.kernel), "-initrd", str(start.initramfs), "-append", append)
    if start.restore:
        yield from ("-S", "-incoming", "defer")


def _chardev(identity: str, endpoint: Endpoint) -> str:
    match endpoint:
        case int():
            return f"socket,id={identity},fd={endpoint}"
        case Path():
            return f"socket,id={identity},path={escaped(str(endpoint))},server=on,wait=off"
        case _:
            return f"stdio,id={identity},mux=on,signal=off"
