"""Which shared libraries a program needs: the ELF dependency walk that the guest's dynamic loader will repeat."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO

from elftools.elf.dynamic import DynamicSegment
from elftools.elf.elffile import ELFFile
from elftools.elf.segments import InterpSegment

MAGIC = b"\x7fELF"
LIBRARY_FOLDERS = ("usr/lib/x86_64-linux-gnu", "usr/lib", "usr/lib64")  # where Debian's ld.so looks without a cache


@dataclass(frozen=True)
class Needs:
    """The libraries and interpreter that an ELF file asks the loader for."""

    interpreter: str  # "/lib64/ld-linux-x86-64.so.2"; "" for a library or a static program
    libraries: tuple[str, ...]  # DT_NEEDED, as "libc.so.6"
    search: tuple[str, ...]  # DT_RUNPATH and DT_RPATH, with $ORIGIN resolved, relative to the root

    def candidates(self, library: str) -> Iterator[str]:
        """The paths at which the loader looks for `library`, in its order."""
        return (posixpath.join(folder, library) for folder in (*self.search, *LIBRARY_FOLDERS))


def read_needs(path: str, data: bytes) -> Needs | None:
    """Read what the ELF file `data`, installed at `path`, needs; None when it is no ELF file."""
    if not data.startswith(MAGIC):
        return None
    elf = ELFFile(BytesIO(data))
    interpreter = ""
    libraries: list[str] = []
    search: list[str] = []
    for segment in elf.iter_segments():
        if isinstance(segment, InterpSegment):
            interpreter = segment.get_interp_name()
        elif isinstance(segment, DynamicSegment):
            libraries += _strings(segment, "DT_NEEDED")
            for run_path in (*_strings(segment, "DT_RPATH"), *_strings(segment, "DT_RUNPATH")):
                search += _folders(run_path, posixpath.dirname(path))
    return Needs(interpreter, tuple(libraries), tuple(search))


def _strings(segment: DynamicSegment, tag: str) -> list[str]:
    """The values of a tag such as DT_NEEDED, which pyelftools keeps as the attribute `needed`."""
    return [getattr(found, tag.removeprefix("DT_").lower()) for found in segment.iter_tags(tag)]


def _folders(run_path: str, origin: str) -> Iterator[str]:
    for folder in run_path.split(":"):
        resolved = folder.replace("${ORIGIN}", "$ORIGIN").replace("$ORIGIN", f"/{origin}")
        yield posixpath.normpath(resolved).lstrip("/")
