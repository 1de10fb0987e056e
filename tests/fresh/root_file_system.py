"""What a new Debian has on its disk, and Python: made by mmdebstrap from the machine's mirror, kept in the cache."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from userdev.errors import UserError
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive, Mirror, Progress, find_mirror, network_settings, quiet

PACKAGES = ("python3",)
"""What there is beside the packages without which Debian is none (those that are essential, and apt)."""

MAX_AGE = 7 * 86400.0  # seconds; after that the archive has newer packages
_DEADLINE = 1800.0  # seconds

# The archive's keys on this machine may be older than the suite: those that the suite itself brings are as good as the
# mirror that apt of this machine trusts.
_TOOLS_SUITE = "bookworm"
_TOOLS = "mmdebstrap"


def root_file_system(suite: str, *, progress: Progress = quiet) -> Path:
    """The folder that holds the root file system of `suite`: made anew when there is none or it is a week old.

    Nothing may be changed in it: a run copies it. Raises `UserError`, also where this user may not make one.
    """
    path = cache_dir() / "fresh" / suite
    stamp = path / "etc/fresh-machine"
    with locked(f"fresh-{suite}"):
        if stamp.exists() and time.time() - stamp.stat().st_mtime < MAX_AGE:
            return path
        if os.getuid() != 0:
            raise UserError("a root file system can be made by root only", hint="run scripts/fresh as root")
        program = _mmdebstrap(progress)
        progress(f"making a new Debian {suite}")
        path.parent.mkdir(exist_ok=True)
        with publish(path) as making:
            _make(program, suite, making)
            (making / "etc/fresh-machine").write_text(f"Debian {suite}, with {', '.join(PACKAGES)}\n")
            making.chmod(0o755)
    return path


def _mmdebstrap(progress: Progress) -> Path:
    """The folder that mmdebstrap and the Perl modules that it needs are unpacked in."""
    path = cache_dir() / "fresh" / _TOOLS
    if not (path / "usr/bin" / _TOOLS).exists():
        archive = DebianArchive((_TOOLS_SUITE,))
        debs = archive.fetch((_TOOLS,), progress=progress)
        path.parent.mkdir(exist_ok=True)
        with publish(path) as making:
            archive.unpack([deb for deb in debs if deb.name.startswith((_TOOLS, "perl-modules"))], making)
    return path


def _make(tools: Path, suite: str, target: Path) -> None:
    settings = target.parent / f".apt-{suite}.conf"
    settings.write_text(network_settings())
    modules = ":".join(str(folder) for folder in tools.glob("usr/share/perl/5*"))
    command = ["perl", str(tools / "usr/bin" / _TOOLS), "--mode=root", "--variant=minbase", "--format=directory"]
    command += [f"--include={','.join(PACKAGES)}", f"--aptopt={settings}", suite, str(target), *_source(suite)]
    environment = {**os.environ, "PERL5LIB": modules, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_DEADLINE
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"mmdebstrap made no Debian {suite}: {error}") from error
    finally:
        settings.unlink()
    if done.returncode != 0:
        said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["it did not say why"]
        raise UserError(f"mmdebstrap made no Debian {suite}: {said[0]}", hint="\n".join(said[1:]))


def _source(suite: str) -> Sequence[str]:
    mirror: Mirror = find_mirror()
    signed = f"[signed-by={mirror.signed_by}] " if mirror.signed_by.startswith("/") else ""
    return [f"deb {signed}{mirror.uri} {suite} main"]
