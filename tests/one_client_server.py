"""A server of one client: with it it ends, as the specification lets it, or lives on to no purpose.

    python -m tests.one_client_server SOCKET [deaf|mute|silent|offended]

It takes its time to end, and listens to the last. `deaf`: it lives on and listens no more; `mute`: it lives on, and its
socket takes clients whom nobody serves; `silent`: that from the first on; `offended`: it serves any number, until one
says behind its VERSION what is no message, and then as one that is deaf. Its status is 3 where there is a file `fails`
beside the socket.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from userdev.transport import Framer, Listener
from vfio_user.wire import CURRENT, Capabilities, Message, encode_version


def main() -> None:
    habit = sys.argv[2] if len(sys.argv) > 2 else "ends"
    with Listener(sys.argv[1]) as listener:
        while habit == "silent":
            signal.pause()
        while not _serve_one(listener) and habit == "offended":
            pass
        if habit == "deaf":
            listener.close()
        while habit != "ends":
            signal.pause()
        time.sleep(0.05)
        status = 3 if Path(sys.argv[1]).with_name("fails").exists() else 0
        os._exit(status)  # how long an interpreter takes to end says something about the machine


def _serve_one(listener: Listener) -> int:
    """Serve one client; the bytes that it has said behind its VERSION."""
    stream, framer, said = listener.accept(), Framer(Message), 0
    while (proposal := framer.next()) is None and (received := stream.receive(framer.room()))[0]:
        framer.received(*received)
    if proposal is not None:
        stream.send(proposal.reply(encode_version(CURRENT, 0, Capabilities())).encode())
        said, _ = stream.receive(framer.room())
    if said:
        listener.close()  # before the client hears of it
    stream.close()
    return said


if __name__ == "__main__":
    main()
