"""What the harness has to know of a host: how a program is run there, and at which address other hosts reach it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


class Host(Protocol):
    """A place for QEMU, its servers and their interposers."""

    @property
    def name(self) -> str: ...

    @property
    def address(self) -> str:
        """The IP address at which the other hosts reach it."""

    def command(self, argv: Sequence[str]) -> list[str]:
        """The command that runs `argv` there."""


@dataclass(frozen=True)
class LocalHost:
    """This machine. Two of them differ by their loopback address alone."""

    name: str = "local"
    address: str = "127.0.0.1"

    def command(self, argv: Sequence[str]) -> list[str]:
        return list(argv)
