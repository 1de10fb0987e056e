"""What is done of a device while nobody is attached: one piece after the other, whichever threads ask for it."""

from __future__ import annotations

import threading
from contextlib import closing

import pytest

from userdev_servers.edu import Edu
from vfio_user.device import function_of
from vfio_user.testing import RecordingLink


def test_nothing_of_a_device_runs_beside_what_its_host_asked_for() -> None:
    """Neither what others ask for, who do not wait, nor the next client's session, which does."""
    done: list[str] = []
    begun, released = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert released.wait(10)
        done.append("what takes long")

    with closing(Edu()) as device:
        function = function_of(device)

        def attach() -> None:
            function.attach(RecordingLink())
            done.append("the client's session")

        threads = [threading.Thread(target=function.run, args=(slow,)), threading.Thread(target=attach)]
        threads[0].start()
        assert begun.wait(10)
        function.run(lambda: done.append("what another asked for"))
        device.call_soon(lambda: done.append("what the device posted"))
        threads[1].start()
        assert done == []
        released.set()
        for thread in threads:
            thread.join(10)
        function.detach()
    expected = ["what takes long", "what another asked for", "what the device posted", "the client's session"]
    assert done == expected


def test_who_posts_with_a_link_of_before_has_it_done_by_the_session() -> None:
    with closing(Edu()) as device:
        function, session, done = function_of(device), RecordingLink(), list[str]()
        before = function.link
        function.attach(session)
        before.call_soon(lambda: done.append("posted"))
        assert done == []
        session.run_deferred()
        assert done == ["posted"]
        function.detach()


def test_what_is_raised_is_told_to_who_asked_and_ends_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def fails() -> None:
        raise ValueError("posted")

    def posts_and_fails() -> None:
        device.call_soon(fails)
        device.call_soon(lambda: done.append("behind it"))
        raise KeyError("asked for")

    done: list[str] = []
    with closing(Edu()) as device:
        with pytest.raises(KeyError):
            function_of(device).link.call_soon(posts_and_fails)
        assert done == ["behind it"]
        assert [str(record.exc_info[1]) for record in caplog.records if record.exc_info] == ["posted"]
        function_of(device).link.call_soon(lambda: done.append("later"))
    assert done == ["behind it", "later"]
