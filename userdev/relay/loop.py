"""One thread, one epoll: descriptors that become ready, timers that come due, and tasks that wait for either.

asyncio would do all of this and cost several microseconds per message on the data path; the interposer's data path is
`epoll_wait`, `recvmsg`, `send`. A task is a coroutine that awaits `Future`s, so that what takes several messages
(restoring a device's state, say) is written top to bottom.
"""

from __future__ import annotations

import faulthandler
import heapq
import os
import select
import signal
import time
from collections.abc import Callable, Coroutine, Generator
from functools import partial
from typing import Any, Generic, TypeVar

from userdev.busy_wait import BusyWait

T = TypeVar("T")

READ = select.EPOLLIN | select.EPOLLRDHUP
WRITE = select.EPOLLOUT
GONE = select.EPOLLHUP | select.EPOLLERR
STOP_SECONDS = 5.0
"""Seconds that a program has to end once it has been told to."""


class Future(Generic[T]):
    """A value that is not there yet. Whoever awaits it goes on in the call of `resolve` or `fail`."""

    __slots__ = ("_callbacks", "_error", "_value", "done")

    def __init__(self) -> None:
        self.done = False
        self._value: T | None = None
        self._error: BaseException | None = None
        self._callbacks: list[Callable[[], None]] = []

    def resolve(self, value: T) -> None:
        """Set the value; the first of `resolve` and `fail` counts."""
        if not self.done:
            self._value = value
            self._finish()

    def fail(self, error: BaseException) -> None:
        """Set an error, which is raised wherever this is awaited."""
        if not self.done:
            self._error = error
            self._finish()

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call `callback` once there is a value or an error: now, where there is one already."""
        if self.done:
            callback()
        else:
            self._callbacks.append(callback)

    def result(self) -> T:
        """The value, or the error raised. Only once `done`."""
        if self._error is not None:
            raise self._error
        return self._value  # type: ignore[return-value]

    def __await__(self) -> Generator[Future[Any], None, T]:
        if not self.done:
            yield self
        return self.result()

    def _finish(self) -> None:
        self.done = True
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback()


class Task(Future[T]):
    """A running coroutine; done when it has returned or raised."""

    __slots__ = ("_coroutine", "_ends")

    def __init__(self, coroutine: Coroutine[Future[Any], None, T]) -> None:
        super().__init__()
        self._coroutine = coroutine
        self._ends = False
        """It is cancelled, and what its `finally` clauses end in turn does not wake it."""
        self._step()

    def cancel(self) -> None:
        """End the coroutine where it waits; its `finally` clauses run now."""
        if not self.done:
            self._ends = True
            self._coroutine.close()
            self.fail(TaskCancelled())

    def _step(self) -> None:
        if self.done or self._ends:
            return
        try:
            waits_for = self._coroutine.send(None)
        except StopIteration as end:
            self.resolve(end.value)
        except Exception as error:  # whoever awaits the task gets it
            self.fail(error)
        else:
            waits_for.when_done(self._step)


class TaskCancelled(Exception):
    """The task was ended from outside."""


class Timer:
    """A callback to come; `cancel` makes it stay away."""

    __slots__ = ("_callback", "due", "number")

    def __init__(self, due: int, number: int, callback: Callable[[], None]) -> None:
        self.due = due
        self.number = number
        self._callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Make the callback stay away."""
        self._callback = None

    def fire(self) -> None:
        """Call the callback, the first time."""
        callback, self._callback = self._callback, None
        if callback is not None:
            callback()

    @property
    def active(self) -> bool:
        """Whether the callback is still to come."""
        return self._callback is not None

    def __lt__(self, other: Timer) -> bool:
        return (self.due, self.number) < (other.due, other.number)


