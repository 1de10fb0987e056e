"""Which files of ours hosts have by now."""

from __future__ import annotations

from pathlib import Path

from vfio_user.harness.hosts.host import Host


class Provided:
    """Has files on hosts, each once in the life of a lab unless it was written again."""

    def __init__(self) -> None:
        self._there: set[tuple[str, Path, int]] = set()
        """Host, file, and when that was written, in nanoseconds."""

    def __call__(self, host: Host, *paths: Path) -> None:
        """Have these on that host.

        Raises:
            UserError: the host cannot be reached, or takes them not.
        """
        wanted = {(host.name, path, path.stat().st_mtime_ns if path.exists() else 0) for path in paths}
        if missing := wanted - self._there:
            host.provide(*sorted(path for _, path, _ in missing))
            self._there |= missing
