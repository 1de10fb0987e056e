"""Addresses and streams: where to listen, what is left behind, and which sockets carry descriptors."""

from __future__ import annotations

import os
import signal
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from tests.device_kit import descriptors_left, open_fds
from userdev.control.client import ControlClient
from userdev.errors import UserError
from userdev.transport import (
    MAX_FDS_PER_SEND,
    MAX_PATH,
    Address,
    DescriptorsLost,
    Listener,
    Stream,
    close_all,
    connect,
    is_other_end,
)


@contextmanager
def signals_every(seconds: float) -> Iterator[None]:
    """A block in which a signal comes again and again, which does nothing."""
    before = signal.signal(signal.SIGALRM, lambda *_: None)
    signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def exchange(here: Stream, there: Stream) -> None:
    here.send(b"hello")
    room = bytearray(16)
    assert there.receive(memoryview(room)) == (5, [])
    assert room[:5] == b"hello"


def test_a_unix_socket_is_private_and_gone_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "device.sock"
    with Listener(str(path)) as listener:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        client = connect(str(path), timeout=5)
        server = listener.accept()
        exchange(client, server)
        exchange(server, client)
        client.close()
        server.close()
    assert not path.exists()


def test_a_file_that_is_no_socket_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "doorbell.py").touch()
    with pytest.raises(UserError, match="no socket"):
        connect(str(tmp_path / "doorbell.py"), timeout=5)


