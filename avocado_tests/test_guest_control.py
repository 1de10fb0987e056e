"""The ways into a guest, with the real thing at the other end."""

import os

from vfio_user.avocado_test import GuestTest
from vfio_user.harness import Guest, GuestFailure, GuestLost


def interpreter(path: str) -> dict[str, object]:
    import sys
    from pathlib import Path

    return {"version": list(sys.version_info[:2]), "size": Path(path).stat().st_size}


class GuestControl(GuestTest):
    """
    :avocado: tags=harness
    """

    def test_agent(self) -> None:
        with self.lab() as lab:
            self.every_verb(lab.boot())

    def test_ssh(self) -> None:
        with self.lab() as lab:
            self.every_verb(lab.boot().ssh())

    def test_restored_guests_differ(self) -> None:
        """Two guests from one checkpoint, side by side: other random numbers, and the time of now."""
        with self.lab() as lab:
            guests = [lab.boot(), lab.boot()]
            numbers = {guest.succeed("head -c 16 /dev/urandom | md5sum") for guest in guests}
            self.assertEqual(len(numbers), 2)
            for guest in guests:
                self.assertLess(abs(float(guest.succeed("date +%s")) - float(os.popen("date +%s").read())), 5)

    def test_whoever_waits_is_told_that_the_agent_was_killed(self) -> None:
        with self.lab() as lab:
            guest = lab.boot()
            waiting = guest.start("kill -9 $PPID; sleep 600", timeout=600)
            with self.assertRaisesRegex(GuestLost, "lost its agent"):
                waiting.wait(120)
            guest.succeed("true")  # it has been started again

    def every_verb(self, guest: Guest) -> None:
        result = guest.run("echo out; echo err >&2; exit 3")
        self.assertEqual((result.exit_code, result.stdout, result.stderr), (3, "out\n", "err\n"))
        with self.assertRaises(GuestFailure) as failed:
            guest.succeed("echo told you; false")
        self.assertIn("told you", failed.exception.evidence)
        self.assertIn("dmesg", failed.exception.evidence)
        guest.fail("false")
        guest.wait_until_succeeds("echo x >> /tmp/count; test $(wc -l < /tmp/count) -ge 3")
        data = os.urandom(300_000)
        guest.put(data, "/tmp/data", 0o755)
        self.assertEqual(guest.succeed("stat -c %a /tmp/data"), "755\n")
        self.assertEqual(guest.get("/tmp/data"), data)
        answer = guest.call(interpreter, "/tmp/data")
        self.assertEqual(answer["size"], 300_000)
        with self.assertRaises(GuestFailure) as late:
            guest.run("sleep 300", timeout=0.5)
        assert late.exception.result is not None
        self.assertTrue(late.exception.result.timed_out)
        guest.fail("pgrep -f 'sleep 300'")
