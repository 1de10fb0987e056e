"""The cells of a night: a combination of a plan's values each, with the id that it has in every night."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from vfio_user.harness.cell import Cell as GuestCell
from vfio_user.harness.command_line import HardwareOptions
from vfio_user.harness.family import devices
from vfio_user.nightly.matrix import Drawn, Row
from vfio_user.nightly.plan import SERVER, USUALLY, Plan
from vfio_user.nightly.servers import Server


@dataclass(frozen=True)
class NightCell:
    """A cell: `values` by axis, the server that `server` names, and the plan's group that has it."""

    group: str
    values: Row
    server: Server
    is_first: bool = False
    """Of its group: tests that depend on no cell are run in this one."""

    @property
    def id(self) -> str:
        """The server's name, and all that is not as usual: edu+cpus=2+iommu."""
        return "+".join((str(self.values[SERVER]), *self._unusual()))

    @property
    def qemu(self) -> str:
        """The QEMU's name in the plan."""
        return str(self.values["qemu"])

    @property
    def parameters(self) -> dict[str, str]:
        """All that it is, for people and programs."""
        shown = {axis: _shown(value) for axis, value in self.values.items()}
        return {"protocol": self.server.protocol, "device": self.server.kind, **shown, "dialect": self.dialect}

    @property
    def dialect(self) -> str:
        """The dialect of vfio-user that is spoken; "" for the other protocol."""
        if self.server.protocol != "vfio-user":
            return ""
        return str(self.values["dialect"]) if self.server.is_ours else self.server.dialect

    def guest_cell(self, qemu: str, device: str) -> GuestCell:
        """What the harness is told: the QEMU as it takes it, the device's text."""
        hardware: HardwareOptions = {}
        if self.values["cpus"] != USUALLY["cpus"]:
            hardware["cpus"] = int(self.values["cpus"])
        if self.values["memory"] != USUALLY["memory"]:
            hardware["memory"] = int(self.values["memory"])
        if self.values["iommu"]:
            hardware["iommu"] = True
        chosen = self.server.is_ours and self.values["dialect"] != USUALLY["dialect"]
        return GuestCell(
            qemu=qemu,
            interpose=bool(self.values["interpose"]),
            hardware=hardware,
            dialect=str(self.values["dialect"]) if chosen else "",
            device=device,
            servers={self.stands_for: device} if self.stands_for else {},
        )

    @property
    def stands_for(self) -> str:
        """The device of ours that another's server serves too, "" for none: tests of it have that in our place."""
        replaces = not self.server.is_ours and self.server.protocol == "vfio-user" and self.server.kind in devices()
        return self.server.kind if replaces else ""

    def _unusual(self) -> Iterator[str]:
        for axis, usual in USUALLY.items():
            value = self.values[axis]
            if value != usual:
                yield axis if value is True else f"{axis}={_shown(value)}"


def cells_of(plan: Plan, drawn: Drawn) -> Mapping[str, list[NightCell]]:
    """The cells of every group."""
    return {
        group: [
            NightCell(group, row, plan.servers[str(row[SERVER])], is_first=number == 0)
            for number, row in enumerate(rows)
        ]
        for group, rows in drawn.rows.items()
    }


def _shown(value: str | int | bool) -> str:
    return ("on" if value else "off") if isinstance(value, bool) else str(value)
