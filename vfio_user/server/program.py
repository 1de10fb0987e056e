"""A server as a program, as the specification's "Backend Program Conventions" want it.

It does not daemonise, leaves descriptors 0 to 2 alone, takes ``--socket-path`` or ``--fd``, and on SIGTERM ends
cleanly with its socket removed. SIGINT is the same, for people.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import select
import signal
import sys
from typing import TYPE_CHECKING

from userdev.transport import Address
from vfio_user.server.server import Server
from vfio_user.wire import CURRENT, Dialect

if TYPE_CHECKING:
    from vfio_user.device import PciDevice
    from vfio_user.server.negotiation import Offer

END_SECONDS = 20
"""What is left to a program that was told to end, for its session, its device and its threads. Then it ends anyhow."""

_ENDS = (signal.SIGTERM, signal.SIGINT)


def serve(
    device: PciDevice,
    address: Address | str,
    *,
    dialect: Dialect = CURRENT,
    offer: Offer | None = None,
    announce: bool = True,
) -> None:
    """Serve `device` until SIGTERM or SIGINT, or until an inherited connection ends. For the main thread.

    From then on the whole process has `END_SECONDS`; after them its threads' stacks go to stderr, and it ends with
    status 1. Whoever serves in a program that does more afterwards calls `faulthandler.cancel_dump_traceback_later`.

    Raises:
        UserError: the address cannot be listened on.
    """
    with _Ending() as ending, Server(device, address, dialect=dialect, offer=offer, ended=ending.set) as server:
        if announce:
            print(f"{type(device).__name__} is listening on {server.listener.address}", file=sys.stderr, flush=True)
        ending.wait()
        # A thread of C's, which needs neither Python's lock nor any of ours.
        faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=2)


class _Ending:
    """SIGTERM or SIGINT, or `set` from any thread, whichever comes first; the signals are as before at the end.

    The kernel gives a signal to any thread that does not block it, such as one that the device has started, and
    Python runs handlers in the main thread alone. So it is the descriptor that Python's own handler writes to which is
    waited for (`signal.set_wakeup_fd`).
    """

    def __enter__(self) -> _Ending:
        self._told, self._tell = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._before = signal.set_wakeup_fd(self._tell, warn_on_full_buffer=False)
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in _ENDS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._before)
        told, tell, self._told, self._tell = self._told, self._tell, -1, -1
        os.close(told)
        os.close(tell)

    def set(self) -> None:
        with contextlib.suppress(OSError):
            os.write(self._tell, b"\0")

    def wait(self) -> None:
        poll = select.poll()
        poll.register(self._told, select.POLLIN)
        said = b""
        while not {0, *_ENDS} & {*said}:  # other signals may have handlers of their own
            poll.poll()
            said = os.read(self._told, 64)


def log_to_stderr(*, verbose: bool) -> None:
    """Send the package's log to stderr, one line each, with milliseconds."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "%H:%M:%S"))
    for package in ("userdev", "vfio_user"):
        logger = logging.getLogger(package)
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG if verbose else logging.INFO)
