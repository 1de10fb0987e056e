"""What can go wrong between a client and a server, by what the server did."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from userdev.counted import counted
from userdev.errors import ProtocolError, UserdevError, errno_in_words
from vfio_user.wire import Message

T = TypeVar("T")


class RemoteError(UserdevError):
    """The server answered with an error. `errno` may be 0: the draft allows an Error flag without one."""

    request = ""
    """What the server does not do, where no argument can be to blame: one fault, whoever needs that."""

    def __init__(self, errno: int, command: str, reply: Message | None = None) -> None:
        super().__init__(f"the server answers {command} with {errno_in_words(errno)}")
        self.errno = errno
        self.command = command
        self.reply = reply


class Disconnected(UserdevError, ConnectionError):
    """The server closed the connection, or died."""


class NoAnswer(UserdevError, TimeoutError):
    """No answer came before the deadline. The connection stays usable: a late reply is taken and dropped."""

    request = ""
    """What the server does not answer, where it was asked as it has to be: one fault, whoever needs that."""


class NoEnd(ProtocolError):
    """The server gives more of a device's state than anybody takes. `request` is what it was asked with."""

    def __init__(self, request: str, most: int) -> None:
        super().__init__(f"{request}: the device's state has more than {most:,} bytes, and no end yet")
        self.request = f"the end of {request}"


class ShortReply(ProtocolError):
    """A reply ends before what every good one has. `request` is what has none that is long enough: one fault."""

    def __init__(self, command: str, size: int, needed: int, name: str) -> None:
        super().__init__(f"the reply to {command} has {counted(size, 'byte')} of payload, and {name} needs {needed}")
        self.request = f"a whole reply to {command}"


class StrayReply(ProtocolError):
    """A reply has an id that no request has which waits for one."""

    def __init__(self, id: int, command: int) -> None:
        super().__init__(f"the server replied to id {id} (command {command}), and no request that waits has it")
        self.id = id


class OtherCount(ProtocolError):
    """A read is answered with more or less than it asked for. `request` is one fault, whoever reads."""

    request = "as many bytes from REGION_READ as it asks for"

    def __init__(self, wanted: int, said: int, came: int) -> None:
        super().__init__(f"REGION_READ of {counted(wanted, 'byte')} is answered with count {said} and {came} bytes")


def none_refused(found: Iterable[T | RemoteError]) -> list[T]:
    """What a server said of each, where it has to say something of all.

    Raises:
        RemoteError: the first that it refused.
    """
    said = []
    for each in found:
        if isinstance(each, RemoteError):
            raise each
        said.append(each)
    return said
