"""One front-end's session with one device: messages, kicks and posted work, one after the other, on one thread.

A front-end waits for answers without a limit (QEMU's main loop does), so that every message which wants one gets one; a
message that is refused and has none ends the connection, since the front-end would go on believing that it was done.
"""

from __future__ import annotations

import logging
import os
import select
import socket
from collections import deque
from collections.abc import Callable
from functools import partial
from time import monotonic, perf_counter_ns
from typing import Any

from userdev.busy_wait import BusyWait
from userdev.errors import AUTHORS_FAILURES, ProtocolError
from userdev.transport import BadFrame, DescriptorsLost, Framer, Stream, close_all, is_other_end
from vhost_user.backend.back_end import BackEnd
from vhost_user.backend.commands import COMMANDS, ERRORS, Answer
from vhost_user.backend.lifecycle import RingState
from vhost_user.backend.withheld import NOTHING, Withheld
from vhost_user.device import VhostDevice, model_of
from vhost_user.wire import (
    MAX_FDS,
    FrontEndRequest,
    Message,
    ProtocolFeature,
    acknowledge,
    decode_request,
    encode_reply,
    is_postcopy_acknowledgement,
)

log = logging.getLogger("vhost_user.backend")

SEND_SECONDS = 60.0
"""How long a front-end may read nothing of what it is sent, before it is given up."""

POLL_SECONDS = 0.001
"""Between two looks at rings whose driver tells nobody (SET_VRING_KICK without a descriptor)."""

LOOKS = 32
"""At rings, after which messages have their turn: a driver that always has requests must not keep them waiting."""

_DONTWAIT = int(socket.MSG_DONTWAIT)


class Ended(ConnectionError):
    """The connection is to end."""


