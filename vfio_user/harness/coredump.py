"""Core files of programs that crashed: finding the one of a process, and a backtrace from it.

Where a core goes is /proc/sys/kernel/core_pattern's affair (core(5)): a file, which is looked for here, or a program,
which is named instead. Which process a core is of says the note NT_PRPSINFO in it, since most names do not.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from userdev.errors import UserError
from userdev.process import Child
from vfio_user.harness.toolchain import debugger

_PATTERN = Path("/proc/sys/kernel/core_pattern")
_BACKTRACE_SECONDS = 60.0


def find_core(pid: int, began: float, folder: Path) -> Path | None:
    """The core of process `pid`, which began at `began` (seconds since 1970) and had `folder` as working directory.

    An older one is of a process before it that had the same number.
    """
    for path in _candidates(_PATTERN.read_text().strip(), folder):
        with suppress(FileNotFoundError):  # another's, who has just taken it
            if path.stat().st_mtime >= began and process_of(path) == pid:
                return path
    return None


def take(child: Child) -> Path | None:
    """`keep` the core of a child that crashed, beside its log; None where there is none."""
    found = find_core(child.pid, child.not_before, child.folder)
    return keep(found, child.core_path) if found is not None else None


def who_takes_cores() -> str:
    """The program that this machine gives cores to instead of a file; "" where it writes files."""
    pattern = _PATTERN.read_text().strip()
    return pattern[1:].strip() if pattern.startswith("|") else ""


def process_of(core: Path) -> int | None:
    """The process that a core is of; None for what is no core."""
    for note in _notes(core, "NT_PRPSINFO"):
        return int(note["pr_pid"])
    return None


def backtrace(core: Path) -> str:
    """All threads' stacks as gdb sees them, or why there are none.

    gdb is told where each file was mapped: it cannot find out for a program that was started by its own loader, as a
    private QEMU is.
    """
    try:
        gdb, environment = _gdb()
    except UserError as error:
        return f"(no backtrace, as there is no gdb: {error})"
    script = ["set pagination off", "set confirm off", f"core-file {core}"]
    script += [f"add-symbol-file {path} -o {base:#x}" for path, base in mapped_files(core).items()]
    script += ["echo \\n", "thread apply all -ascending backtrace"]  # the first is the one that crashed
    words = [word for line in script for word in ("-ex", line)]
    try:
        done = subprocess.run(
            [gdb, "--batch", "--nx", *words],
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_BACKTRACE_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"(gdb took longer than {_BACKTRACE_SECONDS:g} s)"
    threads = done.stdout.find("\nThread ")
    said = (line for line in done.stdout[threads:].strip().splitlines() if not line.startswith("warning:"))
    return "\n".join(said) if threads >= 0 else f"{done.stdout}\n{done.stderr}"


def _gdb() -> tuple[str, dict[str, str]]:
    """The debugger and its environment: our own, or this machine's where none can be fetched.

    Raises:
        UserError: there is none, and none can be fetched.
    """
    try:
        ours = debugger()
    except UserError:
        if (theirs := shutil.which("gdb")) is None:
            raise
        return theirs, dict(os.environ)
    return str(ours.program), ours.environment()


def mapped_files(core: Path) -> dict[str, int]:
    """The programs and libraries that were mapped, each with the address of its beginning."""
    found: dict[str, int] = {}
    for note in _notes(core, "NT_FILE"):
        for area, name in zip(note["Elf_Nt_File_Entry"], note["filename"], strict=True):
            path = os.fsdecode(name)
            if area["page_offset"] == 0 and path not in found and _is_elf(path):
                found[path] = area["vm_start"]
    return found


def running_files(pid: int) -> dict[str, int]:
    """The same of a process that runs (/proc/PID/maps).

    Raises:
        OSError: it has ended.
    """
    found: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
        area, _, offset, _, _, *rest = line.split(maxsplit=5)  # proc(5)
        path = rest[0] if rest else ""
        if int(offset, 16) == 0 and path.startswith("/") and path not in found and _is_elf(path):
            found[path] = int(area.partition("-")[0], 16)
    return found


def _notes(core: Path, kind: str) -> list[Any]:
    from elftools.elf.elffile import ELFFile  # cores are rare, and this takes long
    from elftools.elf.segments import NoteSegment

    try:
        with core.open("rb") as file:
            segments = [segment for segment in ELFFile(file).iter_segments() if isinstance(segment, NoteSegment)]
            return [note["n_desc"] for segment in segments for note in segment.iter_notes() if note["n_type"] == kind]
    except Exception:  # another file, or one that is being written: pyelftools raises many kinds
        return []


def _is_elf(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return file.read(4) == b"\x7fELF"
    except OSError:
        return False


def keep(core: Path, target: Path) -> Path:
    """Move a core to `target`; from another file system compressed, for it is mostly holes. Where it is now."""
    try:
        core.rename(target)
    except OSError:
        import zstandard

        target = target.with_name(f"{target.name}.zst")
        with core.open("rb") as source, target.open("wb") as output:
            zstandard.ZstdCompressor(level=1, threads=-1).copy_stream(source, output)
        core.unlink()
    return target


def _candidates(pattern: str, folder: Path) -> Iterator[Path]:
    if pattern.startswith("|"):
        return
    name = re.sub(r"%.", "*", pattern)
    base = folder if not name.startswith("/") else Path("/")
    for form in (name, f"{name}.*"):  # core_uses_pid adds .PID
        yield from (path for path in base.glob(form.lstrip("/")) if path.is_file())
