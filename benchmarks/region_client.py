"""What `region_client.c` does, in Python, for machines without a C compiler; its own time is in the figures."""

from __future__ import annotations

import json
import statistics
import sys
import time

from vfio_user.transport import Stream, connect
from vfio_user.wire import CURRENT, NO_REPLY, Capabilities, Command, Framer, Message, encode_version
from vfio_user.wire.layouts import REGION_ACCESS

BURST = 64
WIDTH = 4


def receive(stream: Stream, framer: Framer) -> Message:
    while (message := framer.next()) is None:
        framer.received(*stream.receive(framer.room()))
    return message


def main() -> None:
    path, region, offset, trips, bursts = sys.argv[1], *(int(word, 0) for word in sys.argv[2:])
    stream, framer = connect(path), Framer()
    version = encode_version(CURRENT, 0, Capabilities(max_msg_fds=16, pgsizes=4096, max_dma_maps=65535))
    stream.send(Message(1, CURRENT.number(Command.VERSION), payload=version).encode())
    receive(stream, framer)
    access = REGION_ACCESS.pack(offset, region, WIDTH)
    read = Message(2, CURRENT.number(Command.REGION_READ), payload=access).encode()
    number = CURRENT.number(Command.REGION_WRITE)
    write = Message(3, number, payload=access + bytes(WIDTH)).encode()
    posted = Message(3, number, NO_REPLY, payload=access + bytes(WIDTH)).encode() * BURST + read

    def timed(data: bytes) -> int:
        begin = time.perf_counter_ns()
        stream.send(data)
        receive(stream, framer)
        return time.perf_counter_ns() - begin

    begin = time.perf_counter_ns()
    figures = {
        "read_ns": statistics.median([timed(read) for _ in range(trips)]),
        "write_ns": statistics.median([timed(write) for _ in range(trips)]),
        "trips_per_second": 2 * trips * 1e9 / (time.perf_counter_ns() - begin),
        "posted_per_second": BURST * 1e9 / statistics.median(timed(posted) for _ in range(bursts)),
    }
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
