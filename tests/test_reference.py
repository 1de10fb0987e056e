"""libvfio-user itself, the reference in C: what of our rules it keeps, and what it and we make of each other.

`scripts/test provisioning`: it is built from Debian's source, which needs the network once.
"""

from __future__ import annotations

import errno
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests import reference_sample
from tests.interposed import Interposed
from userdev.conformance.targets import CommandServer
from userdev.process import Child, is_listening
from vfio_user.cli.conformance import command as conformance
from vfio_user.client import Client, RemoteError
from vfio_user.client.conformance import CATALOGUE, Level, greeting
from vfio_user.client.description import describe
from vfio_user.client.eventfd import EventFd
from vfio_user.client.memory import GuestMemory
from vfio_user.harness.libvfio_user import DIALECT, reference_program
from vfio_user.harness.scratch import Scratch
from vfio_user.interposer.survival import Policy
from vfio_user.wire import CURRENT, DIALECTS

ROOT = Path(__file__).parent.parent

pytestmark = [pytest.mark.network, pytest.mark.timeout(600)]

REVISION = {
    "header/type-reply": "it answers with id and command 0, as it has not read the header yet",
    "header/type-unknown": "the same",
    "region_info/describes-every-region": "config space that nobody has set up has no flags, and works",
    "io_fds/two-steps": "so it refuses what a region without flags is asked for",
    "dma_map/many": "it takes 16 ranges",
    "dma_map/wraps": "it does not look",
}
"""What libvfio-user of 2022 does against a rule, and why that is no fault of the rule."""

BY_TIMING = {"order/byte-by-byte": "it takes a body in one receive; an interposer's send may put pieces together"}

SAMPLE = {
    "region_write/bar-sizing": "its BAR1 has 0x3000 bytes, which no PCI BAR can have",
    "config/io-bar-size": "the same, and it does not say that it is memory",
    "migration_region/arcs": "it wants its state read in one piece, and written so",
}
"""The same of the sample `server`, where the library does not decide."""


@pytest.fixture(scope="module")
def server() -> str:
    """The command of the sample that its client goes with."""
    return f"{shlex.quote(str(reference_program('server')))} {{socket}}"


@pytest.fixture(scope="module")
def gpio() -> str:
    return f"{shlex.quote(str(reference_program('gpio-pci-idio-16')))} {{socket}}"


def failed(target: list[str], folder: Path, *only: str) -> set[str]:
    """The ids of the checks that a server fails; `target` is its address, or --server-command and the command."""
    found = folder / "found.json"
    groups = [argument for group in only for argument in ("--only", group)]
    result = CliRunner().invoke(conformance, ["--dialect", DIALECT, *target, "--json", str(found), *groups])
    assert found.exists(), result.output
    checks = json.loads(found.read_text())["checks"]
    assert any(check["outcome"] == "pass" for check in checks), result.output
    return {check["id"] for check in checks if check["outcome"] == "fail"} - set(BY_TIMING)


def test_the_sample_server_keeps_all_rules_but_those_that_it_is_known_not_to(server: str, tmp_path: Path) -> None:
    assert failed(["--server-command", server], tmp_path) == set(REVISION) | set(SAMPLE)


def test_the_verdicts_are_the_same_behind_an_interposer(server: str, tmp_path: Path) -> None:
    """One interposer, which starts a server for each of the some two hundred clients."""
    with Scratch() as scratch:
        front = scratch.socket_path("front")
        options = ["--dialect", DIALECT, "--listen", str(front), "--server-command", server]
        interposer = Child(
            "interposer", [sys.executable, "-m", "vfio_user", "interpose", *options], log=tmp_path / "log"
        )
        try:
            while not is_listening(front):
                assert interposer.wait(0.01) is None, interposer.last_words()
            assert failed([str(front)], tmp_path) == set(REVISION) | set(SAMPLE)
        finally:
            interposer.stop()


def test_a_device_that_saves_in_pieces_keeps_the_rules_of_migration(gpio: str, tmp_path: Path) -> None:
    assert failed(["--server-command", gpio], tmp_path, "migration_region", "dirty_pages") == set()


def test_a_rule_of_the_reference_that_this_revision_does_not_keep_says_so() -> None:
    """Level REFERENCE is what today's reference does, or is marked with its revision."""
    broken = {check.id for check in CATALOGUE if check.level is Level.REFERENCE and check.id in REVISION}
    assert broken == {check.id for check in CATALOGUE if check.revision}


@contextmanager
def client_of(command: str, folder: Path) -> Iterator[Client]:
    dialect = DIALECTS[DIALECT]
    with (
        CommandServer(command, folder, greeting(dialect), timeout=20) as target,
        Client(target.connect(), dialect=dialect, timeout=20) as client,
    ):
        client.negotiate(minor=0)
        yield client


