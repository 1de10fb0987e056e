"""Debian packages without Debian's root: a private apt that downloads and verifies, and never touches the system.

The mirror, its keys and the way to it (proxies, certificates) are the machine's own, taken from its apt
configuration; the suites are ours. apt checks the signature of the index and the digest of every package, and renames
a package to its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from userdev.counted import counted
from userdev.errors import FULL, UserError
from vfio_user.harness.cache import cache_dir, disk_full, locked

INDEX_SECONDS = 86400.0  # seconds for which a downloaded index is good enough
APT_SECONDS = 1800.0  # seconds for one run of apt; a stalled connection ends by apt's own time-out long before
REPORT_SECONDS = 2.0  # seconds between two percentages of a download
DEFAULT_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")

Progress = Callable[[str], None]
_Fetched = TypeVar("_Fetched")


def quiet(_message: str) -> None:
    """The progress of a caller that shows none."""


@dataclass(frozen=True)
class Mirror:
    """Where the machine gets Debian from."""

    uri: str
    signed_by: str = ""  # as in sources.list(5): paths, fingerprints or a whole key; "" for apt's trusted keys


@dataclass(frozen=True)
class _Download:
    """One line of `apt-get --print-uris`."""

    name: str
    size: int


# what apt says when the archive has moved on since the index was read
_STALE = (
    "Unable to locate package",
    "Unable to find a source package",
    "no installation candidate",
    "404 ",
    "Failed to stat",
    "Hash Sum mismatch",
    "unexpected size",
)


class AptError(UserError):
    """apt refused. `said` is its own words; `stale` when a newer index may cure it."""

    def __init__(self, what: str, said: str, *, hint: str = "") -> None:
        super().__init__(f"{what}: {_complaint(said)}", hint=hint)
        self.said = said
        self.stale = any(text in said for text in _STALE)


class DebianArchive:
    """Packages of some suites of the machine's Debian mirror, downloaded without root into the cache.

    Archives of the same suites share one index, whatever packages they fetch. The newest version in any of the
    suites wins, so naming a backports suite is enough to get its packages.
    """

    def __init__(
        self, suites: Sequence[str], components: Sequence[str] = ("main",), *, mirror: Mirror | None = None
    ) -> None:
        self.suites = tuple(suites)
        self.components = tuple(components)
        self.mirror = mirror  # None: the machine's

    def fetch(self, packages: Sequence[str], *, progress: Progress = quiet) -> list[Path]:
        """Download `packages` and what they depend on (no recommendations); the .deb files, sorted by name.

        What the cache has is not downloaded again, and without a network the last index serves.

        Raises:
            UserError: there is no apt, no Debian mirror, no such package, no network or no space.
        """
        return self._with_good_index("deb", lambda apt: apt.download(packages, progress), progress)

    def fetch_source(self, package: str, into: Path, *, progress: Progress = quiet) -> Path:
        """Download the upstream archive (the `.orig.tar`) of a source package into the folder `into`.

        apt checks it against the signed index. The cache keeps the index only.

        Raises:
            UserError: there is no apt, no Debian mirror, no such package, no network or no space.
        """
        return self._with_good_index("deb-src", lambda apt: apt.download_source(package, into, progress), progress)

    def _with_good_index(self, types: str, job: Callable[[_PrivateApt], _Fetched], progress: Progress) -> _Fetched:
        """Do `job`, and once more with a newer index where the archive has moved on since."""
        require_apt()
        with locked(f"apt-{'+'.join(self.suites)}"):
            apt = _PrivateApt(self.mirror or find_mirror(), self.suites, self.components, types)
            refreshed = apt.refresh(progress)
            try:
                return job(apt)
            except AptError as error:
                if refreshed or not error.stale:
                    raise
            apt.refresh(progress, force=True)
            return job(apt)

    def unpack(self, debs: Sequence[Path], into: Path) -> None:
        """Unpack the files of `debs` below `into`; no maintainer script runs.

        Raises:
            UserError: one cannot be unpacked.
        """

        def extract(deb: Path) -> None:
            ran = _run(["dpkg-deb", "--extract", str(deb), str(into)])
            if "No space left" in ran.stderr or "quota exceeded" in ran.stderr:
                raise disk_full(into.parent)
            if ran.returncode != 0:
                raise UserError(f"{deb.name} does not unpack: {ran.stderr.strip()}", hint=f"delete {deb} and try again")

        into.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
            list(pool.map(extract, debs))


def has_apt() -> bool:
    """Whether this machine has Debian's package tools."""
    return all(shutil.which(tool) for tool in ("apt-get", "apt-config", "dpkg-deb", "setpriv"))


