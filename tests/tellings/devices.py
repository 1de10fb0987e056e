"""Servers in this process, as they are probed, and a recording played again to one that does otherwise."""

from __future__ import annotations

import re
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from tests.everything_device import Everything
from tests.flag import Flag
from tests.interposer_bench import request
from tests.tellings import Told, facts, said
from tests.tellings.traces import timed
from tests.traced import CAUSES, DOWN, REGISTERS, UP, Written
from tests.vhost.reverse import Reverse
from userdev_servers.edu import Edu
from vfio_user.cli.minimize import _text, _why_all_stays
from vfio_user.client import Client
from vfio_user.client.description import MigrationFacts, describe, render
from vfio_user.device import PciDevice
from vfio_user.interposer.replay import Minimized, load_script
from vfio_user.interposer.replay.outcome import Difference, What
from vfio_user.server import Server
from vfio_user.wire import Command
from vfio_user.wire import layouts as at
from vhost_user.backend import Server as BackEnd
from vhost_user.frontend import description as back_end
from vhost_user.memory import userfault

DEVICES: dict[str, type[PciDevice]] = {"everything": Everything, "edu": Edu}


def told(folder: Path) -> Told:
    """What there is to say of each, in JSON and for people."""
    found: Told = {}
    for name, kind in DEVICES.items():
        with closing(kind()) as device, Server(device, f"unix:{folder / name}"):
            for words in ("--json", "", "--register-map --json", "--register-map"):
                line = f"vfio-user probe {name} {words}".rstrip()
                found[line] = said(folder, line)
    who_may = patch.object(userfault, "is_allowed", lambda: True)  # it is offered to no ordinary user
    with who_may, BackEnd(Reverse(), f"unix:{folder / 'reverse'}"):
        for line in ("vhost-user probe reverse --json", "vhost-user probe reverse"):
            found[line] = said(folder, line)
    _recorded(folder / "trace")
    with closing(Flag()) as flag, Server(flag, f"unix:{folder / 'flag'}"):
        for words in ("--json", "--ignore causes --json", "--registers map.yaml"):
            (folder / "map.yaml").write_text("- {region: 0, offset: 0x24, name: status}\n")
            line = f"vfio-user replay trace --connect unix:flag --patience 1 {words}"
            found[line] = _without_seconds(said(folder, line, in_each_way=False))
    return {**found, **_odd(folder), "minimize": _minimized(folder)}


def _odd(folder: Path) -> Told:
    """Of devices that are odd, of either protocol."""
    address = f"unix:{folder / 'odd'}"
    with closing(Everything()) as device, Server(device, address), Client.connect(address) as client:
        seen = describe(client)
    wrong = replace(seen, problems=["one", "BAR0 is 3 bytes"], not_survived=["MSI-X at 7"], can_reset=False)
    others = {
        "wrong": replace(wrong, interrupt_pin=None, subsystem_vendor=0, class_name=""),
        "region": replace(seen, migration=MigrationFacts("region"), irqs=seen.irqs[:1], capabilities={}),
        "none": replace(seen, migration=MigrationFacts("none"), regions=seen.regions[:1], pci_capabilities=[]),
        "no log": replace(seen, migration=MigrationFacts("messages", ["stop_copy"], "STOP", dirty_logging=False)),
    }
    found: Told = {f"a device, {name}": facts(render(one)) for name, one in others.items()}
    nothing = back_end.Description((), (), None, None, None, ("no VERSION_1", "no REPLY_ACK 7"))
    for name, other in (("nothing", nothing), ("zeros", replace(nothing, queues=0, memory_slots=1, config="0000"))):
        found[f"a back-end, {name}"] = [back_end.as_json(other), back_end.render(other).splitlines()]
    return found


def _recorded(path: Path) -> None:
    """What a client did with a flag that is otherwise: it raises more, refuses, and has an interrupt too many."""
    version = b'{"capabilities":{"max_msg_fds":16}}\0'
    with Written(path, REGISTERS) as trace:
        trace.ask(request(Command.VERSION, at.VERSION.pack(0, 0, tail=version)), at.VERSION.pack(0, 1, tail=version))
        trace.write(UP, 0x5A)
        trace.read(CAUSES, 0x5A)
        trace.read(CAUSES, 0x5B)
        trace.write(DOWN, 0x5A)
        trace.read(CAUSES, 0x11)
        trace.read(CAUSES, None, errno=5)
        trace.read(0x7000_0000, 1)
        trace.read(CAUSES, None)
    timed(path)


def _without_seconds(found: Told) -> Told:
    """What a replay told, its duration named and not told."""
    if isinstance(found["out"], dict):
        assert 0 < found["out"]["seconds"] < 60
        found["out"]["seconds"] = "SECONDS"
    else:
        found["err"][0] = re.sub(r"\b\d+\.\d+\b", "SECONDS", found["err"][0])
    return found


def _minimized(folder: Path) -> Told:
    """What is told of searches that ended in each way."""
    otherwise = Difference(What.REPLY, 12, after=9, place="BAR0 causes", expected="0x5a", found="0x0")
    script, found = load_script(str(folder / "trace")), {}
    for name, ended, after, difference, check, confirmed in (
        ("whole", "minimal", 9, otherwise, None, True),
        ("shorter", "minimal", 3, otherwise, None, True),
        ("by a check", "minimal", 9, None, "./it-fails", True),
        ("in no time", "time is up", 8, otherwise, None, False),
        ("ended", "interrupted", 8, None, None, True),
    ):
        done = Minimized(script, 9, after, 17, ended, 2.3456, difference, confirmed)  # type: ignore[arg-type]
        text = _text(done, Path("trace.min"), _why_all_stays(done, None, check)).splitlines()
        found[name] = {"json": done.json(), "numbers": [re.findall(r"\d[\w.]*", line) for line in text]}
    return found