def test_its_interrupt_arrives_and_its_dma_by_message_is_served_from_our_memory(
    server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The sample raises INTx at the time that was written to BAR0, then writes a page of As, and reads it back."""
    with client_of(server, tmp_path) as client, GuestMemory(0x10000, shared=False) as memory, EventFd() as interrupt:
        reads: list[bytes] = []
        read = client.memory.read

        def noting(iova: int, count: int) -> bytes:
            reads.append(read(iova, count))
            return reads[-1]

        monkeypatch.setattr(client.memory, "read", noting)
        client.dma_map(0x10_0000, memory)
        client.enable_irqs(0, [interrupt])
        client.region_write(0, 0, (int(time.time()) + 1).to_bytes(8, "little"))
        client.serve_until(lambda: bool(reads), timeout=20)  # it takes for a reply whatever comes before it
        assert interrupt.take() == 1
        assert memory.view[:0x1000] == reads[0] == b"A" * 0x1000
        client.device_info()  # it would have given up, had it not read what it wrote


def test_what_it_counted_goes_on_in_another_process(gpio: str, tmp_path: Path) -> None:
    """Its state is saved and loaded by our client through the v1 region."""
    with client_of(gpio, tmp_path) as source, client_of(gpio, tmp_path) as destination:
        assert [source.region_read(2, 0, 1)[0] for _ in range(7)] == [0, 0, 0, 1, 1, 1, 2]
        destination.migration_region().load(source.migration_region().save())
        assert [destination.region_read(2, 0, 1)[0] for _ in range(3)] == [2, 2, 3]


def test_an_interposer_that_keeps_it_alive_brings_up_another_with_its_state_where_it_can(
    gpio: str, tmp_path: Path
) -> None:
    """A client that never knows, and speaks the dialect of QEMU of today."""
    with Interposed(tmp_path, gpio, survive=Policy()) as interposed:
        client, control = interposed.client(), interposed.control()
        assert [client.region_read(2, 0, 1)[0] for _ in range(4)] == [0, 0, 0, 1]
        assert control.call("restart", hand_over=True)["handed_over"]
        assert [client.region_read(2, 0, 1)[0] for _ in range(3)] == [1, 1, 2]
        control.call("signal", signal="SIGKILL")
        assert [client.region_read(2, 0, 1)[0] for _ in range(4)] == [0, 0, 0, 1]


def test_probing_says_how_it_migrates_and_what_a_vmm_would_stumble_over(server: str, tmp_path: Path) -> None:
    """Also where nobody has said what dialect it speaks."""
    with (
        CommandServer(server, tmp_path, greeting(CURRENT), timeout=20) as target,
        Client(target.connect(), timeout=20) as client,
    ):
        client.negotiate(minor=0)
        description = describe(client)
    assert description.migration.how == "region"
    about = ("no class", "BAR1 has 0x3000 bytes", "the I/O BAR1", "region 1 comes with 2 descriptors")
    assert [problem.startswith(about[-1]) for problem in description.not_survived] == [True]
    assert [next(problem for problem in description.problems if problem.startswith(text)) for text in about]
    assert len(description.problems) == len(about)


def test_dirty_pages_are_told_for_ranges_that_begin_where_a_mapping_does(gpio: str, tmp_path: Path) -> None:
    """The known issue libvfio-user-dirty-report."""
    with (
        client_of(gpio, tmp_path) as client,
        GuestMemory(0x10000) as memory,
        GuestMemory(0x1000, shared=False) as apart,
    ):
        client.dma_map(0x10_0000, memory)
        client.dma_map(0x20_0000, apart)
        client.start_dirty_pages()
        for size in (0x10000, 0x8000):
            assert client.dirty_pages(0x10_0000, size).pages() == []
        for iova, size, refusal in ((0x10_8000, 0x8000, errno.ENOTSUP), (0x20_0000, 0x1000, errno.EINVAL)):
            with pytest.raises(RemoteError) as caught:
                client.dirty_pages(iova, size)
            assert caught.value.errno == refusal


def test_its_client_finds_our_device_as_good_as_its_server_and_migrates_it(tmp_path: Path) -> None:
    """Describes, resets, maps, is interrupted, serves DMA, logs; moves it to another server, and goes on there.

    The client starts the other by the name `server` beside itself, and becomes that: its own fate is known there.
    """
    client = shutil.copy(reference_program("client"), tmp_path / "client")
    other = tmp_path / "server"
    other.write_text(f'#!/bin/sh\ncd {shlex.quote(str(ROOT))}\nexec {sys.executable} -m tests.reference_sample "$@"\n')
    other.chmod(0o755)
    with Scratch() as scratch:
        front = scratch.socket_path("front")
        server = Child("server", reference_sample.command(str(front)), log=tmp_path / "log")
        try:
            while not is_listening(front):
                assert server.wait(0.01) is None, server.last_words()
            ran = subprocess.run([client, front], cwd=ROOT, capture_output=True, text=True, timeout=90)
        finally:
            server.stop()
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.count("INTx triggered") == 2