def require_apt() -> None:
    """Raise UserError on a machine without Debian's package tools."""
    if not has_apt():
        raise UserError("this machine has no apt, so that Debian's packages cannot be fetched")


def own_suite() -> str:
    """The suite whose packages are for this machine's C library: the codename of its system.

    Raises:
        UserError: it has none, as one that is no relative of Debian's.
    """
    about: dict[str, str] = {}
    with suppress(OSError):
        about = platform.freedesktop_os_release()
    if name := about.get("VERSION_CODENAME", ""):
        return name
    what = about.get("PRETTY_NAME") or "this machine's system"
    raise UserError(f"{what} has no codename of Debian's, so that no packages for it can be fetched")


def find_mirror() -> Mirror:
    """The machine's Debian mirror: the source whose Release says that it is Debian's.

    A machine whose apt lists are empty (a container, for instance) does not know the origin of its sources yet; then
    the key that signs a source, or its path, tells.

    Raises:
        UserError: there is none.
    """
    list_targets = ["apt-get", "indextargets", "--format", _TARGET_COLUMNS, "Created-By: Packages"]
    known = _run(list_targets)  # sources whose Release file apt has
    every = _run([*list_targets, "--no-release-info"])
    for uri, signed_by in choose_sources(known.stdout + every.stdout, read_signed_by):
        return Mirror(uri, signed_by or _default_keyring())
    for asked in (every, known):
        if asked.returncode != 0:
            raise AptError("apt on this machine does not tell its sources", asked.stderr)
    raise UserError(
        "apt on this machine has no Debian mirror among its sources",
        hint="add one to /etc/apt/sources.list.d (sources.list(5) shows how)",
    )


_TARGET_COLUMNS = "$(ORIGIN)|$(LABEL)|$(SOURCESENTRY)|$(REPO_URI)"


def choose_sources(targets: str, signed_by: Callable[[str], str]) -> Iterator[tuple[str, str]]:
    """URI and Signed-By of the sources that carry Debian proper, the surest first.

    `targets` is what `apt-get indextargets` prints, which leaves `$(ORIGIN)` as it is without a Release file.
    """
    rows = [line.split("|", 3) for line in targets.splitlines() if line.count("|") >= 3]
    for origin, label, entry, uri in rows:
        if (origin, label) == ("Debian", "Debian"):
            yield uri, signed_by(entry)
    for origin, _label, entry, uri in rows:
        if origin == "$(ORIGIN)" and "security" not in uri:
            key = signed_by(entry)
            if "debian-archive" in key or (not key and uri.rstrip("/").endswith("/debian")):
                yield uri, key


def read_signed_by(entry: str) -> str:
    """The Signed-By of a source, `entry` being "FILE:NUMBER" of a stanza (.sources) or of a line (.list)."""
    path, _, number = entry.rpartition(":")
    find = signed_by_of_stanza if path.endswith(".sources") else signed_by_of_line
    try:
        return find(Path(path).read_text(), int(number))
    except (OSError, ValueError, IndexError):
        return ""


def signed_by_of_stanza(text: str, number: int) -> str:
    """Signed-By of the `number`th stanza (from 1) of a deb822 file; a key in the file keeps its lines."""
    from debian.deb822 import Deb822  # 30 ms: only who looks for a mirror waits for it

    stanzas = list(Deb822.iter_paragraphs(text, use_apt_pkg=False))
    return str(stanzas[number - 1].get("Signed-By", ""))


def signed_by_of_line(text: str, number: int) -> str:
    """Signed-By of line `number` (from 1) of a one-line-style file."""
    option = re.match(r"\s*deb\s+\[[^]]*\bsigned-by=([^\s\]]+)", text.splitlines()[number - 1])
    return option[1].replace(",", " ") if option else ""


# backports and experimental ask not to be used unless told to (NotAutomatic): they are told
_PIN = """\
Package: *
Pin: release n={suite}
Pin-Priority: 500

Package: *
Pin: release a={suite}
Pin-Priority: 500
"""


