"""Which of the machine's sources is Debian's, and what is said where there are none."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.cases import for_each_row
from userdev.errors import UserError
from vfio_user.harness import debian
from vfio_user.harness.cache import ENVIRONMENT
from vfio_user.harness.debian import AptError, DebianArchive, Mirror, _PrivateApt

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


@for_each_row(
    [
        (1, "/keys/one.gpg"),
        (2, "\n -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n abcd"),
        (3, ""),
    ]
)
def test_the_key_of_a_stanza_is_taken_as_it_is_written(number: int, expected: str) -> None:
    assert debian.signed_by_of_stanza(STANZAS, number) == expected


@for_each_row(
    [
        ("deb [arch=amd64 signed-by=/keys/a.gpg] https://one.example/debian stable main", "/keys/a.gpg"),
        ("deb [signed-by=/keys/a.gpg,/keys/b.gpg] https://one.example/debian stable main", "/keys/a.gpg /keys/b.gpg"),
        ("deb https://one.example/debian stable main", ""),
    ]
)
def test_the_key_of_a_line_is_among_its_options(line: str, expected: str) -> None:
    assert debian.signed_by_of_line(f"# sources\n{line}\n", 2) == expected


UNKNOWN = "$(ORIGIN)|$(LABEL)"


@for_each_row(
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
    ]
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


def test_a_machine_without_apt_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    with pytest.raises(UserError, match="apt"):
        DebianArchive(["test"]).fetch(["program"])


def test_an_apt_that_fails_is_not_said_to_have_no_mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "apt-get").write_text("#!/bin/sh\necho 'E: the lists are locked' >&2\nexit 100\n")
    (tmp_path / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(UserError, match="the lists are locked"):
        debian.find_mirror()


def test_a_disk_is_full_only_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What else keeps a file of the private apt from being written names the file."""
    monkeypatch.setenv("VFIO_USER_CACHE", str(tmp_path))
    archive = _PrivateApt(Mirror("http://none.invalid"), ["bookworm"], ["main"], "deb")
    (archive.root / "apt.conf").unlink()
    (archive.root / "apt.conf").mkdir()
    with pytest.raises(OSError, match=r"apt\.conf"):
        _PrivateApt(Mirror("http://none.invalid"), ["bookworm"], ["main"], "deb")


OLD, NEW = "E: Unable to locate package a\n", "E: it is locked\n"


@for_each_row(
    [
        (False, [], [False], None),
        (False, [OLD], [False, True], None),
        (False, [OLD, OLD], [False, True], OLD),
        (False, [NEW], [False], NEW),
        (True, [OLD], [False], OLD),
        (True, [], [False], None),
    ]
)
def test_an_index_that_may_be_too_old_is_read_again_once_and_no_other(
    read_just_now: bool,
    fails: list[str],
    refreshed: list[bool],
    told: str | None,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """`refreshed` are the times that the index was looked at, and whether it had to be read then."""
    asked: list[bool] = []
    failures = iter(fails)

    def refresh(apt: _PrivateApt, _: object, *, force: bool = False) -> bool:
        asked.append(force)
        return read_just_now

    def job(apt: _PrivateApt) -> str:
        if (said := next(failures, None)) is not None:
            raise AptError("no", said)
        return "done"

    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(debian, "require_apt", lambda: None)
    monkeypatch.setattr(debian, "network_settings", lambda: "")
    monkeypatch.setattr(_PrivateApt, "refresh", refresh)
    archive = DebianArchive(["stable"], mirror=Mirror("http://mirror"))
    if told is None:
        assert archive._with_good_index("deb", job, debian.quiet) == "done"
    else:
        with pytest.raises(AptError) as error:
            archive._with_good_index("deb", job, debian.quiet)
        assert error.value.said == told
    assert asked == refreshed


@for_each_row(
    [
        (None, False, True, True),
        (0.0, False, True, None),
        (0.0, True, True, True),
        (1.0, False, True, True),
        (None, False, False, "raises"),
        (1.0, False, False, False),
        (-1.0, False, True, True),
        (-1.0, False, False, False),
        (0.0, True, False, "raises"),
        (1.0, True, False, "raises"),
    ]
)
def test_without_a_network_the_last_index_serves_where_nobody_needs_a_newer_one(
    age: float | None, force: bool, network: bool, read: object, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`age` is the index's, in the time that one is good for, -1 where it is of a clock that was ahead; `read`: None
    where nothing is asked of the mirror.
    """
    asked: list[object] = []

    def apt_get(*_: object, **__: object) -> str:
        asked.append(network)
        if not network:
            raise AptError("no index", "E: no network")
        return ""

    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(debian, "network_settings", lambda: "")
    monkeypatch.setattr(_PrivateApt, "_apt_get", apt_get)
    apt = _PrivateApt(Mirror("http://mirror"), ["stable"], ["main"], "deb")
    if age is not None:
        then = time.time() - age * debian.INDEX_SECONDS - 60 * age
        apt.index_stamp.touch()
        os.utime(apt.index_stamp, (then, then))
    if read == "raises":
        with pytest.raises(AptError, match="no index: no network"):
            apt.refresh(debian.quiet, force=force)
    else:
        assert apt.refresh(debian.quiet, force=force) is bool(read)
    assert len(asked) == (read is not None)
    assert apt.index_stamp.exists() is (age is not None or read is True)


def test_of_what_apt_says_the_first_error_is_told() -> None:
    for said, told in (
        ("W: old\nE: the first\nE: the second\n", "no: the first"),
        ("something\nelse\n", "no: else"),
        ("", "no: it did not say why"),
    ):
        assert str(AptError("no", said)) == told


def test_a_download_that_stands_still_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "REPORT_SECONDS", 0.0)
    told: list[str] = []
    said = "".join(f"dlstatus:1:{percent}:fetching\\n" for percent in (7, 93, 93, 93, 100))
    debian._run(["printf", said], progress=told.append)
    assert [text.strip() for text in told] == ["7 %", "93 %", "100 %"]


@for_each_row([(b"", True), (b"half", True), (b"the whole", False), (None, True)])
def test_a_package_of_which_not_all_is_there_is_fetched_again(
    kept: bytes | None, fetched: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[str]] = []

    def apt_get(apt: _PrivateApt, arguments: list[str], *_: object, **__: object) -> str:
        asked.append(list(arguments))
        return "'http://mirror/pool/a_1_all.deb' a_1_all.deb 9 SHA256:1234\n"

    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    monkeypatch.setattr(debian, "network_settings", lambda: "")
    monkeypatch.setattr(_PrivateApt, "_apt_get", apt_get)
    apt = _PrivateApt(Mirror("http://mirror"), ["stable"], ["main"], "deb")
    if kept is not None:
        (apt.archives / "a_1_all.deb").write_bytes(kept)
    assert apt.download(["a"], debian.quiet) == [apt.archives / "a_1_all.deb"]
    assert any("--download-only" in arguments for arguments in asked) is fetched
