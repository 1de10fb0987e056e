"""A server as a program, as the specification's "Backend Program Conventions" want it.

It does not daemonise, leaves descriptors 0 to 2 alone, takes ``--socket-path`` or ``--fd``, and on SIGTERM ends
cleanly with its socket removed. SIGINT is the same, for people.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING

from vfio_user.server.server import Server
from vfio_user.transport import Address
from vfio_user.wire import CURRENT, Dialect

if TYPE_CHECKING:
    from vfio_user.device import PciDevice
    from vfio_user.server.negotiation import Offer

END_SECONDS = 20
"""What is left to a program that was told to end, for its session, its device and its threads. Then it ends anyhow."""

_ENDS = {signal.SIGTERM, signal.SIGINT}
_NO_MORE_CLIENTS = signal.SIGUSR2


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
    # Blocked before any thread starts, so that only sigwait below takes them.
    signal.pthread_sigmask(signal.SIG_BLOCK, _ENDS | {_NO_MORE_CLIENTS})

    def no_more_clients() -> None:
        os.kill(os.getpid(), _NO_MORE_CLIENTS)

    with Server(device, address, dialect=dialect, offer=offer, ended=no_more_clients) as server:
        if announce:
            print(f"{type(device).__name__} is listening on {server.listener.address}", file=sys.stderr, flush=True)
        signal.sigwait(_ENDS | {_NO_MORE_CLIENTS})
        # A thread of C's, which needs neither Python's lock nor any of ours.
        faulthandler.dump_traceback_later(END_SECONDS, exit=True, file=2)


def log_to_stderr(*, verbose: bool) -> None:
    """Send the package's log to stderr, one line each, with milliseconds."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s.%(msecs)03d %(levelname)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("vfio_user")
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG if verbose else logging.INFO)
