"""Client memory in place: memoryviews, and which ranges the device may be writing through them.

Nobody tells what is written through a view. So a range counts as written for as long as there is a writable view of
it, and once more when that has gone. A slice of a memoryview does not keep that one, but what both are views of: below
each writable view is an object of its own, whose end is told (of ctypes, whose buffers can be over others' memory and
have weak references).
"""

from __future__ import annotations

import weakref
from collections import deque
from functools import partial
from itertools import count
from types import TracebackType
from typing import Any

from userdev.memory.files import MemoryFile

Range = tuple[int, int]
"""An address, and a count of bytes."""


class Views(list[memoryview]):
    """Pieces of client memory in place, in order. As a context manager it releases them at the end, so that nothing
    keeps memory that the client takes back.
    """

    def __enter__(self) -> Views:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for piece in self:
            piece.release()


class WritableViews:
    """The writable views that there are of a client's memory. Of any thread."""

    def __init__(self) -> None:
        self.logged = False
        """Whether ranges whose views have gone are kept for `take_written`."""
        self._numbers = count()
        self._alive: dict[int, tuple[weakref.ref[Any], Range]] = {}
        self._gone: deque[Range] = deque()

    def __len__(self) -> int:
        """Those that have gone and wait for `take_written`."""
        return len(self._gone)

    def make(self, file: MemoryFile, start: int, size: int, iova: int) -> memoryview:
        """A writable view of a mapping's bytes from `start` on, which the client has at `iova`."""
        import ctypes  # only where there are such views: it takes some ms

        below = (ctypes.c_ubyte * size).from_buffer(file.map, start)
        number = next(self._numbers)
        self._alive[number] = weakref.ref(below, partial(self._end, number)), (iova, size)
        return memoryview(below).cast("B")

    def take_written(self) -> list[Range]:
        """What may have been written since the last call: what there is a view of, and was one of meanwhile."""
        found = [range for _, range in self._alive.copy().values()]  # first: one may go meanwhile, and counts as gone
        while self._gone:
            found.append(self._gone.popleft())
        return found

    def _end(self, number: int, _: object) -> None:
        """Called where the last reference goes, maybe by a garbage collection and under any lock: it takes none."""
        _, range = self._alive.pop(number)
        if self.logged:
            self._gone.append(range)
