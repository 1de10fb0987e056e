"""What an interposer before a device server is to do, and its process, which the guest is connected to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import yaml

from userdev.errors import UserError
from vfio_user.harness.artifacts import write_text
from vfio_user.harness.family import Family
from vfio_user.harness.scratch import listen
from vfio_user.harness.site import Site
from vfio_user.interposer.control.client import InterposerControl

ScenarioSource = Path | Mapping[str, Any]
"""What is to happen to messages (docs/interposer.md, "Faults"): a file, or what such a file would hold."""


@dataclass(frozen=True)
class Interposition:
    """The work of an interposer beside forwarding; docs/interposer.md tells what each means."""

    faults: ScenarioSource | None = None
    keep_alive: bool = False
    """Start the server, and another whenever it is gone: the guest does not notice."""
    msg_timeout: float | None = None
    """Seconds that the client waits for a reply, where that is not QEMU's default: its x-msg-timeout. For what is kept
    alive: others answer when their server does."""
    capture_dma: bool = False
    capture_interrupts: bool = False

    @classmethod
    def of(cls, wanted: Interpose) -> Interposition | None:
        """Make one of what callers may say: whether at all, a scenario, or everything."""
        if isinstance(wanted, Interposition):
            return wanted
        if isinstance(wanted, bool):
            return cls() if wanted else None
        return cls(faults=wanted)

    def check(self, family: Family) -> None:
        """Refuse what the interposer of a protocol does not have, and a scenario that is wrong.

        Raises:
            UserError: something of that kind is wanted.
        """
        if isinstance(self.faults, Path):
            family.check_scenario(self.faults)
        wanted = {
            "keep_alive": self.keep_alive,
            "msg_timeout": self.msg_timeout is not None,
            "capture_dma": self.capture_dma,
            "capture_interrupts": self.capture_interrupts,
        }
        if any(wanted.values()) and not family.keeps_sessions:
            raise UserError(
                f"the interposer of {family.name} has no {', '.join(name for name, is_so in wanted.items() if is_so)}",
                hint="its front-end connects again, and brings what is to be kept: leave it out",
            )

    def options(self, folder: Path, name: str) -> list[str]:
        """For the command line; a scenario that is no file yet is written into `folder`, as evidence."""
        flags = {"--capture-dma": self.capture_dma, "--capture-interrupts": self.capture_interrupts}
        options = [flag for flag, wanted in flags.items() if wanted]
        if self.keep_alive and self.msg_timeout is not None:
            options += ["--msg-timeout", str(self.msg_timeout)]
        if isinstance(self.faults, Mapping):
            file = folder / f"{name}.faults.yaml"
            write_text(file, yaml.safe_dump(dict(self.faults), sort_keys=False))
            return [*options, "--faults", str(file)]
        return [*options, "--faults", str(self.faults)] if self.faults is not None else options


Interpose = bool | ScenarioSource | Interposition
"""How to ask for an interposer: True, a scenario, or an `Interposition`."""


class InterposerProcess:
    """An interposer: `path` is where a client connects, `control` its commands.

    It inherits sockets that listen already. `upstream` are the options that tell it of its server, whose protocol is
    `family`. With `trace` it records, and the trace brings along the names of `registers`.
    """

    def __init__(
        self,
        site: Site,
        name: str,
        family: Family,
        upstream: Sequence[str],
        interposition: Interposition,
        *,
        trace: bool = False,
        registers: str = "",
    ) -> None:
        """Start it.

        Raises:
            UserError: it does not start.
        """
        self.path = site.scratch.socket_path(f"{name}.front")
        self.control_path = site.scratch.socket_path(f"{name}.control")
        self.trace = _new_trace(site.folder, name) if trace else None
        with ExitStack() as inherited:
            fds = [inherited.enter_context(listen(path)).fileno() for path in (self.path, self.control_path)]
            front, control = fds
            argv = [site.host.python, "-P", "-m", family.package, "interpose", "--listen", f"fd:{front}", *upstream]
            argv += ["--control", f"fd:{control}"]
            if self.trace is not None:
                argv += ["--trace", self._traced_to(site, self.trace, inherited, fds)]
            if trace and registers and (site.host.shares_memory or not Path(registers).is_file()):
                argv += ["--registers", registers]
            argv += interposition.options(site.folder, name)
            self.child = site.start(f"{name}.interposer", argv, site.folder / f"{name}.interposer.log", fds)
        try:
            site.host.await_start(self.child)
            self.control = InterposerControl(self.control_path)
        except BaseException:
            self.child.stop()
            raise

    @staticmethod
    def _traced_to(site: Site, trace: Path, inherited: ExitStack, fds: list[int]) -> str:
        """The file as the interposer has to name it: on another host it writes to a descriptor that leads here."""
        if site.host.shares_memory:
            return str(trace)
        file = inherited.enter_context(trace.open("wb"))
        fds.append(file.fileno())
        return f"fd:{file.fileno()}"

    def stop(self) -> None:
        """End it, softly first; a second call does nothing."""
        self.control.close()
        self.child.stop()
        for path in (self.path, self.control_path):
            path.unlink(missing_ok=True)


def _new_trace(folder: Path, name: str) -> Path:
    """A file that is none yet: what an interposer before this one has recorded stays."""
    names = chain([f"{name}.trace"], (f"{name}.{number}.trace" for number in count(2)))
    return next(path for path in map(folder.joinpath, names) if not path.exists())
