"""Queues of a device, declared: how many, how long, and which function takes their requests."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, overload

from userdev.declare.declared import Declaration, called, runs_later, without_parentheses
from vhost_user.rings import Chain

MAX_QUEUES = 256
"""A front-end names a ring by 8 bits where its descriptor goes along ("Front-end message types", SET_VRING_KICK)."""

MAX_SIZE = 32768
"""Of a ring (virtio 1.3, "Virtqueues")."""

D = TypeVar("D")
Later = Callable[[], int]
"""The rest of a request, which waits for something: done on a thread beside the session, while others go on."""


class Begun:
    """A request that goes on by itself while those behind it are looked at.

    It is ended where handlers run, before its driver is told of any that were taken with it, and before its ring can be
    stopped, its memory go or its session end.
    """

    def end(self) -> int | Later:
        """Have it be done: how many bytes are written, as of a handler, or what does the rest of it."""
        raise NotImplementedError


class Left:
    """A request that stays in the ring: it is given again when any ring of the device begins to run, or at a kick."""


LEFT: Final = Left()

Taken = int | Later | Begun | Left
"""What becomes of a request."""
Handler = Callable[[D, Chain], Taken]
"""Does one request, and tells how many bytes it has put into its writable buffers, from their beginning on; or gives
what does the rest of it, and tells then."""


@dataclass(frozen=True)
class Queues:
    """A number of queues, each of at most `size` descriptors: the driver may choose fewer.

    Those that are `paired`, as a network card's receive and transmit queues, front-ends count by pairs ("Multiple queue
    support").
    """

    count: int
    size: int = 256
    paired: bool = False

    def __post_init__(self) -> None:
        if type(self.count) is not int or not 0 < self.count <= MAX_QUEUES:
            raise ValueError(f"a device has 1 to {MAX_QUEUES} queues, not {self.count!r}")
        if type(self.size) is not int or not 0 < self.size <= MAX_SIZE or self.size & self.size - 1:
            raise ValueError(f"a queue has a power of two up to {MAX_SIZE} for its size, not {self.size!r}")
        if not isinstance(self.paired, bool):
            raise TypeError(f"paired is {self.paired!r}: it has to be True or False")
        if self.paired and self.count % 2:
            raise ValueError(f"queues that are paired are an even number, not {self.count}")

    if not TYPE_CHECKING:  # who has types checked is told there

        def __call__(self, *_: object) -> NoReturn:
            """Tell an author that this is not what declares a function."""
            hint = "@queue(0) stands above the function that takes a queue's requests"
            raise called(self, "", hint, rename="write queues = Queues(...)")

    @property
    def counted(self) -> int:
        """How many a front-end is told that there are."""
        return self.count // 2 if self.paired else self.count


class QueueHandler(Declaration):
    """A function that takes the requests of some queues; on an instance it is the method that it was."""

    def __init__(self, indices: tuple[int, ...], function: Handler[Any]) -> None:
        super().__init__()
        self.indices = indices
        """Nothing: all queues that no other function takes."""
        self.function = function

    def mistake(self) -> str:  # noqa: D102 - Declaration has it
        for index in self.indices:
            if type(index) is not int or not 0 <= index < MAX_QUEUES:
                return f"a queue has a number from 0 to {MAX_QUEUES - 1}, not {index!r}"
        if what := runs_later(self.function):
            return f"it is {what}"
        if not inspect.isfunction(self.function):
            return f"@queue is for a function, not for {self.function!r}"
        try:
            inspect.signature(self.function).bind(None, None)
        except TypeError:
            return f"it is called with a request, handler(self, chain), and takes {inspect.signature(self.function)}"
        return ""

    @overload
    def __get__(self, device: None, owner: type | None = None) -> QueueHandler: ...
    @overload
    def __get__(self, device: object, owner: type | None = None) -> Callable[[Chain], Taken]: ...
    def __get__(self, device: object | None, owner: type | None = None) -> QueueHandler | Callable[[Chain], Taken]:
        return self if device is None else MethodType(self.function, device)


def queue(*indices: int) -> Callable[[Handler[Any]], QueueHandler]:
    """Declare the function that takes the requests of these queues; without any, of those that no other takes.

    It is called with a `Chain` and returns how many bytes it has written; the driver has the request back then. What
    would have to wait, for a disk perhaps, it returns as a function, which is called on another thread and returns that
    number; requests that come behind are taken meanwhile. What goes on by itself, on another core, is `Begun`. What
    cannot be done as things are is `LEFT` where it is, with all behind it: who stops the ring finds it there.

    Raises:
        DeclarationError: it is written without its parentheses.
    """

    if indices and inspect.isroutine(indices[0]):
        raise without_parentheses("queue", indices[0], "write @queue(0), or @queue() for all that no other takes")

    def declare(function: Handler[Any]) -> QueueHandler:
        return QueueHandler(indices, function)

    return declare