class Loop:
    """Runs until `stop`. Times are `time.monotonic_ns`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._busy_wait = BusyWait()
        self._look = partial(self._epoll.poll, 0)
        self._ready: dict[int, Callable[[int], None]] = {}
        self._timers: list[Timer] = []
        self._number = 0
        self._stopping = False
        self._error: Exception | None = None
        self.on_error: Callable[[Exception], bool] = lambda _: False
        """Told what a callback, or a task that nobody waits for, has raised; True: the loop can go on."""
        self._turn_ends: list[Callable[[], None]] = []
        self._wake: tuple[int, int] | None = None

    def watch(self, fd: int, ready: Callable[[int], None], events: int = READ) -> None:
        """Call `ready(events)` whenever `fd` has one of `events`, or is gone."""
        self._epoll.register(fd, events)
        self._ready[fd] = ready

    def change(self, fd: int, events: int) -> None:
        """Watch for other events of a descriptor that is watched."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Watch `fd` no longer; to be called before it is closed. Harmless when it is not watched."""
        if self._ready.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` after so many seconds."""
        return self.at(time.monotonic_ns() + int(seconds * 1e9), callback)

    def at(self, due: int, callback: Callable[[], None]) -> Timer:
        """Call `callback` once the monotonic clock has reached `due` nanoseconds."""
        self._number += 1
        timer = Timer(due, self._number, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def at_end_of_turn(self, callback: Callable[[], None]) -> None:
        """Call `callback` each time everything that was ready has been dealt with, before waiting again."""
        self._turn_ends.append(callback)

    async def sleep(self, seconds: float) -> None:
        """Let others run for so many seconds."""
        wake: Future[None] = Future()
        timer = self.after(seconds, lambda: wake.resolve(None))
        try:
            await wake
        finally:
            timer.cancel()

    async def within(self, seconds: float, future: Future[T], what: str) -> T:
        """The future's value, or TimeoutError after `seconds`."""
        timer = self.after(seconds, lambda: future.fail(TimeoutError(f"{what}: not within {seconds:g} s")))
        try:
            return await future
        finally:
            timer.cancel()

    def stop_on(self, *signals: signal.Signals) -> None:
        """Let these signals stop the loop; only in the main thread.

        Should the program not have ended within `STOP_SECONDS` then, it is ended, and says where it was.
        """
        read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wake = read, write
        signal.set_wakeup_fd(write, warn_on_full_buffer=False)
        for number in signals:
            signal.signal(number, lambda *_: self._stop_in_time())
        self.watch(read, lambda _: self._drain(read))

    def _stop_in_time(self) -> None:
        faulthandler.dump_traceback_later(STOP_SECONDS, exit=True)  # a thread in C: it needs nothing of ours
        self.stop()

    def spawn(self, coroutine: Coroutine[Future[Any], None, T]) -> Task[T]:
        """Run a coroutine that nobody waits for: should it fail, that is a defect, and `run` raises it."""
        task = Task(coroutine)
        task.when_done(lambda: self._check(task))
        return task

    def _check(self, task: Task[Any]) -> None:
        try:
            task.result()
        except TaskCancelled:
            return
        except Exception as error:  # whatever it is, it must not be lost
            if not self.on_error(error):
                self._error = self._error or error
                self.stop()

    def stop(self) -> None:
        """Let `run` return at the end of this turn."""
        self._stopping = True

    @staticmethod
    def now() -> float:
        """Seconds of the monotonic clock."""
        return time.monotonic()

    def finish(self, coroutine: Coroutine[Future[Any], None, T]) -> T:
        """Run the loop until `coroutine` has returned; for those who have no loop running yet."""
        task = Task(coroutine)
        while not task.done:
            if self._stopping:
                task.cancel()
            else:
                self.turn()
        return task.result()

    def run(self) -> None:
        """Run until `stop`."""
        while not self._stopping:
            self.turn()
        if self._error is not None:
            raise self._error

    def turn(self, timeout: float | None = None) -> bool:
        """Wait, at most `timeout` seconds, and deal with what is ready; False where that is nothing."""
        ready = self._ready
        due = self._timeout() if self._timers else None
        found = self._wait(timeout if due is None else due if timeout is None else min(due, timeout))
        for fd, events in found:
            if (callback := ready.get(fd)) is not None:
                try:
                    callback(events)
                except Exception as error:  # one session's, as `on_error` may know
                    if not self.on_error(error):
                        raise
        fired = self._fire_timers() if self._timers else False
        for callback_at_end in self._turn_ends:
            callback_at_end()
        return bool(found) or fired

    def _wait(self, patience: float | None) -> list[tuple[int, int]]:
        """What is ready: looked for a moment before this thread sleeps, where requests and replies follow closely."""
        if patience == 0:
            return self._look()
        if self._busy_wait.is_worth_while and (found := self._busy_wait.until(self._look)):
            return found
        begin = time.perf_counter_ns()
        found = self._epoll.poll(patience)
        self._busy_wait.slept(time.perf_counter_ns() - begin)
        return found

    def close(self) -> None:
        """Let go of the descriptors and signals of the loop itself."""
        if self._wake is not None:
            signal.set_wakeup_fd(-1)
            faulthandler.cancel_dump_traceback_later()
            for fd in self._wake:
                os.close(fd)
            self._wake = None
        self._epoll.close()

    def _timeout(self) -> float | None:
        timers = self._timers
        while timers and not timers[0].active:
            heapq.heappop(timers)
        if not timers:
            return None
        # Rounded up: epoll counts milliseconds, and waking early would spin until the timer is due.
        left = timers[0].due - time.monotonic_ns()
        return left / 1e9 + 0.0005 if left > 0 else 0.0

    def _fire_timers(self) -> bool:
        now = time.monotonic_ns()
        fired = False
        while self._timers and self._timers[0].due <= now:
            fired = True
            try:
                heapq.heappop(self._timers).fire()
            except Exception as error:  # as in `turn`
                if not self.on_error(error):
                    raise
        return fired

    @staticmethod
    def _drain(fd: int) -> None:
        try:
            while os.read(fd, 512):
                pass
        except BlockingIOError:
            return
