"""A request that does no harm, declared: what whoever tries a back-end of the device may ask of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from vhost_user.device.queues import Queues


@dataclass(frozen=True, init=False)
class SampleRequest:
    """A request that changes nothing and is always answered: `sample_request = SampleRequest(0, b"hello", 64)`.

    `vhost-user conformance --device MODULE:CLASS` and `fuzz` have it served, many times and in every kind of ring.
    """

    queue: int
    """Where it goes."""
    buffers: tuple[bytes | int, ...]
    """Bytes are to be read by the device, numbers are bytes that it may write; these come last."""
    is_right: Callable[[bytes], bool]
    """Whether what the device has written is an answer to it."""

    def __init__(self, queue: int, *buffers: bytes | int, is_right: Callable[[bytes], bool] | None = None) -> None:
        """Without `is_right` every answer is right.

        Raises:
            ValueError: no driver could make such a request.
        """
        if type(queue) is not int or queue < 0:
            raise ValueError(f"a sample request goes to a queue by its number, not to {queue!r}")
        if not buffers or not all(map(_is_buffer, buffers)):
            raise ValueError(f"buffers are bytes to be read, or a number of bytes to be written, not {buffers!r}")
        kinds = [type(each) is int for each in buffers]
        if kinds != sorted(kinds):
            raise ValueError("buffers that are to be written come behind those that are to be read")
        if is_right is not None and not callable(is_right):
            raise ValueError(f"is_right tells of an answer whether it is right, and {is_right!r} cannot be called")
        object.__setattr__(self, "queue", queue)
        object.__setattr__(self, "buffers", buffers)
        object.__setattr__(self, "is_right", is_right or _any)

    def check(self, queues: Queues) -> None:
        """Look whether there is its queue.

        Raises:
            ValueError: there is not.
        """
        if self.queue >= queues.count:
            raise ValueError(f"sample_request is for queue {self.queue}, and there are {queues.count}")


def _is_buffer(said: object) -> bool:
    return len(said) > 0 if type(said) is bytes else type(said) is int and said > 0


def _any(_: bytes) -> bool:
    return True
