"""The versions that took part in a run, in short."""

from __future__ import annotations

import re
from pathlib import Path

from vfio_user.page.texts import json_of, text_of

_LINUX = re.compile(r"Linux version (\S+)")


def versions_of(folder: Path) -> dict[str, str]:
    """Of versions.json: of this project, QEMU, Python, the host's kernel, and of guests where they told."""
    known = json_of(text_of(folder / "versions.json"))
    if not isinstance(known, dict):
        return {}
    found = {name: str(known[name]) for name in ("vfio-user", "python", "kernel") if name in known}
    if isinstance(qemu := known.get("qemu"), dict) and isinstance(numbers := qemu.get("version"), list):
        found["QEMU"] = ".".join(map(str, numbers))
    for path in sorted(folder.glob("*.dmesg.log")):
        if told := _LINUX.search(text_of(path)):
            found[f"kernel of {path.name.removesuffix('.dmesg.log')}"] = told[1]
    return found
