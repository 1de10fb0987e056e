"""Fetching real vhost-user programs, of an archive in Debian's place; the real ones are test_vhost_real_peers.py's."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from userdev.errors import UserError
from vfio_user.cli.vhost_peer import command
from vfio_user.harness import vhost_user_peers
from vfio_user.harness.cache import ENVIRONMENT
from vfio_user.harness.debian import DebianArchive
from vfio_user.harness.vhost_user_peers import Peer, install_peer

LOADER = """\
#!/bin/sh
shift 4  # its own options
printf '<%s>' "$@"
"""
"""In place of the dynamic loader: what it is to start."""


def peer(arguments: str = '--socket "$socket" --disk "$files/disk"', *, prepare: str = ":") -> Peer:
    return Peer("a program", ("suite",), ("package",), "usr/bin/program", arguments, prepare)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def fetched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was fetched of an archive in Debian's place."""
    seen: list[str] = []

    def fetch(archive: DebianArchive, packages: tuple[str, ...], **_: object) -> list[Path]:
        seen.extend(f"{archive.suites[-1]}/{package}" for package in packages)
        return [Path("libc6_2.41-12_amd64.deb"), Path("package_1%3a11.1.3+ds-1~bpo13+1_amd64.deb")]

    def unpack(_: DebianArchive, __: object, into: Path) -> None:
        loader = into / "usr/lib64/ld-linux-x86-64.so.2"
        loader.parent.mkdir(parents=True)
        loader.write_text(LOADER)
        loader.chmod(0o755)

    monkeypatch.setattr(DebianArchive, "fetch", fetch)
    monkeypatch.setattr(DebianArchive, "unpack", unpack)
    monkeypatch.setattr(vhost_user_peers, "PEERS", {"one": peer(), "other": peer("--other", prepare="echo first")})
    return seen


def said(command: list[object]) -> str:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True).stdout


def test_its_script_takes_a_socket_and_further_arguments(tmp_path: Path) -> None:
    one = install_peer("one")
    program = one.argv[-1]
    at = tmp_path / "a b"
    assert said([one.script, at, "--more", "of it"]) == (
        f"<{program}><--socket><{at}><--disk><{at}.d/disk><--more><of it>"
    )
    assert (tmp_path / "a b.d").is_dir()
    assert said([install_peer("other").script, at]) == f"first\n<{program}><--other>"


def test_the_command_line_says_where_its_script_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_user_peers, "PEERS", {"virtiofsd": peer()})
    told = CliRunner().invoke(command, ["virtiofsd"])
    assert (told.exit_code, told.output) == (0, f"{install_peer('virtiofsd').script}\n")


def test_its_arguments_may_be_ones_own() -> None:
    one = install_peer("one")
    assert said([*one.argv, "--mine"]) == f"<{one.argv[-1]}><--mine>"
    assert one.version == "11.1.3+ds"


def test_those_of_one_package_are_fetched_once(fetched: list[str]) -> None:
    for name in ("one", "other", "one"):
        install_peer(name)
    assert fetched == ["suite/package"]


def test_another_table_is_another_program(fetched: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    old = install_peer("one")
    monkeypatch.setattr(vhost_user_peers, "PEERS", {"one": peer("--new")})
    assert install_peer("one").script != old.script
    assert len(fetched) == 2


def test_one_that_does_not_run_leaves_nothing_and_says_so(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhost_user_peers, "PEERS", {"one": peer()})
    monkeypatch.setattr(DebianArchive, "unpack", lambda *_: None)
    with pytest.raises(UserError, match="one of Debian suite cannot be run"):
        install_peer("one")
    assert list((own_cache / "vhost-user-peers").iterdir()) == []


def test_one_that_there_is_not_is_the_users_error() -> None:
    with pytest.raises(UserError, match="nonesuch") as caught:
        install_peer("nonesuch")
    assert "other" in caught.value.hint
