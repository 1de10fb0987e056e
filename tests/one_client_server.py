"""A server that ends with its client, as the specification lets it; it takes its time, and listens to the last."""

from __future__ import annotations

import os
import sys
import time

from vfio_user.transport import Listener
from vfio_user.wire import CURRENT, Capabilities, Framer, encode_version


def main() -> None:
    with Listener(sys.argv[1]) as listener:
        stream, framer = listener.accept(), Framer()
        while (proposal := framer.next()) is None:
            framer.received(*stream.receive(framer.room()))
        stream.send(proposal.reply(encode_version(CURRENT, 0, Capabilities())).encode())
        stream.receive(framer.room())
        stream.close()
        time.sleep(0.05)
        os._exit(0)  # how long an interpreter takes to end says something about the machine


if __name__ == "__main__":
    main()
