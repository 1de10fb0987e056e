"""Images as a command line names them: FILE[:SIZE][:ro], or memory:SIZE."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex

from userdev.errors import UserError
from userdev_servers.block.backing import MEMORY, Backing
from userdev_servers.block.lock import InUse

log = logging.getLogger("vfio_user.servers.block")

SUFFIXES = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
SIZE = re.compile("[0-9]{1,19}")
MOST = (1 << 63) - 1
"""Bytes: off_t of Linux has no more."""
READ_ONLY = "ro"


def open_images(text: str, block_size: int) -> list[Backing]:
    """FILE[:SIZE][:ro], several with commas between them, of blocks of so many bytes; locked, each.

    One that another server has, which may hand it over in a migration, is not: `Backing.take_over` it before use.

    Raises:
        UserError: one of them cannot be had.
    """
    with ExitStack() as opened:
        backings: list[Backing] = []
        for item in text.split(","):
            backing = _open_image(item, block_size)
            opened.callback(backing.close)
            _check_blocks(backing, block_size)
            _lock(backing, backings)
            backings.append(backing)
        opened.pop_all()
    return backings


def _open_image(text: str, block_size: int) -> Backing:
    path, size, read_only = text, None, False
    if path.endswith(":" + READ_ONLY):
        path, read_only = path.removesuffix(":" + READ_ONLY), True
    name, colon, end = path.rpartition(":")
    if colon and end[:1].isdigit():
        path, size = name, parse_size(end)
    if size and size % block_size:
        raise UserError(f"image {path}: {size} bytes are no whole number of blocks of {block_size}")
    if not path:
        raise UserError("an image needs a file", hint="--image FILE[:SIZE][:ro], several with commas between them")
    if path == MEMORY:
        # The name goes into the serial number, and no two controllers in a guest may have the same.
        return Backing(Path(f"{MEMORY}-{token_hex(8)}"), size, read_only=read_only, in_memory=True)
    return Backing(Path(path), size, read_only=read_only)


def _check_blocks(backing: Backing, block_size: int) -> None:
    if backing.size < block_size:
        raise UserError(f"image {backing.path} has {backing.size} bytes, and no whole block of {block_size}")
    if rest := backing.size % block_size:
        log.warning("image %s: no guest sees its last %d bytes, which are no whole block", backing.path, rest)


def _lock(backing: Backing, others: Sequence[Backing]) -> None:
    try:
        backing.lock.take()
    except InUse as error:
        if any(map(backing.is_same_file, others)):
            raise UserError(f"image {backing.path} is given twice, to write it") from error
        if not error.hands_over:
            raise UserError(str(error.strerror), hint="an image is used by one program at a time") from error
        backing.is_anothers = True
        log.warning("%s: this server can take it over by a migration, and does nothing with it before", error.strerror)
    except OSError as error:
        raise UserError(f"image {backing.path} cannot be locked: {error.strerror}") from error


def parse_size(text: str) -> int:
    """Bytes from `64M`, `1G`, `512K` or a plain number.

    Raises:
        UserError: it is none of these.
    """
    digits = text.rstrip("KMGTkmgt")
    suffix = text[len(digits) :].upper()
    size = int(digits) * SUFFIXES.get(suffix, 0) if SIZE.fullmatch(digits) else 0
    if not 0 < size <= MOST:
        raise UserError(f"{text!r} is no size", hint="bytes, or with K, M, G or T behind them, below 8,388,608T")
    return size
