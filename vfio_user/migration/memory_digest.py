"""The digest of a memory, of which what was hashed is not hashed again as long as it stays as it was."""

from __future__ import annotations

from vfio_user.migration.memory import PIECE, Memory, is_zero, pieces_with_data

STEP = 16 << 20
"""Bytes of memory between two places that hashing can begin at again."""


class MemoryDigest:
    """SHA-256 of a memory's size and of what is not zero in it, piece by piece; holes are not looked at."""

    def __init__(self, memory: Memory) -> None:
        import hashlib  # a device that nobody migrates need not wait for OpenSSL

        self._memory = memory
        self._hashed = 0
        """All before is in the hash."""
        self._sha = hashlib.sha256(b"%d" % memory.size)
        self._earlier = [(0, self._sha.copy())]
        """How it was at some places before, ascending."""

    def take(self, at: int, piece: bytes) -> None:
        """Hash a piece that somebody has in hand. There are zeros, or nothing, between the one before and this one."""
        if self._hashed - self._earlier[-1][0] >= STEP:
            self._earlier.append((self._hashed, self._sha.copy()))
        if not is_zero(piece):
            self._sha.update(b"@%d:" % at)
            self._sha.update(piece)
        self._hashed = at + len(piece)

    def changed(self, at: int) -> None:
        """Forget what was hashed of the piece at `at`, and of what follows it."""
        if at < self._hashed:
            while self._earlier[-1][0] > at:
                self._earlier.pop()
            self._hashed, sha = self._earlier[-1]
            self._sha = sha.copy()

    def finish(self) -> str:
        """Hash what is left; the digest, in hex."""
        for at in pieces_with_data(self._memory, since=self._hashed):
            self.take(at, self._memory.read(at, PIECE))
        return self._sha.hexdigest()
