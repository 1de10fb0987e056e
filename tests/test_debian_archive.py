"""The private apt: against a signed archive of our own, made on the spot."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from userdev.errors import UserError
from vfio_user.harness import debian
from vfio_user.harness.cache import ENVIRONMENT
from vfio_user.harness.debian import DebianArchive, Mirror

pytestmark = [pytest.mark.network, pytest.mark.timeout(300)]  # GnuPG is fetched, to sign with


class Archive:
    """A Debian archive in a folder: packages go in, a signed suite comes out."""

    def __init__(self, folder: Path, gnupg: Path) -> None:
        """`gnupg` is where GnuPG is unpacked."""
        self.folder = folder
        self._gnupg = gnupg
        folder.mkdir()
        self.keys = Path(tempfile.mkdtemp(prefix="gnupg-"))  # a short path: gpg-agent's socket is inside
        self.paragraphs: dict[str, list[str]] = {}
        self.sources: list[str] = []
        self._gpg("--passphrase", "", "--quick-generate-key", "archive@example.org", "ed25519", "sign")
        self.keyring = folder / "key.asc"
        self.keyring.write_bytes(self._gpg("--armor", "--export"))
        self.mirror = Mirror(f"copy:{folder}", str(self.keyring))

    def add(
        self, name: str, *, depends: str = "", version: str = "1.0", payload: bytes = b"payload\n", suite: str = "test"
    ) -> Path:
        tree = self.folder / f"tree-{name}-{version}"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "usr/share").mkdir(parents=True)
        (tree / f"usr/share/{name}").write_bytes(payload)
        control = f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: Nobody <n@example.org>\n"
        control += f"Depends: {depends}\n" * bool(depends) + "Description: a package of a test\n"
        (tree / "DEBIAN/control").write_text(control)
        marker = self.folder / "a-maintainer-script-ran"
        (tree / "DEBIAN/postinst").write_text(f"#!/bin/sh\ntouch {marker}\n")
        (tree / "DEBIAN/postinst").chmod(0o755)
        deb = self.folder / f"{name}_{version}_all.deb"
        command = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", str(tree), str(deb)]
        subprocess.run(command, check=True, capture_output=True)
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        size = deb.stat().st_size
        paragraph = f"{control}Filename: {deb.name}\nSize: {size}\nSHA256: {digest}\n"
        self.paragraphs.setdefault(suite, []).append(paragraph)
        self.sign(suite)
        return deb

    def add_source(self, name: str, *, version: str = "1.0", content: bytes = b"source\n") -> Path:
        """A source package of which only the upstream archive is really there: that alone is to be fetched."""
        archive = self.folder / f"{name}_{version}.orig.tar.xz"
        archive.write_bytes(content)
        files = [
            (archive.name, content),
            (f"{name}_{version}-1.debian.tar.xz", b"-"),
            (f"{name}_{version}-1.dsc", b"-"),
        ]
        checksums = "".join(f" {hashlib.sha256(data).hexdigest()} {len(data)} {file}\n" for file, data in files)
        self.sources.append(
            f"Package: {name}\nBinary: {name}\nVersion: {version}-1\nFormat: 3.0 (quilt)\nDirectory: .\n"
            f"Checksums-Sha256:\n{checksums}"
        )
        self.sign("test")
        return archive

    def sign(self, name: str) -> None:
        suite = self.folder / "dists" / name
        indices = {
            "main/binary-amd64/Packages": "\n".join(self.paragraphs.get(name, [])).encode(),
            "main/source/Sources": "\n".join(self.sources).encode(),
        }
        for path, index in indices.items():
            (suite / path).parent.mkdir(parents=True, exist_ok=True)
            (suite / path).write_bytes(index)
        release = f"Origin: Debian\nSuite: {name}\nCodename: {name}\nArchitectures: amd64 all\nComponents: main\n"
        release += "NotAutomatic: yes\nButAutomaticUpgrades: yes\n" * ("backports" in name)
        release += f"Date: {time.strftime('%a, %d %b %Y %H:%M:%S UTC', time.gmtime())}\n"
        release += "SHA256:\n"
        for path, index in indices.items():
            release += f" {hashlib.sha256(index).hexdigest()} {len(index)} {path}\n"
        (suite / "Release").write_text(release)
        (suite / "InRelease").write_bytes(self._gpg("--clearsign", "--output", "-", str(suite / "Release")))

    def _gpg(self, *arguments: str) -> bytes:
        agent = f"--agent-program={self._gnupg / 'usr/bin/gpg-agent'}"
        return self._run("gpg", agent, "--batch", "--yes", *arguments)

    def _run(self, program: str, *arguments: str) -> bytes:
        libraries = (*self._gnupg.glob("usr/lib/*-linux-gnu"), *self._gnupg.glob("lib/*-linux-gnu"))
        environment = {**os.environ, "LD_LIBRARY_PATH": ":".join(map(str, libraries))}
        command = [str(self._gnupg / "usr/bin" / program), "--homedir", str(self.keys), *arguments]
        return subprocess.run(command, env=environment, check=True, capture_output=True).stdout

    def close(self) -> None:
        self._run("gpg-connect-agent", "--no-autostart", "KILLAGENT", "/bye")
        shutil.rmtree(self.keys, ignore_errors=True)  # the agent, told to end, removes its sockets at the same time


@pytest.fixture(scope="module")
def gnupg(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """GnuPG of this machine's release, as a new machine has none."""
    root = tmp_path_factory.mktemp("gnupg")
    debs = DebianArchive((platform.freedesktop_os_release()["VERSION_CODENAME"],))
    debs.unpack(debs.fetch(["gpg", "gpg-agent", "gpgconf"]), root)
    return root


