"""`vhost-user serve` as a program: its conventions, its end, and what is left when it is killed."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.vhost_frontend import FEATURES, FrontEnd, R
from userdev_servers.rng import MOST
from vhost_user.wire import HEADER, VERSION, ProtocolFeature, VirtioFeature

COMMAND = [sys.executable, "-P", "-m", "vhost_user", "serve"]


@contextmanager
def serving(tmp_path: Path, *arguments: str) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """A program that inherits a socket which listens; and the address of that."""
    path = tmp_path / f"s{len(list(tmp_path.iterdir()))}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [*COMMAND, *arguments, "--fd", str(listener.fileno())]
        program = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.PIPE)
    try:
        yield program, f"unix:{path}"
    finally:
        program.terminate()  # so that it tells what it has run, where that is measured
        try:
            program.communicate(timeout=10)
        finally:
            program.kill()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60, check=False)


def test_the_entropy_source_gives_what_its_file_has_again_and_again(tmp_path: Path) -> None:
    source = tmp_path / "bytes"
    source.write_bytes(b"0123456789")
    with serving(tmp_path, "rng", "--source", str(source)) as (_, address), FrontEnd(address) as front_end:
        front_end.negotiate()
        front_end.share_memory()
        ring = front_end.queue()
        ring.start()
        given = [ring.exchange(size).data for size in (4, 4, 64, 64)]
        assert given == [b"0123", b"4567", b"89", b"0123456789"]


def test_it_gives_random_bytes_unless_told_otherwise(tmp_path: Path) -> None:
    with serving(tmp_path, "rng") as (_, address), FrontEnd(address) as front_end:
        front_end.negotiate()
        front_end.share_memory()
        ring = front_end.queue()
        ring.start()
        one, other = ring.exchange(64).data, ring.exchange(64).data
        assert len(one) == len(other) == 64
        assert one != other
        assert len(ring.exchange(2 * MOST).data) == MOST


def test_a_file_without_bytes_is_refused_in_words() -> None:
    done = run("rng", "--source", "/dev/null", "--socket-path", "/tmp/never")
    assert done.returncode == 2
    assert "/dev/null has no bytes" in done.stderr


@pytest.mark.parametrize("where", ["disk.img", "disk.img:ro", "nowhere/disk.img:1M"])
def test_a_disk_whose_image_is_missing_is_refused_in_words(tmp_path: Path, where: str) -> None:
    """There is no socket then, and nothing is made in its place."""
    path = tmp_path / "socket"
    done = run("blk", "--image", str(tmp_path / where), "--socket-path", str(path))
    assert done.returncode == 2
    assert str(tmp_path / where.partition(":")[0]) in done.stderr
    assert "internal" not in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_features_can_be_left_out_of_what_is_offered(tmp_path: Path) -> None:
    without = ("--without", "event_idx,INFLIGHT_SHMFD")
    with serving(tmp_path, "rng", *without) as (_, address), FrontEnd(address) as front_end:
        features = VirtioFeature(front_end.ask(R.GET_FEATURES))
        protocol_features = ProtocolFeature(front_end.ask(R.GET_PROTOCOL_FEATURES))
    assert VirtioFeature.EVENT_IDX not in features
    assert VirtioFeature.INDIRECT_DESC in features
    assert ProtocolFeature.INFLIGHT_SHMFD not in protocol_features
    assert ProtocolFeature.REPLY_ACK in protocol_features


def test_a_feature_that_there_is_not_is_refused_with_all_names() -> None:
    done = run("rng", "--without", "WHEELS", "--socket-path", "/tmp/never")
    assert done.returncode == 2
    assert "WHEELS" in done.stderr
    assert "INFLIGHT_SHMFD" in done.stderr


def test_capabilities_are_printed_without_a_socket() -> None:
    for others in ([], ["--no-such", "7", "beside", "--fd=three", "--without", "WHEELS"]):  # "should be ignored"
        done = run("rng", *others, "--print-capabilities")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["type"] == "rng"


def test_a_program_without_a_socket_says_what_to_give() -> None:
    done = run("rng")
    assert done.returncode == 2
    assert "--socket-path and --fd" in done.stderr
    assert "--listen" not in done.stderr


@for_each(["nothing", "nothing.there:Device", "there/is/no.py:Device", "userdev_servers.edu:Edu"])
def test_a_name_that_is_no_device_is_refused_in_words(name: str) -> None:
    done = run(name, "--socket-path", "/tmp/never")
    assert done.returncode == 2
    assert "internal" not in done.stderr
    assert any(said in done.stderr for said in ("rng", "MODULE:CLASS", "vfio-user serve userdev_servers.edu:Edu"))


@pytest.mark.usefixtures("plain_starts")
def test_sigterm_ends_it_with_a_front_end_in_the_middle_of_a_message(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    program = subprocess.Popen([*COMMAND, "rng", "--socket-path", str(path)], stderr=subprocess.PIPE, text=True)
    assert program.stderr is not None
    assert "listening" in program.stderr.readline()
    with FrontEnd(f"unix:{path}") as front_end:
        front_end.negotiate()
        front_end.settle()
        front_end.stream.send(HEADER.pack(int(R.SET_FEATURES), VERSION, 8) + b"\0")
        program.send_signal(signal.SIGTERM)
        program.communicate(timeout=15)
    assert program.returncode == 0
    assert not path.exists()


DEADLY = '''
import os, signal
from pathlib import Path
from vhost_user.device import Chain, Queues, VhostDevice, queue

HERE = Path(__file__).parent


class Deadly(VhostDevice):
    """Dies at the first request that says so."""

    virtio_id = 42
    queues = Queues(1)

    @queue(0)
    def handle(self, chain: Chain) -> int:
        data = chain.read()
        if data == b"die" and not (HERE / "died").exists():
            (HERE / "died").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        with open(HERE / "done", "ab") as done:
            done.write(data)
        return chain.write(data)
'''


def test_what_was_under_way_when_it_was_killed_is_done_once_by_the_next(tmp_path: Path) -> None:
    """SIGKILL comes at the second of four requests, within its handler."""
    module = tmp_path / "device.py"
    module.write_text(textwrap.dedent(DEADLY))
    device = f"{module}:Deadly"
    with serving(tmp_path, device) as (program, address), FrontEnd(address) as front_end:
        front_end.negotiate(FEATURES)
        front_end.share_memory()
        inflight = front_end.ask_inflight()
        front_end.set_inflight(inflight)
        ring = front_end.queue()
        ring.start()
        assert ring.exchange(b"one", 3).data == b"one"
        for data in (b"die", b"two", b"six"):
            ring.put(data, 3)
        ring.kick()
        assert program.wait(15) == -signal.SIGKILL
        with serving(tmp_path, device) as (_, other):
            front_end.reconnect(other)
            front_end.negotiate(FEATURES)
            front_end.share_memory()
            front_end.set_inflight(inflight)
            ring.start()
            assert len(ring.wait_used(3)) == 3
            assert ring.stop() == 4
    assert (tmp_path / "done").read_bytes() == b"onedietwosix"
