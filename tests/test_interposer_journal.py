"""What is kept of requests on their way, for a server that may die: under whose id, how much, and until when."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from tests.cases import for_each
from tests.device_kit import open_fds
from tests.interposer_bench import Bench, Peer, answer, read, request, write
from userdev.interposer.errors import PeerLost
from userdev.interposer.server_process import ServerProcess
from userdev.interposer.upstream import Upstream
from userdev.process import Watch
from userdev.relay.direction import Direction
from userdev.relay.loop import Task
from userdev.transport import Stream, close_all
from vfio_user.client import EventFd
from vfio_user.interposer import journal as journals
from vfio_user.interposer import survival as survivals
from vfio_user.interposer.capture import CaptureInterrupts
from vfio_user.interposer.journal import RequestJournal
from vfio_user.interposer.own_requests import OwnRequests
from vfio_user.interposer.pairing import Pairing
from vfio_user.interposer.passing import Passing
from vfio_user.interposer.session import ForwardedSession
from vfio_user.interposer.survival import Policy, Survival
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import IrqIndex, IrqSetFlags

# under whose id


class Next:
    """Stands for where servers come from: the next one is a peer of the bench's."""

    fate = "was killed"

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        self.peer: Peer | None = None

    async def died(self, timeout: float) -> bool:
        return True

    async def stop(self) -> None:
        """It has gone already."""

    async def reconnect(self, deadline: float) -> Stream:
        if self.peer is not None:
            self.peer.close()
        self.peer, near = self._bench.pair()
        return Stream(near)

    def asked(self) -> Message | None:
        return self.peer.next() if self.peer is not None else None


@for_each(["before the server died", "meanwhile"])
def test_a_request_that_is_failed_takes_no_answer_of_one_of_ours_along(when: str) -> None:
    """A client counts its ids up, and we ours down: some day they have the same."""
    with Bench() as bench:
        following = Next(bench)
        policy = Policy(msg_timeout=0.01 if when.startswith("before") else 5.0, pending="replay")
        if when == "meanwhile":
            policy = Policy(pending="fail")
        survival = Survival(bench.session, following, policy, lambda _: None)  # type: ignore[arg-type]
        bench.negotiate()
        first_of_ours = (1 << 16) - 1
        if when != "meanwhile":
            bench.client.send(read(0, 0, id=first_of_ours))
            bench.server.receive()
        bench.server.close()
        version = bench.until(following.asked)
        assert version.id == first_of_ours
        if when == "meanwhile":
            bench.client.send(read(0, 0, id=first_of_ours))
        refused = bench.client.receive()
        assert (refused.id, refused.failed, refused.errno) == (first_of_ours, True, errno.EIO)
        assert following.peer is not None
        following.peer.send(version.reply(bench.session.model.version_reply or b""))
        bench.until(lambda: survival.record.last_seconds or None)
        assert survival.record.failed == 1
        bench.client.send(read(0, 4, id=3))
        asked = bench.until(following.asked)
        following.peer.send(answer(asked, b"good"))
        assert bench.client.receive().payload[16:] == b"good", "nothing of ours came before it"
        following.peer.close()


def test_a_request_under_an_id_that_another_travels_under_gets_its_own_answer() -> None:
    """Answered in any order: it is under the id alone that either is known."""
    theirs = Pairing()
    own = OwnRequests(theirs)
    ours, _ = own.prepare(read(0, 0))
    moved = own.outgoing(read(0, 0, id=ours.id))
    other = own.outgoing(read(0, 0, id=moved.id))
    assert len({ours.id, moved.id, other.id}) == 3
    replies = [own.incoming(message.reply()) for message in (other, moved)]
    assert [reply.id for reply in replies if reply is not None] == [moved.id, ours.id]


