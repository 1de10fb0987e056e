"""How hosts are named, and what becomes of names that are none, or of hosts that are not reached."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.cases import for_each
from userdev.errors import UserError
from vfio_user.harness.hosts import SshHost, relay, two_hosts
from vfio_user.harness.hosts.pair import hosts_in_words
from vfio_user.harness.hosts.relayed import CONNECTION_ENDED
from vfio_user.harness.hosts.ssh_connection import connected
from vfio_user.harness.hosts.trial import Here, There


def test_a_url_has_all_that_is_to_be_known_of_a_host() -> None:
    host = SshHost.parse("b", "ssh://root@host.example:2222?address=192.0.2.7&python=/opt/python")
    assert (host.user, host.host, host.port, host.address) == ("root", "host.example", 2222, "192.0.2.7")
    assert host.python == "/opt/python"


def test_a_host_is_reached_at_its_own_name_when_no_address_is_given() -> None:
    assert SshHost.parse("b", "ssh://host.example").address == "host.example"


@for_each(
    [
        "http://host.example",
        "ssh://",
        "ssh://host.example?colour=red",
        "host.example",
        "ssh://host.example:ssh",
        "ssh://host.example:99999",
        "ssh://[::1",
        "ssh://host.example?key",
        "ssh://host.example?address=",
        "ssh://host.example/opt/python",
        "ssh://root:secret@host.example",
    ]
)
def test_what_is_no_host_is_the_users_to_mend(url: str) -> None:
    with pytest.raises(UserError, match="is no host"):
        SshHost.parse("b", url)


def test_a_file_of_known_hosts_that_is_not_there_is_the_users_to_mend(tmp_path: Path) -> None:
    where = SshHost("b", "127.0.0.1", "127.0.0.1", known_hosts=str(tmp_path / "none")).where()
    with pytest.raises(UserError, match="none"):
        connected(where)


def test_what_the_library_of_ssh_logs_of_a_host_that_is_not_reached_is_not_on_the_terminal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three tracebacks of its threads came before the sentence."""
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    logger = logging.getLogger("paramiko")
    monkeypatch.setattr(logger, "handlers", [])
    for _ in range(2):
        with pytest.raises(UserError, match="no SSH connection"):
            connected(SshHost("b", "127.0.0.1", "127.0.0.1", port=port).where())
    assert [type(each) for each in logger.handlers] == [logging.NullHandler]


def test_who_mistypes_hosts_is_told_what_was_perhaps_meant() -> None:
    with pytest.raises(UserError) as refused:
        two_hosts("namespace")
    assert "'namespaces'" in refused.value.hint
    for alone in ("ssh://lab@host.example", "local,ssh://a,ssh://b"):
        with pytest.raises(UserError) as refused:
            two_hosts(alone)
        assert "A,B" in refused.value.hint


def test_an_option_that_a_host_has_not_is_named_and_the_one_that_was_meant() -> None:
    with pytest.raises(UserError, match="no option 'adress'") as refused:
        SshHost.parse("b", "ssh://host.example?adress=192.0.2.7")
    assert "did you mean 'address'" in refused.value.hint


def test_a_key_is_looked_for_at_home_and_named_where_it_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    host = SshHost.parse("b", "ssh://host.example?key=~/.ssh/lab")
    with pytest.raises(UserError, match=f"key of host.example: .*{tmp_path}/.ssh/lab"), host.reached():
        raise AssertionError("unreachable")


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port of this machine at which nobody listens, and nobody can."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_hosts_that_are_named_are_reached_before_anything_is_begun(nobody: int) -> None:
    with pytest.raises(UserError) as refused, two_hosts(f"local,ssh://lab@127.0.0.1:{nobody}"):
        raise AssertionError("unreachable")
    assert str(refused.value) == f"no SSH connection to 127.0.0.1:{nobody}: Connection refused"
    assert f"ssh -p {nobody} lab@127.0.0.1" in refused.value.hint


def test_a_relay_that_does_not_reach_its_host_says_so_in_words(
    nobody: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(relay, "inherited_sockets", lambda: ({}, {}))  # this process has others'
    monkeypatch.setattr(relay, "inherited_files", dict)
    where = json.dumps(SshHost("b", "127.0.0.1", "127.0.0.1", port=nobody).where())
    assert relay.main([where, "--", "true"]) == CONNECTION_ENDED
    assert capsys.readouterr().out == f"no SSH connection to 127.0.0.1:{nobody}: Connection refused\n"


class Reached(There):
    """A host of a test that is reached by SSH: its programs are this process."""

    listening = Here.listening
    connect = Here.connect


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each host that is named is reached, at 127.0.0.6 from 127.0.0.5."""
    with (
        socket.create_server(("127.0.0.6", 0)) as server,
        socket.create_connection(server.getsockname(), source_address=("127.0.0.5", 0)) as connection,
    ):
        client: Any = SimpleNamespace(get_transport=lambda: SimpleNamespace(sock=connection))
        monkeypatch.setattr(SshHost, "reached", lambda host: nullcontext(Reached(client, host.where())))
        yield


@pytest.mark.usefixtures("reached")
def test_hosts_that_are_named_are_reached_from_each_other_at_what_is_said_or_the_connection_shows() -> None:
    """The other host's QEMU was sent to its own 127.0.0.1, and no guest came back to this machine."""
    other = "ssh://lab@host.example"
    for hosts, wanted in {
        f"local,{other}": ("127.0.0.5", "127.0.0.6"),
        f"{other},local": ("127.0.0.6", "127.0.0.5"),
        f"local?address=127.0.0.8,{other}?address=127.0.0.9": ("127.0.0.8", "127.0.0.9"),
        f"{other}?address=127.0.0.8,ssh://other.example": ("127.0.0.8", "127.0.0.6"),
        "local,local": ("127.0.0.1", "127.0.0.1"),
    }.items():
        with two_hosts(hosts) as pair:
            assert (pair.a.address, pair.b.address) == wanted, hosts
            assert all(address in pair.ways for address in wanted), hosts
        assert hosts_in_words(hosts) == pair.ways


@pytest.mark.usefixtures("reached")
def test_an_address_at_which_a_host_cannot_be_had_is_refused_before_anything_is_begun(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for hosts, who in {
        "local,ssh://host.example?address=192.0.2.77": "host.example cannot listen at 192.0.2.77",
        "local?address=192.0.2.77,ssh://host.example": "local cannot listen at 192.0.2.77",
    }.items():
        with pytest.raises(UserError, match=who) as refused, two_hosts(hosts):
            raise AssertionError("unreachable")
        assert "address=" in refused.value.hint, hosts

    def no_way(end: Here, address: str, port: int) -> None:
        raise TimeoutError("timed out")

    monkeypatch.setattr(Reached, "connect", no_way)
    with pytest.raises(UserError, match=r"host.example does not reach local at 127.0.0.5.*timed out"):
        hosts_in_words("local,ssh://host.example")


def test_this_machine_has_an_address_and_no_other_option() -> None:
    with pytest.raises(UserError, match="no option 'adress'") as refused:
        two_hosts("local?adress=192.0.2.7,ssh://host.example")
    assert "did you mean 'address'" in refused.value.hint
