"""What a run was made with, from what lies in its folder; and what this machine would make it with now."""

from __future__ import annotations

import itertools
import platform
import shlex
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from vfio_user.bundle.model import Program, QemuFacts
from vfio_user.harness.artifacts import installed_version
from vfio_user.harness.digests import file_digest, sources_digest
from vfio_user.harness.qemu import Qemu, manifest_name, program_of
from vfio_user.page.names import COMMANDS
from vfio_user.page.texts import json_of, lines_of, text_of


def recorded(folder: Path) -> dict[str, Any]:
    """The fields of a `Recipe` that a results folder knows: QEMU, images, devices, programs."""
    facts = _facts(folder / "versions.json")
    machines = facts.get("machines")
    accelerators = {str(machine.get("accelerator")) for machine in (machines or {}).values()}
    return {
        "qemu": _qemu(facts.get("qemu")),
        "images": {str(name): str(digest) for name, digest in (facts.get("images") or {}).items()},
        "devices": facts.get("devices") or {},
        "accelerator": ", ".join(sorted(accelerators)),
        "programs": tuple(_programs(folder / COMMANDS)),
        "versions": own_versions(),
    }


def own_versions() -> dict[str, str]:
    """Of vfio-user with the digest of its sources, Python and the kernel."""
    return {
        "vfio-user": installed_version(),
        "sources": sources_digest(),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }


def qemu_facts(qemu: Qemu) -> QemuFacts:
    """What is kept of a QEMU."""
    return QemuFacts(
        version=str(qemu.version),
        program=file_digest(program_of(qemu.argv)),
        packages=qemu.digest,
        name=manifest_name(qemu.argv),
    )


def named_files(arguments: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the files that the words of a command line name, within words that are command lines too.

    `module:Class` and FILE:CLASS.METHOD name the file of the module, or the file.
    """
    found = {}
    for argument in arguments:
        for word in _split(argument):
            for path in _meant(word):
                if path.is_file():
                    found[str(path)] = file_digest(path)
    return found


def scenario_seeds(paths: Iterable[Path]) -> dict[str, int]:
    """The seeds of scenarios of faults, by the names of their files: 0, its own, where one says none."""
    seeds = {}
    for path in paths:
        try:
            document = yaml.safe_load(path.read_text())
        except (OSError, ValueError, yaml.YAMLError):
            continue
        if isinstance(document, dict) and "rules" in document:
            seed = document.get("seed", 0)
            seeds[path.name] = seed if isinstance(seed, int) else 0
    return seeds


def _split(argument: str) -> list[str]:
    try:
        return shlex.split(argument)
    except ValueError:
        return argument.split()


def _meant(word: str) -> Iterator[Path]:
    yield Path(word)
    name, colon, _ = word.partition(":")
    if colon and name:
        yield Path(name)
        yield Path(name.replace(".", "/") + ".py")


def _facts(path: Path) -> Mapping[str, Any]:
    facts = json_of(text_of(path))
    return facts if isinstance(facts, dict) else {}


def _qemu(facts: Any) -> QemuFacts | None:
    if not isinstance(facts, dict):
        return None
    argv = [str(word) for word in facts.get("command", ())]
    return QemuFacts(
        version=".".join(map(str, facts.get("version", ()))),
        program=file_digest(program_of(argv)) if argv else "",
        packages=str(facts.get("digest", "")),
        name=manifest_name(argv),
    )


def _programs(path: Path) -> Iterator[Program]:
    """The command lines that a lab has written down: a comment with the name, and the line."""
    for name, command in itertools.pairwise(lines_of(path)):
        if name.startswith("# "):
            yield Program(name=name.removeprefix("# "), command=tuple(_split(command)))
