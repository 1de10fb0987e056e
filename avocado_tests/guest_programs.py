"""The programs of `programs/` in a guest: beside its own, where its agent runs them as forks of itself.

Under TCG a fork takes 25 ms, Python's start 370.
"""

from __future__ import annotations

from pathlib import Path

from vfio_user.harness import BootedGuest

_HERE = Path(__file__).parent / "programs"


def command_of(name: str) -> str:
    """What runs a program in a guest that was given it."""
    return f"/opt/vfio-user/{name}.py"


def put_program(guest: BootedGuest, name: str) -> None:
    """Give a guest a program; a reset takes it away again."""
    guest.put(_HERE / f"{name}.py", command_of(name), 0o755)
