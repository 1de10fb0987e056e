"""Bundles of two runs that differ in everything that a bundle has, and all that is told of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.bundle_kit import make_results
from tests.tellings import Told, said
from tests.tellings.traces import NAMED, timed
from tests.traced import UP, Written
from vfio_user.bundle import Outcome, Recipe, Secrets, Seen, pack
from vfio_user.bundle.model import Program, QemuFacts

_OURS = {"index.html", "commands.txt", "versions.json", "guest-dev0-edu.core.zst"}
MADE = "2026-11-30T06:00:00+00:00"
RECIPES: dict[str, dict[str, Any]] = {
    "first": {
        "command": "run",
        "arguments": ("--server", "./server --verbose {socket}", "--faults", "{inputs}/faults.yaml"),
        "cell": {"device": "edu", "interpose": False, "cpus": 2},
        "seeds": {"faults.yaml": 7},
        "devices": {"guest-dev0-edu": {"kind": "edu", "options": {"slow": True}}},
        "programs": (Program(name="guest", command=("qemu-system-x86_64", "-name", "a guest")),),
        "files": {"./server": "5" * 64},
        "qemu": QemuFacts(version="11.1.3", program="a" * 64, packages="b" * 64, name="default"),
        "accelerator": "tcg",
        "images": {"minimal": "1" * 64},
        "versions": {"vfio-user": "0.9", "sources": "c" * 64, "python": "3.11.7", "kernel": "6.18"},
    },
    "second": {
        "command": "run",
        "arguments": ("--qemu", "old", "--server", "./mended {socket}", "--qemu", "new"),
        "cell": {"device": "edu", "interpose": True, "cpus": 2},
        "seeds": {"faults.yaml": 8},
        "files": {"./server": "6" * 64},
        "qemu": QemuFacts(version="11.2.0", program="d" * 64, packages="e" * 64),
        "accelerator": "kvm",
        "images": {"minimal": "2" * 64, "debian": "3" * 64},
        "versions": {"vfio-user": "0.10", "sources": "f" * 64, "python": "3.11.7", "kernel": "6.19"},
    },
}
RECIPES["worse"] = RECIPES["first"]
RECIPES["elsewhere"] = {**RECIPES["first"], "cell": {"device": "edu", "interpose": True, "cpus": 4}, "images": {}}
OUTCOMES = {
    "first": Outcome(
        verdict="FAIL",
        cause="guest-dev0-edu was killed by SIGSEGV",
        saw=(Seen(what="found", ok=True), Seen(what="computes", ok=False, seen="5! is 121"), Seen(what="dma", ok=True)),
    ),
    "second": Outcome(
        verdict="ERROR",
        cause="no guest came up",
        saw=(Seen(what="found", ok=True), Seen(what="computes", ok=False, seen="5! is 122"), Seen(what="irq", ok=True)),
    ),
}
OUTCOMES["elsewhere"] = OUTCOMES["first"]
OUTCOMES["worse"] = Outcome(verdict="FAIL", cause="guest-dev0-edu was killed by SIGABRT", saw=OUTCOMES["first"].saw)


def told(folder: Path) -> Told:
    """Each shown and compared; sizes and digests of files are as they are, but of the page that is one of ours."""
    for name, recipe in RECIPES.items():
        results = make_results(folder / f"{name}-results", said=f"Edu is {name}")
        for file in ("evidence.json", "guest.odd"):
            (results / file).write_text(json.dumps({"first_cause": OUTCOMES[name].cause}))
        (results / "guest-dev0-edu.core").write_bytes(bytes(300_000)) if name == "second" else None
        with Written(results / "guest-dev0-edu.trace", NAMED) as trace:
            trace.write(UP, 1, interrupt=True)
            trace.read(UP, 3 if name == "second" else 1)
        timed(results / "guest-dev0-edu.trace")
        (folder / "faults.yaml").write_text("seed: 7\n")
        inputs = {"faults.yaml": folder / "faults.yaml"} if name != "second" else {}
        secrets = Secrets((), {})
        pack(
            results, folder / name, Recipe.model_validate(recipe), OUTCOMES[name], of=f"a {name} run", inputs=inputs,
            secrets=secrets,
        )  # fmt: skip
        manifest = folder / name / "bundle.json"
        manifest.write_text(re.sub(r'"made": ".*"', f'"made": "{MADE}"', manifest.read_text()))
    return {line: _as_always(said(folder, line)) for line in LINES}


LINES = (
    "vfio-user bundle show first --json",
    "vfio-user bundle show first",
    "vfio-user bundle show second",
    "vfio-user bundle diff first second --json",
    "vfio-user bundle diff second first",
    "vfio-user bundle diff first first --json",
    "vfio-user bundle diff first elsewhere",
    "vfio-user bundle diff first worse --json",
)


def _as_always(found: Told) -> Told:
    """What was told, with a name for the sizes and digests of files that have paths, or a page of ours, in them."""
    if isinstance(found["out"], dict) and "contents" in found["out"]:
        found["out"]["contents"] |= dict.fromkeys(_OURS & found["out"]["contents"].keys(), "SIZE AND DIGEST")
    elif isinstance(found["out"], list):
        found["out"] = [re.sub(rf"^\d+ \| ({'|'.join(_OURS)})$", r"SIZE | \1", line) for line in found["out"]]
    return found
