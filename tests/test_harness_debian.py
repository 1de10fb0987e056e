"""The private apt: against a signed archive of our own, made on the spot, without a network."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfio_user.errors import UserError
from vfio_user.harness import debian
from vfio_user.harness.cache import ENVIRONMENT
from vfio_user.harness.debian import DebianArchive, Mirror

STANZAS = """\
Types: deb
# a remark inside a stanza
URIs: https://one.example/debian
Suites: stable
Signed-By: /keys/one.gpg

Types: deb
URIs: https://two.example/debian
signed-by:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abcd
Suites: stable

Types: deb
URIs: https://three.example/debian
"""


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, "/keys/one.gpg"),
        (2, "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abcd"),
        (3, ""),
    ],
)
def test_the_key_of_a_stanza_is_taken_as_it_is_written(number: int, expected: str) -> None:
    assert debian.signed_by_of_stanza(STANZAS, number) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("deb [arch=amd64 signed-by=/keys/a.gpg] https://one.example/debian stable main", "/keys/a.gpg"),
        ("deb [signed-by=/keys/a.gpg,/keys/b.gpg] https://one.example/debian stable main", "/keys/a.gpg /keys/b.gpg"),
        ("deb https://one.example/debian stable main", ""),
    ],
)
def test_the_key_of_a_line_is_among_its_options(line: str, expected: str) -> None:
    assert debian.signed_by_of_line(f"# sources\n{line}\n", 2) == expected


UNKNOWN = "$(ORIGIN)|$(LABEL)"


@pytest.mark.parametrize(
    ("targets", "chosen"),
    [
        (["Vendor|Vendor|v:1|https://v/", "Debian|Debian|d:1|https://d/"], "https://d/"),
        (["Debian|Debian-Security|s:1|https://d-security/", "Debian|Debian|d:1|https://d/"], "https://d/"),
        ([f"{UNKNOWN}|v:1|https://v/", f"{UNKNOWN}|d:1|https://d/"], "https://d/"),
        ([f"{UNKNOWN}|d:1|https://d-security/", f"{UNKNOWN}|d:1|https://d/"], "https://d/"),
        ([f"{UNKNOWN}|d:1|https://d/", "Debian|Debian|d:2|https://known/"], "https://known/"),
        ([f"{UNKNOWN}|n:1|https://v/", f"{UNKNOWN}|n:1|https://d/debian/"], "https://d/debian/"),
        ([f"{UNKNOWN}|v:1|https://v/debian/"], None),
        (["Vendor|Vendor|v:1|https://v/", f"{UNKNOWN}|v:1|https://v/"], None),
        ([], None),
    ],
)
def test_third_party_and_security_sources_are_passed_over(targets: list[str], chosen: str | None) -> None:
    keys = {
        "d": "/keys/debian-archive-keyring.gpg",
        "v": "/keys/vendor.gpg",
        "n": "",
        "s": "/keys/debian-archive-keyring.gpg",
    }
    sources = debian.choose_sources("\n".join(targets), lambda entry: keys[entry.partition(":")[0]])
    assert next((uri for uri, _ in sources), None) == chosen


class Archive:
    """A Debian archive in a folder: packages go in, a signed suite comes out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
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
        command = ["gpg", "--homedir", str(self.keys), "--batch", "--yes", *arguments]
        return subprocess.run(command, check=True, capture_output=True).stdout

    def close(self) -> None:
        subprocess.run(["gpgconf", "--homedir", str(self.keys), "--kill", "all"], check=True)
        shutil.rmtree(self.keys, ignore_errors=True)  # the agent, told to end, removes its sockets at the same time


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    if not (debian.has_apt() and shutil.which("gpg")):
        pytest.skip("needs apt and gpg")
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    with contextlib.closing(Archive(tmp_path / "archive")) as archive:
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


def test_an_index_that_another_key_signed_is_refused(archive: Archive, tmp_path: Path) -> None:
    archive.add("program")
    with contextlib.closing(Archive(tmp_path / "stranger")) as stranger:
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


def test_a_machine_without_apt_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    with pytest.raises(UserError, match="apt"):
        DebianArchive(["test"]).fetch(["program"])


def _age_the_index(tmp_path: Path) -> None:
    for stamp in (tmp_path / "cache").rglob("index-is-whole"):
        os.utime(stamp, (time.time() - debian.INDEX_AGE - 60,) * 2)


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
