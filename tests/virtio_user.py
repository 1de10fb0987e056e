"""DPDK's front-end of vhost-user-net as a program that sends the frames that it is given, and keeps those that it gets.

It is testpmd with two ports: frames come from a named pipe in pcap's format, go through net_virtio_user, and what comes
back goes into a file of that format.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Self

from userdev.process import Child, Deadline, Watch
from userdev.process.inotify import Change
from vfio_user.harness.vhost_user_peers import InstalledPeer

PATIENCE = 60.0
_FILE = struct.Struct("<IHHiIII")
_RECORD = struct.Struct("<IIII")
_HEADER = _FILE.pack(0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)  # pcap(5): Ethernet, microseconds


class VirtioUser:
    """A running testpmd; its files are in `folder`. With `serving` it is it that listens; `packed` are its rings."""

    def __init__(
        self, testpmd: InstalledPeer, socket: Path, folder: Path, *, serving: bool = False, packed: bool = False
    ) -> None:
        self._in, self._out = folder / "in.pcap", folder / "out.pcap"
        os.mkfifo(self._in)
        self._out.touch()
        # for reading too, so that this does not wait for who reads: it may never come
        self._pipe = os.open(self._in, os.O_RDWR | os.O_CLOEXEC)
        os.write(self._pipe, _HEADER)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        card = f"net_virtio_user0,path={socket},queues=1{',server=1' * serving}{',packed_vq=1' * packed}"
        arguments = [
            *("--no-huge", "-m", "64", "--no-pci", "--no-telemetry", "--no-shconf", "--lcores", f"(0-2)@({cores})"),
            *("--vdev", f"net_pcap0,rx_pcap={self._in},tx_pcap={self._out}"),
            *("--vdev", card),
            # the core that reads the pipe waits in it, so that the other one is the card's; nothing read is thrown away
            *("--", "--nb-cores=2", "--burst=1", "--no-flush-rx", "--total-num-mbufs=2048"),
            # its words come with its first statistics: at once, where the machine has been up for so many seconds
            "--stats-period=10",
        ]
        environment = {**os.environ, "RUNTIME_DIRECTORY": str(folder), "XDG_RUNTIME_DIR": str(folder)}
        self.child = Child("testpmd", [*testpmd.argv, *arguments], log=folder / "log", environment=environment)

    def send(self, frame: bytes) -> None:
        """Have it transmit a frame."""
        os.write(self._pipe, _RECORD.pack(0, 0, len(frame), len(frame)) + frame)

    def received(self) -> list[bytes]:
        """All frames that it has received."""
        data = self._out.read_bytes()
        frames, at = [], _FILE.size
        while at + _RECORD.size <= len(data):
            size = _RECORD.unpack_from(data, at)[2]
            frame = data[at + _RECORD.size :][:size]
            if len(frame) == size:
                frames.append(frame)
            at += _RECORD.size + size
        return frames

    def wait_received(self, count: int, seconds: float = PATIENCE) -> list[bytes]:
        """The same, as soon as there are so many. Raises AssertionError when it ends before, or in so many seconds."""
        deadline = Deadline(seconds)
        with Watch(self._out, Change.WRITTEN) as news:
            while len(frames := self.received()) < count:
                ended = self.child.wait(deadline, or_readable=news.fd) is not None
                assert not ended, f"testpmd {self.child.fate()}:\n{self.child.last_words()}"
                assert not deadline.passed, f"{len(frames)} of {count} frames:\n{self.child.last_words()}"
                news.drain()
        return frames

    def close(self) -> int:
        """End it; its exit status."""
        if self._pipe >= 0:
            os.close(self._pipe)  # whoever reads is told of the end
            self._pipe = -1
        return self.child.stop(grace=10)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