@pytest.fixture
def archive(tmp_path: Path, gnupg: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    with contextlib.closing(Archive(tmp_path / "archive", gnupg)) as archive:
        yield archive


def names(debs: list[Path]) -> list[str]:
    return [deb.name.partition("_")[0] for deb in debs]


def test_a_package_comes_with_what_it_needs(archive: Archive) -> None:
    archive.add("library")
    archive.add("program", depends="library")
    archive.add("unrelated")
    assert names(DebianArchive(["test"], mirror=archive.mirror).fetch(["program"])) == ["library", "program"]


def test_the_newest_version_wins_though_it_is_in_backports(archive: Archive) -> None:
    archive.add("program", version="1.0")
    archive.add("program", version="2.0~bpo1", suite="test-backports")
    private = DebianArchive(["test", "test-backports"], mirror=archive.mirror)
    assert [deb.name for deb in private.fetch(["program"])] == ["program_2.0~bpo1_all.deb"]


def test_unpacking_runs_no_maintainer_script(archive: Archive, tmp_path: Path) -> None:
    archive.add("program", payload=b"hello")
    private = DebianArchive(["test"], mirror=archive.mirror)
    private.unpack(private.fetch(["program"]), tmp_path / "root")
    assert (tmp_path / "root/usr/share/program").read_bytes() == b"hello"
    assert not (archive.folder / "a-maintainer-script-ran").exists()


def test_what_was_fetched_once_needs_no_mirror(archive: Archive) -> None:
    archive.add("program")
    private = DebianArchive(["test"], mirror=archive.mirror)
    first = private.fetch(["program"])
    shutil.rmtree(archive.folder / "dists")
    assert private.fetch(["program"]) == first


def test_an_old_index_serves_when_the_mirror_is_away(archive: Archive, tmp_path: Path) -> None:
    archive.add("program")
    private = DebianArchive(["test"], mirror=archive.mirror)
    private.fetch(["program"])
    _age_the_index(tmp_path)
    shutil.rmtree(archive.folder / "dists")
    said: list[str] = []
    assert names(private.fetch(["program"], progress=said.append)) == ["program"]
    assert any("using the package index of" in line for line in said)


def test_an_old_index_is_refreshed(archive: Archive, tmp_path: Path) -> None:
    archive.add("program")
    private = DebianArchive(["test"], mirror=archive.mirror)
    private.fetch(["program"])
    archive.add("program", version="2.0")
    assert private.fetch(["program"])[0].name == "program_1.0_all.deb"
    _age_the_index(tmp_path)
    assert private.fetch(["program"])[0].name == "program_2.0_all.deb"


def test_a_package_that_the_index_lacks_refreshes_it(archive: Archive) -> None:
    archive.add("program")
    private = DebianArchive(["test"], mirror=archive.mirror)
    private.fetch(["program"])
    archive.add("newcomer")
    assert names(private.fetch(["newcomer"])) == ["newcomer"]


def test_a_package_that_moved_on_refreshes_the_index(archive: Archive) -> None:
    old = archive.add("program")
    archive.add("other")
    private = DebianArchive(["test"], mirror=archive.mirror)
    private.fetch(["other"])
    old.unlink()
    archive.add("program", version="2.0")
    assert private.fetch(["program"])[0].name == "program_2.0_all.deb"


def test_an_unknown_package_is_the_users_error(archive: Archive) -> None:
    archive.add("program")
    with pytest.raises(UserError, match="nonesuch"):
        DebianArchive(["test"], mirror=archive.mirror).fetch(["nonesuch"])


def test_a_package_that_does_not_match_its_digest_never_enters_the_cache(archive: Archive, tmp_path: Path) -> None:
    deb = archive.add("program", payload=b"good")
    deb.write_bytes(deb.read_bytes().replace(b"good", b"evil"))
    with pytest.raises(UserError):
        DebianArchive(["test"], mirror=archive.mirror).fetch(["program"])
    assert list((tmp_path / "cache").rglob("archives/*.deb")) == []


def test_an_index_that_another_key_signed_is_refused(archive: Archive, gnupg: Path, tmp_path: Path) -> None:
    archive.add("program")
    with contextlib.closing(Archive(tmp_path / "stranger", gnupg)) as stranger:
        stranger.add("program")
    shutil.copytree(stranger.folder / "dists", archive.folder / "dists", dirs_exist_ok=True)
    with pytest.raises(UserError):
        DebianArchive(["test"], mirror=archive.mirror).fetch(["program"])


def test_a_truncated_download_is_fetched_again(archive: Archive) -> None:
    archive.add("program", payload=os.urandom(4096))
    private = DebianArchive(["test"], mirror=archive.mirror)
    (deb,) = private.fetch(["program"])
    whole = deb.read_bytes()
    deb.write_bytes(whole[:1000])
    assert private.fetch(["program"]) == [deb]
    assert deb.read_bytes() == whole


def _age_the_index(tmp_path: Path) -> None:
    for stamp in (tmp_path / "cache").rglob("index-is-whole"):
        os.utime(stamp, (time.time() - debian.INDEX_SECONDS - 60,) * 2)


def test_of_a_source_the_upstream_archive_is_fetched_and_not_kept(archive: Archive, tmp_path: Path) -> None:
    archive.add_source("program", content=b"upstream\n")
    into = tmp_path / "into"
    into.mkdir()
    source = DebianArchive(["test"], mirror=archive.mirror).fetch_source("program", into)
    assert source == into / "program_1.0.orig.tar.xz"
    assert source.read_bytes() == b"upstream\n"
    assert not list((tmp_path / "cache").rglob("*.orig.tar.*"))


def test_a_source_that_is_not_what_was_signed_is_refused(archive: Archive, tmp_path: Path) -> None:
    archive.add_source("program").write_bytes(b"SOURCE\n")
    with pytest.raises(UserError, match=r"Hash Sum mismatch|Failed to fetch|unexpected size"):
        DebianArchive(["test"], mirror=archive.mirror).fetch_source("program", tmp_path)


def test_a_source_that_has_moved_on_is_found_by_a_newer_index(archive: Archive, tmp_path: Path) -> None:
    private = DebianArchive(["test"], mirror=archive.mirror)
    archive.add_source("program", version="1.0").unlink()
    with pytest.raises(UserError):
        private.fetch_source("program", tmp_path)
    archive.sources.clear()
    archive.add_source("program", version="1.1")
    assert private.fetch_source("program", tmp_path).name == "program_1.1.orig.tar.xz"


def test_a_source_that_is_not_there_is_the_users_error(archive: Archive, tmp_path: Path) -> None:
    archive.add_source("program")
    with pytest.raises(UserError, match="nonesuch"):
        DebianArchive(["test"], mirror=archive.mirror).fetch_source("nonesuch", tmp_path)
