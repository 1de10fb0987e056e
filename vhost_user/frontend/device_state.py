"""The internal state of a device, saved and loaded through a pipe ("Migrating back-end state")."""

from __future__ import annotations

import os
import select
from contextlib import ExitStack

from userdev.process import Deadline
from userdev.transport import close_all
from vhost_user.frontend.connection import Connection
from vhost_user.frontend.errors import BackEndError, NoAnswer, Refused, WrongAnswer
from vhost_user.wire import NO_FD, FrontEndRequest, ProtocolFeature
from vhost_user.wire.payloads import DeviceStateTransfer

R = FrontEndRequest

MOST = 256 << 20
"""Bytes of a state: a back-end that writes without an end is stopped there."""

SAVE, LOAD = 0, 1
_STOPPED = 0
_PIECE = 1 << 16
_ERROR = 0xFF


def save(connection: Connection) -> bytes:
    """The state of a device whose rings are stopped.

    Raises:
        NotOffered: DEVICE_STATE was not negotiated.
        BackEndError: the back-end refuses, or does not come to an end.
    """
    with ExitStack() as stack:
        fd = _begin(connection, SAVE, stack)
        data = bytearray()
        while piece := _read(fd, connection.timeout):
            data += piece
            if len(data) > MOST:
                raise BackEndError(f"the back-end's state has more than {MOST} bytes")
    _check(connection)
    return bytes(data)


def load(connection: Connection, state: bytes) -> None:
    """Give a device whose rings are stopped this state.

    Raises:
        NotOffered: DEVICE_STATE was not negotiated.
        BackEndError: the back-end refuses, or takes nothing.
    """
    with ExitStack() as stack:
        fd = _begin(connection, LOAD, stack)
        left = memoryview(state)
        while left:
            left = left[_write(fd, left, connection.timeout) :]
    _check(connection)


def _begin(connection: Connection, direction: int, stack: ExitStack) -> int:
    """Our end of the pipe, which the back-end has chosen; both are closed with the stack."""
    connection.need(ProtocolFeature.DEVICE_STATE)
    reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    ours, theirs = (reader, writer) if direction == SAVE else (writer, reader)
    stack.callback(os.close, ours)
    try:
        os.set_blocking(theirs, True)
        transfer = DeviceStateTransfer(direction, _STOPPED)
        said, given = connection.ask_for_fds(R.SET_DEVICE_STATE_FD, transfer, [theirs])
    finally:
        os.close(theirs)
    stack.callback(close_all, given)
    if said & _ERROR:
        raise Refused(R.SET_DEVICE_STATE_FD.name, said & _ERROR)
    if given and said & NO_FD:
        raise WrongAnswer("SET_DEVICE_STATE_FD is answered with a descriptor, and that there is none")
    return given[0] if given else ours


def _check(connection: Connection) -> None:
    if error := connection.ask(R.CHECK_DEVICE_STATE):
        raise Refused(R.CHECK_DEVICE_STATE.name, error)


def _read(fd: int, seconds: float) -> bytes:
    os.set_blocking(fd, False)
    deadline = Deadline(seconds)
    while True:
        try:
            return os.read(fd, _PIECE)
        except BlockingIOError:
            _await(fd, select.POLLIN, deadline, "the back-end writes nothing of its state")
        except OSError as error:  # of a descriptor that it has chosen
            raise BackEndError(f"the state cannot be read where the back-end says: {error.strerror}") from None


def _write(fd: int, data: memoryview, seconds: float) -> int:
    os.set_blocking(fd, False)
    deadline = Deadline(seconds)
    while True:
        try:
            return os.write(fd, data[:_PIECE])
        except BlockingIOError:
            _await(fd, select.POLLOUT, deadline, "the back-end reads nothing of its state")
        except BrokenPipeError:
            raise BackEndError("the back-end has closed the pipe of its state before it was whole") from None
        except OSError as error:
            raise BackEndError(f"the state cannot be written where the back-end says: {error.strerror}") from None


def _await(fd: int, event: int, deadline: Deadline, what: str) -> None:
    poll = select.poll()
    poll.register(fd, event)
    if not poll.poll(deadline.remaining * 1000):
        raise NoAnswer(f"{what} for {deadline.seconds:g} s")