class _PrivateApt:
    """An apt whose configuration, index, archive and (empty) list of installed packages live in the cache."""

    def __init__(self, mirror: Mirror, suites: Sequence[str], components: Sequence[str], types: str) -> None:
        """`types` as in sources.list(5): "deb" for packages, "deb-src" for their sources."""
        key = hashlib.sha256(repr((mirror, components)).encode()).hexdigest()[:8]
        self.root = cache_dir() / "apt" / f"{'+'.join(suites)}-{key}{types.removeprefix('deb')}"
        self.archives = self.root / "archives"
        self.index_stamp = self.root / "index-is-whole"
        self._write(mirror, suites, components, types)

    def refresh(self, progress: Progress, *, force: bool = False) -> bool:
        """Download the index when it is missing, old or `force`; True when that was done."""
        have = self.index_stamp.exists()
        # one of tomorrow was read before the clock was set back, nobody knows when
        if have and not force and 0 <= time.time() - self.index_stamp.stat().st_mtime < INDEX_SECONDS:
            return False
        progress("reading Debian's package index")
        try:
            self._apt_get(["update", "--error-on=any"], "Debian's package index cannot be read", progress)
        except AptError as error:
            if not have or force:
                raise
            progress(f"using the package index of {time.ctime(self.index_stamp.stat().st_mtime)}: {error}")
            return False
        self.index_stamp.touch()
        return True

    def download(self, packages: Sequence[str], progress: Progress) -> list[Path]:
        install = ["install", "--yes", "--no-install-recommends", *packages]
        wanted = list(self._resolve(install))
        missing = [deb for deb in wanted if not self._has(deb)]
        if missing:
            size = sum(deb.size for deb in missing) / 1e6
            progress(f"downloading {counted(len(missing), 'package')}, {size:.0f} MB")
            self._apt_get([*install, "--download-only"], f"cannot download {' '.join(packages)}", progress)
        return sorted(self.archives / deb.name for deb in wanted)

    def download_source(self, package: str, into: Path, progress: Progress) -> Path:
        progress(f"downloading the source of {package}")
        source = ["source", "--download-only", "--tar-only", "-o", "APT::Get::Only-Source=1", package]
        self._apt_get(source, f"cannot download the source of {package}", progress, folder=into)
        return next(path for path in sorted(into.iterdir()) if ".orig.tar" in path.name)

    def _resolve(self, install: Sequence[str]) -> Iterator[_Download]:
        """What `install` would download into an empty archive."""
        nothing = f"Dir::Cache::archives={self.root / 'no-archives'}/"
        said = self._apt_get([*install, "--print-uris", "-o", nothing], "Debian's archive cannot provide this")
        for line in said.splitlines():
            if found := re.match(r"'[^']+' (\S+\.deb) (\d+)", line):
                yield _Download(found[1], int(found[2]))

    def _has(self, deb: _Download) -> bool:
        path = self.archives / deb.name
        return path.exists() and path.stat().st_size == deb.size

    def _apt_get(
        self, arguments: Sequence[str], purpose: str, progress: Progress = quiet, *, folder: Path | None = None
    ) -> str:
        command = ["apt-get", "-qq", "-o", "APT::Status-Fd=1", *arguments]
        ran = _run(command, environment={"APT_CONFIG": str(self.root / "apt.conf")}, progress=progress, folder=folder)
        if ran.returncode == 0:
            return ran.stdout
        if "No space left" in ran.stderr or "enough free space" in ran.stderr:
            raise disk_full(self.archives)
        raise AptError(purpose, ran.stderr, hint=_hint(ran.stderr))

    def _write(self, mirror: Mirror, suites: Sequence[str], components: Sequence[str], types: str) -> None:
        for folder in ("sources.d", "nothing.d", "lists/partial", "archives/partial", "no-archives/partial", "dpkg"):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        (self.root / "dpkg/status").touch()
        source = [f"Types: {types}", f"URIs: {mirror.uri}", f"Suites: {' '.join(suites)}"]
        source.append(f"Components: {' '.join(components)}")
        if mirror.signed_by:
            source.append(f"Signed-By: {mirror.signed_by}")
        _write(self.root / "sources.d/debian.sources", "\n".join(source) + "\n")
        _write(self.root / "preferences", "\n".join(_PIN.format(suite=suite) for suite in suites))
        settings = {
            "Dir::Etc::main": "/dev/null",
            "Dir::Etc::parts": self.root / "nothing.d",
            "Dir::Etc::sourcelist": "/dev/null",
            "Dir::Etc::sourceparts": self.root / "sources.d",
            "Dir::Etc::preferences": self.root / "preferences",
            "Dir::Etc::preferencesparts": self.root / "nothing.d",
            "Dir::State": self.root,
            "Dir::State::lists": f"{self.root / 'lists'}/",
            "Dir::State::status": self.root / "dpkg/status",
            "Dir::Cache": self.root,
            "Dir::Cache::archives": f"{self.archives}/",
            "Dir::Log": self.root / "nothing.d",
            "APT::Sandbox::User": "",  # as root apt would become _apt, who may not enter a private cache
            "APT::Get::List-Cleanup": "true",
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        own = "".join(f'{name} "{value}";\n' for name, value in settings.items())
        _write(self.root / "apt.conf", network_settings() + own)


def network_settings() -> str:
    """The machine's way to its mirrors: proxies, certificates, time-outs; not what it fetches, nor any hook."""
    fetched = ("Acquire::IndexTargets", "Acquire::Languages", "Acquire::GzipIndexes", "Acquire::CompressionTypes")
    dump = _run(["apt-config", "dump", "Acquire"]).stdout
    lines = [line for line in dump.splitlines() if line.startswith("Acquire::") and not line.startswith(fetched)]
    return "".join(f"{line}\n" for line in lines)


def _default_keyring() -> str:
    return str(DEFAULT_KEYRING) if DEFAULT_KEYRING.exists() else ""


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        if error.errno in FULL:
            raise disk_full(path) from error
        raise


def _run(
    command: Sequence[str],
    *,
    environment: dict[str, str] | None = None,
    progress: Progress = quiet,
    folder: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run one of Debian's tools in plain English; it dies with us. apt's status lines on stdout become progress."""
    plain = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive", **(environment or {})}
    command = ["setpriv", "--pdeathsig", "KILL", "--", *command]
    said: list[str] = []
    next_report = time.monotonic() + REPORT_SECONDS
    reported = ""
    # stderr goes to a file, so that neither stream can block the other
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(
            command, cwd=folder, env=plain, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, text=True
        ) as child,
        _deadline(child),
    ):
        assert child.stdout is not None
        for line in child.stdout:
            if status := re.match(r"dlstatus:\d+:(\d+)", line):
                if status[1] != reported and time.monotonic() >= next_report:
                    reported, next_report = status[1], time.monotonic() + REPORT_SECONDS
                    progress(f"  {reported} %")
            elif not line.startswith("pmstatus:"):
                said.append(line)
        child.wait()
        errors.seek(0)
        return subprocess.CompletedProcess(command, child.returncode, "".join(said), errors.read())


@contextmanager
def _deadline(child: subprocess.Popen[str]) -> Iterator[None]:
    timer = threading.Timer(APT_SECONDS, child.kill)
    timer.daemon = True
    timer.start()
    try:
        yield
    except BaseException:
        child.kill()
        raise
    finally:
        timer.cancel()


def _complaint(said: str) -> str:
    """The first of apt's errors, as one line."""
    lines = [line.removeprefix("E:").strip() for line in said.splitlines() if line.startswith("E:")]
    return lines[0] if lines else (said.strip().splitlines() or ["it did not say why"])[-1]


# what apt says: what a person can do about it
_HINTS = {
    "NO_PUBKEY": "this machine's Debian keys are too old: apt-get install --only-upgrade debian-archive-keyring",
    "Temporary failure resolving": "is there a network? the mirror of this machine's apt cannot be reached",
    "Could not connect": "is there a network? the mirror of this machine's apt cannot be reached",
    "Unable to find a source package": "the mirror of this machine's apt does not have it in these suites",
    "Unable to locate package": "the mirror of this machine's apt does not have it in these suites",
    "does not have a Release file": "the mirror of this machine's apt does not carry this suite",
}


def _hint(said: str) -> str:
    return next((hint for text, hint in _HINTS.items() if text in said), "")
