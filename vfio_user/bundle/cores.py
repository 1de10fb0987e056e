"""A core as a bundle has it: without the environment of its process and other secrets, and compressed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import IO

import zstandard

from vfio_user.bundle.secrets import Secrets

CHUNK = 8 << 20
"""Bytes of a core that are looked at together."""
COMPRESSED = ".zst"


class TooLarge(Exception):
    """What was to be written is larger than there is room for."""


def pack_core(core: Path, target: Path, secrets: Secrets, room: int) -> None:
    """Write a core, which may be compressed already, to `target`, which has `room` bytes.

    Raises:
        TooLarge: it has not; there is no `target` then.
    """
    try:
        with core.open("rb") as source, target.open("wb") as output:
            _copy(source, output, secrets, room, compressed=core.suffix == COMPRESSED)
    except TooLarge:
        target.unlink()
        raise


def _copy(source: IO[bytes], output: IO[bytes], secrets: Secrets, room: int, *, compressed: bool) -> None:
    data = zstandard.ZstdDecompressor().stream_reader(source) if compressed else source
    with zstandard.ZstdCompressor(level=3).stream_writer(output, closefd=False) as packed:
        for chunk in _clean(data, secrets):
            packed.write(chunk)
            if output.tell() > room:
                raise TooLarge
    if output.tell() > room:  # the end of the frame is in it only now
        raise TooLarge


def _clean(source: IO[bytes] | zstandard.ZstdDecompressionReader, secrets: Secrets) -> Iterator[bytes]:
    """The source's bytes without secrets, those that lie across two reads included."""
    kept = b""
    overlap = secrets.longest
    while chunk := source.read(CHUNK):
        data = kept + chunk
        if data.count(0) != len(data):  # most of a core is holes
            data = secrets.data(data, memory=True)
        kept = data[-overlap:]
        yield data[:-overlap]
    yield kept
