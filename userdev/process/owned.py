"""A descriptor that an object owns."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self


class OwnedDescriptor:
    """Closes `fd` once, at the end of a block or by `close`; then it is -1. A context manager."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def close(self) -> None:
        """Let go of it; a second call does nothing."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