def test_making_a_socket_private_does_not_change_the_process(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with Listener(str(tmp_path / "s")):
            assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_a_socket_that_a_dead_server_left_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(path)
    with Listener(path):
        connect(path, timeout=5).close()


def test_a_living_servers_socket_is_not_taken(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with Listener(str(path)):
        with pytest.raises(UserError):
            Listener(str(path))
        assert path.exists()


def test_a_file_that_is_no_socket_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with pytest.raises(UserError):
        Listener(str(path))
    assert path.read_text() == "data"


def hint_for(address: str) -> str:
    with pytest.raises(UserError) as refused:
        Listener(address)
    return refused.value.hint


def test_who_has_a_socket_already_is_said(tmp_path: Path) -> None:
    with Listener(str(tmp_path / "s")):
        assert f"process {os.getpid()} " in hint_for(str(tmp_path / "s"))


def test_who_has_no_time_for_one_more_client_has_the_socket_all_the_same(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(path)
        busy.listen(0)
        first = connect(path, timeout=60)
        assert "somebody listens there" in hint_for(path)
        first.close()
    assert Path(path).is_socket()


@for_each(["file", "folder", "dangling link"])
def test_what_is_in_the_way_of_a_socket_and_is_none_is_said(name: str, tmp_path: Path) -> None:
    there = tmp_path / name
    match name:
        case "file":
            there.touch()
        case "folder":
            there.mkdir()
        case _:
            there.symlink_to(tmp_path / "nothing")
    assert "no socket" in hint_for(str(there))


def test_a_port_that_is_taken_and_an_address_that_is_not_here_are_told_with_what_to_do() -> None:
    with Listener("tcp:127.0.0.1:0") as first:
        port = first.socket.getsockname()[1]
        assert "another port" in hint_for(f"tcp:127.0.0.1:{port}")
    assert "ip address" in hint_for("tcp:192.0.2.1:0")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in hint_for(str(tmp_path / "none" / "s"))


def test_a_successor_keeps_its_path_when_the_first_server_closes(tmp_path: Path) -> None:
    path = tmp_path / "s"
    first = Listener(str(path))
    path.unlink()
    with Listener(str(path)):
        first.close()
        assert path.exists()
        assert first.path is None, "nor does it know of one that it could remove"


def test_connecting_to_nobody_says_where(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nobody"):
        connect(str(tmp_path / "nobody"), timeout=1)


def test_who_finds_a_listeners_queue_full_waits_for_a_place_as_long_as_was_said(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(path))
        listening.listen(0)
        first = connect(str(path), timeout=60)
        for ask in (lambda: connect(str(path), timeout=0.03), lambda: ControlClient(path, timeout=0.03)):
            began = time.monotonic()
            with pytest.raises(UserError):
                ask()
            assert time.monotonic() - began >= 0.03
        later = threading.Thread(target=lambda: listening.accept()[0].close())
        later.start()
        connect(str(path), timeout=60).close()
        later.join()
        first.close()


def test_a_signal_while_a_place_is_waited_for_makes_no_connection_of_none(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as listening, signals_every(0.01):
        listening.bind(str(path))
        listening.listen(0)
        first = connect(str(path), timeout=60)
        with pytest.raises(UserError, match="wait"):
            connect(str(path), timeout=0.05)
        first.close()


def test_a_path_has_at_most_107_bytes(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        Address.parse("x" * (MAX_PATH + 1))
    assert Address.parse("x" * MAX_PATH).family == socket.AF_UNIX


@for_each(["", "unix:", "tcp:host", "tcp:host:port", "vsock:1", "vsock:a:b", "fd:x"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        Address.parse(text)


@for_each_row(
    [
        ("/run/x.sock", socket.AF_UNIX, "/run/x.sock"),
        ("unix:tcp:1", socket.AF_UNIX, "tcp:1"),
        ("tcp:localhost:80", socket.AF_INET, ("localhost", 80)),
        ("tcp:[::1]:80", socket.AF_INET6, ("::1", 80)),
        ("vsock:-1:7", socket.AF_VSOCK, (0xFFFFFFFF, 7)),
    ]
)
def test_an_address_says_its_family(text: str, family: int, where: object) -> None:
    address = Address.parse(text)
    assert (address.family, address.where) == (family, where)


def test_tcp_carries_bytes_and_no_descriptors() -> None:
    with Listener("tcp:127.0.0.1:0") as listener:
        port = listener.socket.getsockname()[1]
        client = connect(f"tcp:127.0.0.1:{port}", timeout=5)
        server = listener.accept()
        exchange(client, server)
        assert client.socket.gettimeout() is None, "only to connect it had a limit"
        assert not server.carries_fds
        with pytest.raises(ValueError, match="descriptors"):
            client.send(b"x", [0])
        client.close()
        server.close()


def test_a_machine_that_does_not_answer_is_waited_for_as_long_as_was_said() -> None:
    with Listener("tcp:127.0.0.1:0", backlog=0) as listener:
        address = f"tcp:127.0.0.1:{listener.socket.getsockname()[1]}"
        first = connect(address, timeout=60)  # the kernel answers no other, as there is no place for it
        with pytest.raises(UserError, match="timed out"):
            connect(address, timeout=0.03)
        first.close()


def test_vsock_carries_bytes_and_no_descriptors() -> None:
    """Over the kernel's loopback (CID 1), where it has one."""
    local = 1
    try:
        listener = Listener(f"vsock:-1:{socket.VMADDR_PORT_ANY}")
    except UserError as error:
        pytest.skip(f"no AF_VSOCK here: {error}")
    with listener:
        try:
            client = connect(f"vsock:{local}:{listener.socket.getsockname()[1]}", timeout=0.25)
        except UserError as error:
            pytest.skip(f"no vsock loopback here (module vsock_loopback): {error}")
        server = listener.accept()
        exchange(client, server)
        assert not server.carries_fds
        client.close()
        server.close()


def test_an_inherited_socket_is_used_as_it_is() -> None:
    here, there = socket.socketpair()
    client = connect(f"fd:{here.detach()}")
    with Listener(f"fd:{there.detach()}") as listener:
        assert listener.is_connected
        exchange(client, Stream(listener.socket))
    client.close()


def test_closing_wakes_who_waits_for_a_client(tmp_path: Path) -> None:
    listener = Listener(str(tmp_path / "s"))
    listener.shutdown()
    with pytest.raises(OSError):  # noqa: PT011  (which one is the kernel's choice)
        listener.accept()
    listener.close()


def test_a_listener_without_descriptors_turns_clients_away_and_listens_on(tmp_path: Path) -> None:
    accepted: list[Stream] = []
    with Listener(str(tmp_path / "s")) as listener:
        serving = threading.Thread(target=lambda: accepted.append(listener.accept()))
        with socket.socket(socket.AF_UNIX) as unlucky, socket.socket(socket.AF_UNIX) as next_one:
            for client in (unlucky, next_one):
                client.settimeout(60)
            with descriptors_left(0):
                serving.start()
                unlucky.connect(str(tmp_path / "s"))
                assert unlucky.recv(1) == b"", "turned away, and not left to wait"
                assert not accepted
            next_one.connect(str(tmp_path / "s"))
            serving.join(60)
            assert len(accepted) == 1
            exchange(Stream(next_one), accepted[0])
            accepted[0].close()


def test_an_inherited_listening_socket_may_be_one_that_does_not_block(tmp_path: Path) -> None:
    accepted: list[Stream] = []
    with Listener(str(tmp_path / "s")) as outer:
        outer.socket.setblocking(False)
        with Listener(f"fd:{os.dup(outer.socket.fileno())}") as listener:
            serving = threading.Thread(target=lambda: accepted.append(listener.accept()))
            serving.start()
            connect(str(tmp_path / "s"), timeout=5).close()
            serving.join(60)
            assert len(accepted) == 1
            accepted[0].close()


def test_a_peer_that_takes_or_sends_nothing_is_waited_for_as_long_as_was_said() -> None:
    here, there = map(Stream, socket.socketpair())
    here.limit_sends(0.02)
    here.limit_receives(0.02)
    began = time.monotonic()
    with pytest.raises(BlockingIOError):
        here.receive(memoryview(bytearray(16)))
    assert time.monotonic() - began >= 0.02
    with pytest.raises(BlockingIOError):
        here.send(bytes(8 << 20))
    assert time.monotonic() - began >= 0.04
    here.close()
    there.close()


def test_what_the_kernel_says_of_a_peer_is_not_taken_for_descriptors() -> None:
    """A socket that was inherited may have that asked for."""
    here, there = map(Stream, socket.socketpair())
    there.socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    event = os.eventfd(0)
    for sent in ([], [event]):
        here.send(b"x", sent)
        count, fds = there.receive(memoryview(bytearray(16)))
        assert (count, len(fds)) == (1, len(sent))
        close_all(fds)
    os.close(event)
    here.close()
    there.close()


def test_descriptors_that_the_kernel_has_dropped_are_not_passed_over() -> None:
    here, there = (Stream(sock) for sock in socket.socketpair())
    event = os.eventfd(0)
    here.send(b"hello", [event, event, event])
    room = bytearray(16)
    with descriptors_left(2), pytest.raises(DescriptorsLost) as lost:
        there.receive(memoryview(room))
    assert (lost.value.count, bytes(room[:5])) == (5, b"hello")
    before = open_fds()
    here.send(b"again", [event])
    _, fds = there.receive(memoryview(room))
    assert len(open_fds() - before) == len(fds) == 1, "and those that did come are closed"
    close_all([*fds, event])
    here.close()
    there.close()


def test_as_many_descriptors_as_the_kernel_takes_arrive_and_close_on_exec() -> None:
    here, there = (Stream(s) for s in socket.socketpair())
    fd = os.open("/dev/null", os.O_RDONLY)
    here.send(b"x", [fd] * MAX_FDS_PER_SEND)
    _, fds = there.receive(memoryview(bytearray(8)))
    assert len(fds) == MAX_FDS_PER_SEND
    assert not any(os.get_inheritable(fd) for fd in fds)
    close_all([*fds, fd])
    here.close()
    there.close()


def test_a_message_larger_than_the_sockets_room_is_sent_whole_with_its_descriptors() -> None:
    """Of a socket with a timeout the kernel takes at one go only what there is room for."""
    here, there = (Stream(s) for s in socket.socketpair())
    here.socket.settimeout(60)
    there.socket.settimeout(60)
    data = os.urandom(4 << 20)
    fd = os.open("/dev/null", os.O_RDONLY)
    sender = threading.Thread(target=lambda: here.send(data, [fd]))
    sender.start()
    got, fds = bytearray(), []
    room = bytearray(1 << 16)
    while len(got) < len(data):
        count, more = there.receive(memoryview(room))
        got += room[:count]
        fds += more
    sender.join(60)
    assert got == data
    assert len(fds) == 1
    close_all([*fds, fd])
    here.close()
    there.close()


@for_each([1, 30])
def test_a_peer_whose_message_was_not_read_sees_an_end_and_no_reset(count: int) -> None:
    """The known issue connection-abort."""
    here, there = (Stream(sock) for sock in socket.socketpair())
    event = os.eventfd(0)
    for _ in range(count):
        here.send(bytes(1000), [event])
    there.close()
    assert here.receive(memoryview(bytearray(16))) == (0, [])
    here.close()
    os.close(event)


@pytest.mark.parametrize("use", [Listener, connect])
def test_an_inherited_descriptor_that_is_no_stream_socket_is_refused_and_left_open(
    use: Callable[[str], object],
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        reading, writing = os.pipe()
        before = open_fds()
        for number in (datagrams.fileno(), reading, 1 << 19, 1 << 80, -1):
            with pytest.raises(UserError, match=f"descriptor {number} is no") as refused:
                use(f"fd:{number}")
            assert "hand on one" in refused.value.hint
        assert open_fds() == before
        close_all([reading, writing])


@for_each(
    [Listener, connect],
    ["tcp:127.0.0.1:70000", "tcp:127.0.0.1:-1", "tcp:a..b:1", "vsock:1:-5", "unix:a\0b", "tcp:\udcff:1"],
)
def test_an_address_that_is_none_is_refused_in_words(use: Callable[[str], object], address: str) -> None:
    before = open_fds()
    with pytest.raises(UserError, match="cannot"):
        use(address)
    assert open_fds() == before


def test_the_other_end_of_a_socket_is_told_from_all_others() -> None:
    ours, theirs = socket.socketpair()
    others = socket.socketpair()
    copy = theirs.dup()
    with ours, theirs, copy, others[0], others[1], socket.socket(socket.AF_UNIX) as alone:
        assert is_other_end(ours, theirs.fileno())
        assert is_other_end(ours, copy.fileno())
        assert not any(is_other_end(ours, fd.fileno()) for fd in (ours, *others, alone))
        assert not any(is_other_end(alone, fd.fileno()) for fd in (ours, *others, alone))


def test_what_was_sent_is_taken_once_the_peer_has_received_all_of_it() -> None:
    here, there = map(Stream, socket.socketpair())
    taken = [here.await_taken(0)]
    here.send(b"12")
    taken.append(here.await_taken(0.001))
    there.socket.recv(1)
    taken.append(here.await_taken(0.001))
    there.socket.recv(1)
    taken.append(here.await_taken(0))
    assert taken == [True, False, False, True]
    here.close()
    there.close()


@for_each([b"", b"unread"])
def test_a_stream_is_hung_up_once_either_end_is_closed(unread: bytes) -> None:
    here, there = map(Stream, socket.socketpair())
    there.send(unread)
    hung_up = [here.is_hung_up]
    there.shutdown(socket.SHUT_WR)
    hung_up.append(here.is_hung_up)  # what is sent still arrives
    there.close()
    hung_up += [here.is_hung_up, there.is_hung_up]
    here.close()
    assert [*hung_up, here.is_hung_up] == [False, False, True, True, True]


class ClosedMeanwhile(socket.socket):
    """One that another thread closes just when it was asked for its descriptor."""

    def fileno(self) -> int:
        number = super().fileno()
        self.close()
        return number


def test_what_another_thread_closes_is_hung_up_and_no_listener_any_more(tmp_path: Path) -> None:
    here, there = socket.socketpair()
    with there:
        assert Stream(ClosedMeanwhile(fileno=here.detach())).is_hung_up
    with Listener(str(tmp_path / "s")) as listener:
        listener.socket = ClosedMeanwhile(fileno=listener.socket.detach())
        with pytest.raises(OSError, match="Bad file descriptor"):
            listener.accept()
