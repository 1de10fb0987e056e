"""An entropy source (virtio 1.3, "Entropy Device"): what the guest's /dev/hwrng reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from userdev.errors import UserError
from vhost_user.device import Chain, Queues, VhostDevice, queue

MOST = 64 << 10
"""Bytes for one request, which may ask for 4 GiB; a driver takes less than it has asked for."""


class Rng(VhostDevice):
    """Gives random bytes."""

    virtio_id = 4
    queues = Queues(1, size=256)

    def __init__(
        self, *, source: Annotated[Path, "the file whose bytes it gives, again and again"] = Path("/dev/urandom")
    ) -> None:
        """Open the file.

        Raises:
            UserError: it is empty, or is read once only, as a pipe is.
            OSError: it cannot be opened.
        """
        super().__init__()
        self._source = source.open("rb", buffering=0)
        again = self._source.seekable()  # before a byte is taken, which somebody else may want
        if not (again and self._source.read(1)):
            self._source.close()
            what = "has no bytes to give" if again else "cannot be read again from its beginning"
            raise UserError(f"{source} {what}", hint="leave --source out for the kernel's random bytes")
        self._source.seek(0)

    @queue(0)
    def fill(self, chain: Chain) -> int:
        """Give as many bytes as are asked for, up to MOST, and as the file still has."""
        wanted = min(chain.writable, MOST)
        data = self._source.read(wanted)
        if not data:
            self._source.seek(0)
            data = self._source.read(wanted)
        return chain.write(data or b"")

    def on_close(self) -> None:
        """Close the file."""
        self._source.close()
