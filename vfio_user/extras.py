"""What an installation without the extras of pyproject.toml lacks, said in words."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from userdev.errors import UserError

_OURS = ("vfio_user", "vhost_user", "userdev", "userdev_servers")


@contextmanager
def needing(extra: str, what: str) -> Iterator[None]:
    """Run a block that imports what only the extra of this name brings; `what` it is for is said.

    Raises:
        UserError: a package of somebody else's is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise lacking(error, extra, what) from error


def lacking(error: ModuleNotFoundError, extra: str, what: str) -> Exception:
    """The error where `what` needs the extra of this name; `error` itself where a module of ours is not there."""
    package = (error.name or "").partition(".")[0]
    if not package or package in _OURS:
        return error
    return UserError(f"{what} needs more than is installed: there is no package {package!r}", hint=installing(extra))


def installing(extra: str) -> str:
    """How to get the extra of this name: of a checkout or wheel, as vfio-user is on no index."""
    return f"pip install '/path/to/vfio-user[{extra}]', its checkout or wheel; within: pip install -e '.[{extra}]'"
