"""What can go wrong between a front-end and its back-end, by what the back-end did: all of it is a `BackEndError`."""

from __future__ import annotations

import errno as _errno
import os
from typing import Self

from userdev.errors import UserdevError


class BackEndError(UserdevError):
    """The back-end did, or did not do, what the text says."""

    request = ""
    """What it does not do, where one request is to blame: who fails of the same is told of once."""

    def at(self, request: str) -> Self:
        """Itself, with the request that is to blame."""
        self.request = request
        return self


class Refused(BackEndError):
    """It answered a request with an error. `errno` is the number, which need not be one that the system has."""

    def __init__(self, request: str, number: int) -> None:
        name = _errno.errorcode.get(number)
        said = f"{name} ({os.strerror(number)})" if name else f"{number:#x}"
        super().__init__(f"the back-end answers {request} with {said}")
        self.errno = number
        self.request = request


class NotOffered(BackEndError):
    """It has not offered what this would need."""


class Disconnected(BackEndError, ConnectionError):
    """It has ended the connection, or died."""


class NoAnswer(BackEndError, TimeoutError):
    """No answer came before the deadline.

    Where it was one on the connection, that has ended: answers have no numbers, so that a late one would be taken for
    that of another request.
    """


class WrongAnswer(BackEndError):
    """What came is no answer to what was asked, or no message at all."""


class BrokenQueue(BackEndError):
    """A queue takes no requests any more: the back-end says so, or gives back what it was not given."""
