"""What QEMU is told: whole command lines, of each field by itself what it changes, and the settings of migrations.

Here numbers have the units that QEMU takes them in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from packaging.version import Version

from tests.tellings import Told
from vfio_user.harness.command_line import (
    HardwareOptions,
    MachineConfig,
    Start,
    Wiring,
    command_line,
    hardware,
    machine_type,
    root_address,
)
from vfio_user.harness.device import Device
from vfio_user.harness.family import inside_qemu
from vfio_user.harness.migration import Tuning
from vfio_user.harness.migration.qemu_side import listen, set_up

USUAL = MachineConfig("pc-q35-11.1", "kvm")
WIRING = Wiring(qmp=3, console=4)
START = Start(Path("/kernel"), Path("/initramfs"))
CONFIGS: Sequence[HardwareOptions] = (
    {"cpu": "max"},
    {"cpus": 3},
    {"memory": 768},
    {"memory": 768, "spare_memory": 256},
    {"slots": 9},
    {"iommu": True},
    {"modules": ("one", "two")},
    {"kernel_options": ("quiet", "nosmp")},
)
WIRINGS: Sequence[Mapping[str, Any]] = (
    {"qmp": None},
    {"console": "stdio"},
    {"console": Path("/a,b")},
    {"agent": 5},
    {"qtest": 6},
    {"monitor": Path("/monitor")},
    {"trace": Path("/log"), "traced": ("vfio_*", "pci_*")},
    {"memory": 7},
)
DEVICES = (
    "edu",
    "edu --msix 0 [x-pci-class-code=0x088000]",
    "nvme",
    "vhost-user-blk",
    "vhost-user-net",
    "vhost-user-rng",
    "S {socket}",
)


class Obedient(list[Any]):
    """QMP of a machine that does what it is told."""

    def command(self, name: str, **arguments: Any) -> Any:
        return self.execute(name, arguments)

    def execute(self, name: str, arguments: Any = None, *_: Any, **__: Any) -> Any:
        self.append([name, arguments])
        return {"socket-address": [{"host": "::1", "port": "4711"}]}

    @property
    def events(self) -> Any:
        return SimpleNamespace(forget=lambda name: self.append(["forget", name]))


def told(folder: Path) -> Told:
    """The usual line, what is otherwise in others, and what a migration's two sides are told."""
    usual = _line()
    changed = {str(fields): replace(USUAL, **fields) for fields in (*CONFIGS, {"accelerator": "tcg"})}  # type: ignore[arg-type]
    found: Told = {"usual": usual, "hardware": hardware(USUAL), "version": machine_type(Version("10.2.7"))}
    for name, config in changed.items():
        found[name] = _otherwise(usual, _line(config))
    for wiring in WIRINGS:
        found[str(wiring)] = _otherwise(usual, _line(wiring=replace(WIRING, **wiring)))
    for start in (replace(START, firmware=True), replace(START, restore=True)):
        found[f"firmware={start.firmware}, restore={start.restore}"] = _otherwise(usual, _line(start=start))
    for text in DEVICES:
        device = Device.parse(text)
        for place in (2, root_address(1)):
            path = Path("/a socket,")
            attachment = device.family.attach(device.served, "dev0", path, place, device.properties)
            found[f"{text} at {place}"] = attachment.options
    found["qemu:edu"] = inside_qemu("edu", "dev0", 1, {"dma_mask": 7}).options
    return {**found, "migration": {str(tuning): _tuned(tuning) for tuning in TUNINGS}}


TUNINGS = (Tuning(), Tuning(bandwidth=3 << 20), Tuning(downtime_limit=0.25), Tuning(channels=4))


def _line(config: MachineConfig = USUAL, wiring: Wiring = WIRING, start: Start = START) -> list[str]:
    return command_line(["qemu"], config, wiring, start)


def _otherwise(usual: Sequence[str], other: Sequence[str]) -> Told:
    """The words that only one of two lines has."""
    one, two = Counter(usual), Counter(other)
    return {"more": [*(two - one).elements()], "less": [*(one - two).elements()]}


def _tuned(tuning: Tuning) -> Any:
    machine: Any = SimpleNamespace(qmp=Obedient())
    set_up(machine, tuning, pause=True)
    address = listen(machine, "::1")
    return {"of": asdict(tuning), "told": machine.qmp, "address": address}
