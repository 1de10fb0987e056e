"""A disk behind vhost-user with an interposer before it: recorded, stopped, cut; the guest finds what it wrote."""

from __future__ import annotations

from avocado_tests.vhost_test import Bench, DiskTest
from userdev.trace import Note, read_trace
from vhost_user.interposer.traces import PROTOCOL, MessageRecord
from vhost_user.wire import FrontEndRequest


class DiskBehindAnInterposer(DiskTest):
    """
    :avocado: tags=vhost-user,blk,interposer
    """

    def test_a_disk_that_is_stopped_and_cut_loses_nothing(self) -> None:
        """QEMU connects again each time, to a back-end connection of its own."""
        with self.bench(interpose=True, trace=True) as bench:
            control = bench.server.control
            job = bench.begin_writing()
            for side in ("client", "server"):
                bench.await_flush()
                control.call("signal", signal="SIGSTOP")
                control.call("signal", signal="SIGCONT")
                control.call("cut", side=side)
            self.assert_all_is_there(bench.end_writing(job))
            digest = bench.write()
            self.assertEqual((bench.read(), bench.image_digest()), (digest, digest))
            self.check_trace(bench, control.call("status")["sessions"])

    def check_trace(self, bench: Bench, sessions: int) -> None:
        """Each session is there, with the start of the disk's ring, and so are the cuts."""
        assert bench.server.trace is not None
        entries = read_trace(bench.server.trace, PROTOCOL).entries
        events = [entry.event for entry in entries if isinstance(entry, Note)]
        self.assertEqual(events.count("cut"), 2)
        said = [entry.message.request for entry in entries if isinstance(entry, MessageRecord)]
        self.assertGreaterEqual(sessions, 3)
        self.assertGreaterEqual(said.count(FrontEndRequest.SET_VRING_KICK), sessions)