def test_a_request_that_is_failed_while_a_server_is_replaced_changes_nothing() -> None:
    with Bench() as bench, EventFd() as first, EventFd() as second:
        following = Next(bench)
        survival = Survival(bench.session, following, Policy(msg_timeout=0.01, kick=False), lambda _: None)  # type: ignore[arg-type]
        CaptureInterrupts(bench.session)
        bench.negotiate()
        payload = at.IRQ_SET.pack(at.IRQ_SET.size, IrqSetFlags.DATA_EVENTFD | IrqSetFlags.TRIGGER, IrqIndex.MSIX, 0, 1)
        bench.exchange(request(Command.SET_IRQS, payload, fds=[first.fd]))
        bench.client.send(request(Command.SET_IRQS, payload, fds=[second.fd]))
        close_all(bench.server.receive().fds)
        bench.server.close()
        assert bench.client.receive().failed
        wired: list[int] = []
        while not survival.record.last_seconds:
            asked = bench.until(following.asked)
            wired += asked.fds
            is_version = asked.command == CURRENT.number(Command.VERSION)
            assert following.peer is not None
            following.peer.send(asked.reply(bench.session.model.version_reply or b"" if is_version else b""))
            bench.settle()
        os.eventfd_write(wired[0], 1)
        bench.settle()
        assert [first.take(), second.take()] == [1, 0]
        close_all(wired)
        assert following.peer is not None
        following.peer.close()


@for_each([False, True], ids=["died", "on purpose"])
def test_a_request_that_is_sent_again_has_waited_since_its_client_sent_it(on_purpose: bool) -> None:
    """A second server that dies over it does not give it the whole time once more."""
    with Bench() as bench:
        following = Next(bench)
        survival = Survival(bench.session, following, Policy(kick=False), lambda _: None)  # type: ignore[arg-type]
        bench.negotiate()
        bench.client.send(read(0, 0))
        bench.server.receive()
        before = [entry.since for entry in survival._journal.requests()]
        if on_purpose:
            bench.loop.spawn(survival.restart(hand_over=False))
        else:
            bench.server.close()
        version = bench.until(following.asked)
        assert following.peer is not None
        following.peer.send(version.reply(bench.session.model.version_reply or b""))
        again = bench.until(following.asked)
        assert again.command == CURRENT.number(Command.REGION_READ)
        assert [entry.since for entry in survival._journal.requests()] == before
        following.peer.send(again.reply(bytes(16)))
        bench.client.receive()
        following.peer.close()


# the journal


@for_each([0, errno.EINVAL], ids=["answered well", "refused"])
def test_an_answer_of_any_sort_says_that_what_was_posted_before_is_done(errno_: int) -> None:
    with Bench() as bench:
        survival = Survival(bench.session, Next(bench), Policy(), lambda _: None)  # type: ignore[arg-type]
        bench.negotiate()
        for _ in range(journals.BARRIER_AT):
            bench.client.send(write(0, 0, b"data", posted=True))
        posted = [bench.server.receive() for _ in range(journals.BARRIER_AT + 1)]
        assert survival.status()["unanswered"] == journals.BARRIER_AT
        bench.server.send(posted[-1].error(errno_) if errno_ else posted[-1].reply(bytes(16)))
        bench.settle()
        assert survival.status()["unanswered"] == 0


TO_SERVER, TO_CLIENT = Direction.TO_SERVER, Direction.TO_CLIENT


def test_a_reply_confirms_what_was_posted_before_it() -> None:
    journal = RequestJournal()
    journal.shown(Passing(TO_SERVER, write(0, 0, b"1", id=1, posted=True)))
    journal.shown(Passing(TO_SERVER, read(0, 0, id=2)))
    journal.shown(Passing(TO_SERVER, write(0, 0, b"2", id=3, posted=True)))
    journal.shown(Passing(TO_CLIENT, read(0, 0, id=2).reply()))
    assert [entry.message.id for entry in journal.unanswered()] == [3]


def test_what_is_unanswered_keeps_its_order() -> None:
    journal = RequestJournal()
    for id in (5, 1, 5, 2):
        journal.shown(Passing(TO_SERVER, write(0, 0, b"x", id=id, posted=id == 1)))
    journal.shown(Passing(TO_CLIENT, write(0, 0, b"x", id=5).reply()))
    assert [entry.message.id for entry in journal.unanswered()] == [1, 5, 2]
    journal.shown(Passing(TO_CLIENT, write(0, 0, b"x", id=99).reply()))
    assert len(journal) == 3


