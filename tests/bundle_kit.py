"""Results of a run that never was, for bundles of it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from vfio_user.bundle import Bundle, Outcome, Recipe, Secrets, Seen, pack

SERVER = "./server --verbose {socket}"
FAILED = Outcome(
    verdict="FAIL",
    cause="guest-dev0-edu was killed by SIGSEGV",
    saw=(Seen(what="found", ok=True), Seen(what="computes", ok=False, seen="5! is 121, not 120")),
)
RECIPE = Recipe(command="run", arguments=("--server", SERVER))


def make_results(folder: Path, *, said: str = "Edu is listening", server: str = "./server --verbose s.sock") -> Path:
    """What a run leaves: logs that all say the same beside what they say anyway."""
    folder.mkdir(parents=True, exist_ok=True)
    qemu = folder / "qemu-system-x86_64"
    qemu.write_text("a program")
    files: dict[str, str] = {
        "error.txt": f"guest failure: {said}\n",
        "evidence.json": json.dumps({"first_cause": FAILED.cause, "said": said}),
        "versions.json": json.dumps(
            {
                "images": {"minimal": "1" * 64},
                "machines": {"guest": {"accelerator": "tcg"}},
                "devices": {"guest-dev0-edu": {"command": SERVER, "protocol": "vfio-user"}},
                "qemu": {"version": [11, 1, 3], "digest": "2" * 64, "command": [str(qemu)]},
            }
        ),
        "commands.txt": f"# guest-dev0-edu\n{server}\n\n# guest\n{shlex.join([str(qemu), '-name', 'guest'])}\n\n",
        "index.html": f"<p>{said}</p>",
        "guest-dev0-edu.server.log": f"{said}\n",
        "timeline.json": json.dumps([{"what": said, "began": 0.0, "seconds": 1.0, "error": ""}]),
        "guest.qmp.log": json.dumps({"execute": "qom-set", "arguments": {"said": said}}) + "\n",
        "guest.trace.log": f"vfio_user_recv {said}\n" * 100,
    }
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def make_bundle(folder: Path, **given: Any) -> Bundle:
    """A bundle at `folder` of such results; `given` are further arguments of `pack`."""
    results = make_results(folder.with_name(f"{folder.name}-results"))
    wanted: dict[str, Any] = {"recipe": RECIPE, "outcome": FAILED, "of": "vfio-user run", "secrets": Secrets((), {})}
    wanted |= given
    return pack(results, folder, wanted.pop("recipe"), wanted.pop("outcome"), **wanted)