class Session:
    """Serves `device` to the front-end at the other end of `stream`; also the device's link to that front-end."""

    def __init__(
        self,
        device: VhostDevice,
        stream: Stream,
        *,
        first_seconds: float | None = None,
        withheld: Withheld = NOTHING,
    ) -> None:
        """`first_seconds` is what the front-end has for its first message; None: as long as it likes. `withheld` are
        features that it is not offered.
        """
        self._device = device
        self._model = model_of(device)
        self._stream = stream
        stream.limit_sends(SEND_SECONDS)
        self._framer: Framer[Message] = Framer(Message, max_fds=MAX_FDS)
        self._epoll = select.epoll()
        self._ready: dict[int, Callable[[], None]] = {}
        self._busy_wait = BusyWait(turns=LOOKS)
        self._first_end = None if first_seconds is None else monotonic() + first_seconds
        self._work: deque[Callable[[], None]] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._back_end = BackEnd(self._model, self, partial(is_other_end, stream.socket), withheld)

    # A session of a server (userdev.serving.server.Served)

    def run(self) -> None:
        """Serve until the front-end goes away or `stop` is called. Raises nothing that a front-end can cause."""
        attached = False
        try:
            self.watch(self._stream.fileno(), self._receive)
            self.watch(self._wake, self._do_work)
            attached = self._attach()
            while attached:
                self._wait()
                self._serve_rings()
        except Ended as end:
            if str(end):
                log.warning("the connection ends: %s", end)
        except OSError as error:
            log.info("connection lost: %s", error)
        finally:
            self._end(attached=attached)

    def stop(self) -> None:
        """End the session from any thread, whatever it waits for of its front-end."""
        self._stream.shutdown()
        self._back_end.vrings.unblock()

    def free(self) -> bool:
        """For whoever waits for this session in vain: end what only a front-end that means no good can make last."""
        if self._stream.is_hung_up:
            self.stop()
            return True
        self._back_end.vrings.unblock()
        return False

    # The device's link (vhost_user.device.Link)

    def config_changed(self) -> None:
        """Tell the driver that configuration space has changed. From any thread."""
        self.call_soon(self._back_end.tell_config_changed)

    def call_soon(self, work: Callable[[], None]) -> None:
        """Run `work` where handlers run. From any thread."""
        self._work.append(work)
        os.eventfd_write(self._wake, 1)

    # Waiting (vhost_user.backend.vring.Watcher)

    def watch(self, fd: int, ready: Callable[[], None], *, writable: bool = False) -> None:
        """Call `ready` when there is something to read; or, `writable`, room to be written to.

        Raises:
            OSError: it cannot be waited for.
        """
        self._epoll.register(fd, select.EPOLLOUT if writable else select.EPOLLIN)
        self._ready[fd] = ready

    def unwatch(self, fd: int) -> None:
        """Wait for it no more; before it is closed."""
        self._epoll.unregister(fd)
        del self._ready[fd]

    def wait_for(self, fd: int, until: float, *, writable: bool) -> bool:
        """Wait for this descriptor alone until then (of `monotonic`); False when that has come, or nobody is there."""
        poll = select.poll()
        poll.register(fd, select.POLLOUT if writable else select.POLLIN)
        poll.register(self._stream.fileno(), 0)
        ready = dict(poll.poll(max(0.0, until - monotonic()) * 1000))
        return fd in ready

    def _wait(self) -> None:
        if self._look():
            return
        patience = self._patience()
        begin = perf_counter_ns()
        events = self._epoll.poll(patience)
        if patience != 0:
            self._busy_wait.slept(perf_counter_ns() - begin)
        for fd, _ in events:
            ready = self._ready.get(fd)
            if ready is not None:  # one that was waited for a moment ago may be gone
                ready()
        if self._first_end is not None and monotonic() >= self._first_end:
            raise Ended("a front-end that says nothing")
        if self._back_end.deadline is not None:
            self._back_end.expire(monotonic())

    def _look(self) -> bool:
        """Look for requests for a moment, where that is better than to sleep; whether there are some."""
        if not self._busy_wait.is_worth_while:
            return False
        rings = [vring for vring in self._back_end.vrings.started if vring.is_awake]
        if not rings or any(vring.pending for vring in rings):
            return False
        found = self._busy_wait.until(lambda: bool(self._work) or any(vring.look() for vring in rings))
        return found is not None and not self._work

    def _patience(self) -> float | None:
        """Seconds to wait for the next event."""
        rings = self._back_end.vrings.started
        for vring in rings:
            if vring.is_awake and not vring.pending:
                vring.rest()
        if any(vring.pending for vring in rings):
            return 0
        if any(vring.is_polled and vring.state is RingState.RUNNING for vring in rings):
            return POLL_SECONDS
        ends = [end for end in (self._first_end, self._back_end.deadline) if end is not None]
        return max(0.0, min(ends) - monotonic()) if ends else None

    def _serve_rings(self) -> None:
        for vring in self._back_end.vrings.started:
            if vring.pending or (vring.is_polled and vring.state is RingState.RUNNING):
                vring.serve()

    # Messages

    def _receive(self) -> None:
        try:
            count, fds = self._stream.receive(self._framer.room(), _DONTWAIT)
        except BlockingIOError:
            return
        except DescriptorsLost as lost:
            self._framer.lost(lost.count)
        else:
            self._framer.received(count, fds)
            if not count:
                raise Ended("in the middle of a message" if self._framer.pending else "")
        while (message := self._next()) is not None:
            self._first_end = None
            try:
                self._handle(message)
            finally:
                close_all(message.fds)

    def _next(self) -> Message | None:
        """The next whole message; one whose header cannot be right is refused here."""
        while True:
            try:
                return self._framer.next()
            except BadFrame as error:
                if error.fatal or error.message is None:
                    raise Ended(str(error)) from None
                self._refuse(error.message, error)

    def _handle(self, message: Message) -> None:
        if self._back_end.negotiated.postcopy and is_postcopy_acknowledgement(message):
            self._back_end.postcopy.agree()
            return
        try:
            request, value = decode_request(FrontEndRequest, message)
            assert isinstance(request, FrontEndRequest)
        except ProtocolError as error:
            self._refuse(message, error)
            return
        own = self._back_end.negotiated.is_own_reply(request)
        try:
            result = self._run(request, value, message.fds)
        except (ProtocolError, OSError) as error:
            if own and request in ERRORS:
                log.warning("%s is refused: %s", request.name, error)
                self._reply(request, ERRORS[request](value))
            else:
                self._refuse(message, error, own=own)
        else:
            if own:
                self._reply(request, result)
            elif self._back_end.negotiated.is_answered(request, message):
                self._stream.send(acknowledge(request).encode())

    def _run(self, request: FrontEndRequest, value: Any, fds: list[int]) -> Any:
        if request not in COMMANDS or not self._back_end.negotiated.allows(request):
            raise ProtocolError(f"{request.name} was not negotiated")
        log.debug("%s %s", request.name, value)
        return COMMANDS[request](self._back_end, value, fds)

    def _reply(self, request: FrontEndRequest, result: Any) -> None:
        answer = result if isinstance(result, Answer) else Answer(result, [])
        try:
            self._stream.send(encode_reply(request, answer.value, answer.fds).encode(), answer.fds)
        finally:
            close_all(answer.fds)

    def _refuse(self, message: Message, error: ProtocolError | OSError, *, own: bool = False) -> None:
        """Answer with the errno, where an answer of that kind is asked for; else the connection ends."""
        asked = message.needs_reply and ProtocolFeature.REPLY_ACK in self._back_end.negotiated.protocol_features
        fatal = isinstance(error, ProtocolError) and error.fatal
        if own or fatal or not asked:
            raise Ended(str(error)) from None
        log.warning("refused: %s", error)
        self._stream.send(acknowledge(message.request, error.errno or 1).encode())

    # Work, and the end

    def _attach(self) -> bool:
        """Tell the device that its front-end has come; False if it fails at that, which ends the session."""
        self._model.attach(self)
        try:
            self._device.on_attach()
        except AUTHORS_FAILURES:
            log.exception("the device failed when its front-end came: the session ends")
            self._model.detach()
            return False
        return True

    def _do_work(self) -> None:
        os.eventfd_read(self._wake)
        while self._work:
            self._guarded(self._work.popleft())

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except AUTHORS_FAILURES:
            log.exception("work of the device failed")

    def _end(self, *, attached: bool) -> None:
        """The front-end is gone: rings are stopped and drained, and nothing of it is kept."""
        self._guarded(self._back_end.close)
        if attached:
            self._guarded(self._device.on_detach)
            self._model.detach()
        while self._work:
            self._guarded(self._work.popleft())
        if self._back_end.config_has_changed:
            self._model.config_changed()  # the next front-end is told
        self._framer.close()
        self._stream.close()
        self._epoll.close()
        os.close(self._wake)