@for_each([True, False], ["answer", "confirm", "close", "take"])
def test_what_is_done_keeps_no_descriptor(posted: bool, end: str) -> None:
    before = open_fds()
    journal = RequestJournal()
    with open(os.devnull) as file:
        asked = request(Command.SET_IRQS, id=1, fds=[file.fileno()], posted=posted)
        journal.shown(Passing(TO_SERVER, asked))
        journal.shown(Passing(TO_SERVER, read(0, 0, id=2)))
    assert len(open_fds()) == len(before) + 1
    if end == "close":
        journal.close()
    elif end == "take":
        for entry in journal.take_all():
            close_all(entry.message.fds)
    else:
        if not posted:
            journal.shown(Passing(TO_CLIENT, asked.reply()))
        elif end == "answer":
            journal.shown(Passing(TO_CLIENT, read(0, 0, id=2).reply()))
        else:
            journal.confirm(journal.last)
    assert open_fds() == before


@for_each([False, True], ["MAX_ENTRIES", "MAX_BYTES"])
def test_a_server_that_takes_all_and_answers_nothing_does_not_fill_the_memory(
    posted: bool, bound: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it does answer at last makes room again, to the byte."""
    size = write(0, 0, bytes(16)).size
    monkeypatch.setattr(journals, bound, 10 if bound == "MAX_ENTRIES" else 10 * size)

    def show(id: int, length: int = 16) -> None:
        journal.shown(Passing(TO_SERVER, write(0, 0, bytes(length), id=id, posted=posted)))

    journal = RequestJournal()
    for _ in range(3):
        for number in range(10):
            show(number % 3)
        for length in (16, 17) if bound == "MAX_BYTES" else (0, 16):
            with pytest.raises(OSError, match="no answer"):
                show(0, length)
        assert len(journal) == len(journal.unanswered()) == 10, "what is not kept is not counted"
        if posted:
            journal.confirm(journal.unanswered()[0].number)
        else:
            journal.shown(Passing(TO_CLIENT, journal.requests()[0].message.reply()))
            journal.remove(journal.requests()[0])
            show(1)
        show(2)
        with pytest.raises(OSError, match="no answer"):
            show(2)
        journal.close()
        assert len(journal) == 0


def test_a_session_of_which_too_much_has_no_answer_goes_on_and_its_server_cannot_be_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(journals, "MAX_ENTRIES", 2)
    with Bench() as bench:
        survival = Survival(bench.session, Next(bench), Policy(), lambda _: None)  # type: ignore[arg-type]
        bench.negotiate()
        for id in range(3):
            bench.client.send(read(0, 0, id=id))
        asked = [bench.server.receive() for _ in range(3)]
        assert survival.status()["unanswered"] == 2
        for message in asked:
            bench.server.send(answer(message, b"good"))
        assert [bench.client.receive().id for _ in range(3)] == [0, 1, 2]
        assert survival.status()["unanswered"] == 0
        assert bench.session.model.incomplete.startswith("REGION_READ: ")


def test_what_is_confirmed_is_all_up_to_that_and_nothing_behind_it() -> None:
    journal = RequestJournal()
    numbers = []
    for id in range(4):
        journal.shown(Passing(TO_SERVER, write(0, 0, b"x", id=id, posted=True)))
        numbers.append(journal.last)
    for done, number in enumerate(numbers):
        journal.confirm(number)
        assert [entry.message.id for entry in journal.unanswered()] == list(range(done + 1, 4))


# who comes next


@for_each([False, True], ids=["after a crash", "on purpose"])
def test_a_server_that_dies_while_it_takes_anothers_place_is_followed_by_a_third(planned: bool) -> None:
    with Bench() as bench:
        following = Next(bench)
        survival = Survival(bench.session, following, Policy(), lambda _: None)  # type: ignore[arg-type]
        bench.negotiate()
        restart = Task(survival.restart(hand_over=False)) if planned else None
        bench.server.close()
        for _ in range(2):
            bench.until(following.asked)
            assert following.peer is not None
            following.peer.close()
            following.peer = None
        version = bench.until(following.asked)
        bench.client.send(read(0, 4, id=3))
        assert following.peer is not None
        following.peer.send(version.reply(bench.session.model.version_reply or b""))
        following.peer.send(answer(bench.until(following.asked), b"good"))
        assert bench.client.receive().payload[16:] == b"good"
        assert restart is None or restart.done
        assert not bench.session.holding.active
        following.peer.close()


def test_each_server_that_is_tried_gets_the_state_from_its_beginning_and_the_last_what_may_be_lost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[bytes] = []

    async def restored(session: ForwardedSession, state: int | None, starts_in: float) -> None:
        assert state is not None
        told.append(os.read(state, 100))
        if len(told) < 3:
            raise TimeoutError("it says nothing")

    monkeypatch.setattr(survivals, "restore", restored)
    with Bench() as bench, open(os.memfd_create("state"), "w+b") as state:
        os.pwrite(state.fileno(), b"all of it", 0)
        following = Next(bench)
        survival = Survival(bench.session, following, Policy(), lambda _: None)  # type: ignore[arg-type]
        bench.negotiate()
        bench.client.send(read(0, 0, id=5))
        bench.server.receive()
        bench.session.lose_server()
        bench.run(survival._bring_up(state.fileno()))
        assert told == [b"all of it"] * 3
        assert following.peer is not None
        assert following.peer.receive().id == 5
        assert following.peer.is_silent()
        following.peer.close()


def test_whose_process_a_server_was_says_nothing_of_the_next(tmp_path: Path) -> None:
    """It would be signalled, or waited for, in the other's place."""
    path = str(tmp_path / "server")
    with Bench() as bench, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen()
        upstream = Upstream(bench.loop, path, None, pid=os.getppid())
        assert upstream.pid == os.getppid()
        bench.run(upstream.reconnect(bench.loop.now() + 60)).close()
        assert upstream.pid is None


def test_a_server_whose_backlog_is_full_is_waited_for_and_holds_nobody_up(tmp_path: Path) -> None:
    path = str(tmp_path / "socket")
    with Bench() as bench, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        process = ServerProcess(bench.loop, "sh -c 'exec sleep 60' {socket}", path, output=subprocess.DEVNULL)
        process._spawn(())
        listening.bind(path)
        listening.listen(0)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as first, Watch(tmp_path) as arrivals:
            first.connect(path)
            bench.loop.after(0.01, lambda: listening.accept()[0].close())
            bench.run(process._connected(arrivals, bench.loop.now() + 60)).close()
        process.close()


@for_each([False, True])
def test_a_server_that_is_replaced_has_the_time_to_end_well(stands_still: bool, tmp_path: Path) -> None:
    """Also one that somebody has stopped (SIGSTOP), which hears of nothing before it goes on."""
    program = tmp_path / "server"
    program.write_text(
        "#!/bin/sh\ntrap 'sleep 0.02; echo ended; exit 0' TERM\necho begun\nwhile :; do sleep 0.01; done\n"
    )
    program.chmod(0o755)
    heard, told = os.pipe()
    with Bench() as bench, open(heard) as lines:
        process = ServerProcess(bench.loop, f"{program} {{socket}}", str(tmp_path / "socket"), output=told)
        process._spawn(())
        os.close(told)
        assert lines.readline() == "begun\n"
        if stands_still:
            process.signal(signal.SIGSTOP)
        bench.run(process.stop(10.0))
        assert lines.read().endswith("ended\n"), "the shell says what became of its sleep, too"
        assert process.fate == "exited with status 0"
        process.close()


def test_all_requests_of_ours_fail_with_the_peer_that_they_were_to() -> None:
    own = OwnRequests(Pairing())
    replies = [own.prepare(request(Command.GET_INFO))[1] for _ in range(3)]
    own.lose("it is gone")
    for reply in replies:
        assert reply.done
        with pytest.raises(PeerLost):
            reply.result()
    assert not own.active
