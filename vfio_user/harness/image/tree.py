"""A guest's file system in memory: what is where, before it becomes an archive.

Paths are relative to the guest's root and in the merged-/usr form (`usr/bin/x`, never `bin/x`), as Debian ships them
since trixie; a guest's root has `bin`, `sbin`, `lib` and `lib64` as links.
"""

from __future__ import annotations

import hashlib
import io
import posixpath
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MERGED = ("bin", "sbin", "lib", "lib64")


@dataclass(frozen=True)
class Directory:
    """A folder with its permissions."""

    mode: int = 0o755


@dataclass(frozen=True)
class Symlink:
    """A symbolic link; `target` is as readlink(2) gives it."""

    target: str


@dataclass(frozen=True)
class Node:
    """A character device."""

    mode: int
    major: int
    minor: int


@dataclass(frozen=True)
class File:
    """A file whose content is at hand, or read from `content` when it is wanted."""

    mode: int
    content: bytes | Path

    def open(self) -> io.BytesIO | io.BufferedReader:
        """The content, to be read from its beginning.

        Raises:
            OSError: it is a file of the host's that cannot be read.
        """
        return io.BytesIO(self.content) if isinstance(self.content, bytes) else self.content.open("rb")

    def read(self) -> bytes:
        """The content, whole.

        Raises:
            OSError: as `open`.
        """
        with self.open() as content:
            return content.read()

    def __str__(self) -> str:
        """The mode and the content's digest: what tells it from another."""
        with self.open() as content:
            return f"file {self.mode:o} {hashlib.file_digest(content, 'sha256').hexdigest()}"


Entry = Directory | Symlink | Node | File


class Tree:
    """Entries by path. Parents come into being by themselves; what is added last wins."""

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[tuple[str, Entry]]:
        """Path and entry, parents before children, in an order that depends on nothing but the paths."""
        return iter(sorted(self._entries.items(), key=lambda item: item[0].split("/")))

    def __contains__(self, path: str) -> bool:
        return merged(path) in self._entries

    def __getitem__(self, path: str) -> Entry:
        return self._entries[merged(path)]

    def get(self, path: str) -> Entry | None:
        """The entry at a path; None where there is none."""
        return self._entries.get(merged(path))

    def add(self, path: str, entry: Entry) -> None:
        """Add `entry` at `path`, relative or absolute, and the directories above it that are not there yet."""
        path = merged(path)
        parent = posixpath.dirname(path)
        while parent:
            self._entries.setdefault(parent, Directory())
            parent = posixpath.dirname(parent)
        self._entries[path] = entry

    def add_content(self, path: str, content: bytes) -> None:
        """Add a file, executable when it is a program: whatever became of its mode on the way through packaging."""
        self.add(path, File(0o755 if is_program(content) else 0o644, content))


def is_program(content: bytes) -> bool:
    """Whether the kernel could run it: a script that names its interpreter, or an ELF file."""
    return content.startswith((b"#!", b"\x7fELF"))


def merged(path: str) -> str:
    """The one name of `path` in a merged-/usr root: `/lib64/ld.so` is `usr/lib64/ld.so`."""
    path = posixpath.normpath("/" + path.lstrip("/")).lstrip("/")  # nothing is above the root
    return f"usr/{path}" if path.split("/", 1)[0] in MERGED and "/" in path else path
