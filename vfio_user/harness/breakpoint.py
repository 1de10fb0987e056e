"""A message at which a session stands still, so that a debugger can look; `vfio-user repro --break-at` sets one.

It is in the environment of what is run, so that every lab below has it: the server's interposer holds the message
(`hold` of a scenario), nobody's patience ends meanwhile, and whoever has set it is told of the processes.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from userdev.documents import read_text
from userdev.errors import about
from vfio_user.harness.interposition import Interposition
from vfio_user.harness.timeouts import SCALE_VARIABLE

VARIABLE = "VFIO_USER_BREAKPOINT"
_PATIENCE = 86400.0
"""Seconds that QEMU and interposers wait: somebody sits before a debugger."""
_SCALE = "1000"
_DEVICE = re.compile(r".+?-dev\d+(?=-)")


@dataclass(frozen=True)
class Breakpoint:
    """At which message of which server: `match` is a scenario's. `told` is a file of JSON lines, for who has set it."""

    server: str
    match: Mapping[str, Any]
    told: str

    @classmethod
    def of_environment(cls) -> Breakpoint | None:
        """The one that is set."""
        text = os.environ.get(VARIABLE)
        return cls(**json.loads(text)) if text else None

    def exported(self) -> dict[str, str]:
        """The environment by which it is set for processes that are started."""
        return {VARIABLE: json.dumps(dataclasses.asdict(self)), SCALE_VARIABLE: _SCALE}

    def within(self, wanted: Interposition | None) -> Interposition:
        """What an interposer is to do, and the hold."""
        wanted = wanted or Interposition()
        rule = {"name": "break", "match": dict(self.match), "act": "hold"}
        faults: dict[str, Any] = {}
        if isinstance(wanted.faults, Path):
            faults = yaml.safe_load(read_text(wanted.faults, "scenario"))
        elif wanted.faults is not None:
            faults = dict(wanted.faults)
        patience = _PATIENCE if wanted.msg_timeout is not None else None
        rules = [rule, *faults.get("rules", [])]
        return dataclasses.replace(wanted, faults={**faults, "rules": rules}, msg_timeout=patience)

    def is_at(self, server: str) -> bool:
        """Whether it is meant, by its name: the same device of the same guest, whatever program serves it now."""
        return role(server) == role(self.server)

    @property
    def properties(self) -> dict[str, object]:
        """Those of QEMU's vfio-user-pci that have it wait (hw/vfio-user/pci.c)."""
        return {"x-msg-timeout": int(_PATIENCE * 1000)}

    def tell(self, **facts: object) -> None:
        """Tell who has set it of a process or a server."""
        with about(self.told), open(self.told, "a") as told:
            told.write(json.dumps(facts, default=str) + "\n")


def role(server: str) -> str:
    """Which device of which guest a server's name is of, without its program's: guest-dev0 of guest-dev0-edu."""
    found = _DEVICE.match(server)
    return found[0] if found else server
