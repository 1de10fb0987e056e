"""The commands, as a person and a program call them, on good days and bad ones."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from vfio_user.avocado_test import GuestTest
from vfio_user.harness import Scratch

VFIO_USER = (sys.executable, "-m", "vfio_user")

WRONG_EDU = Path(__file__).with_name("wrong_edu.py").read_text()


ON_A_TERMINAL = ("setpriv", "--pdeathsig", "TERM", "env", "--default-signal=INT")
"""Ended with the test, and open to Ctrl-C even where the tests run in the background of a shell, which ignores it."""


class Terminal:
    """A program on a terminal of its own, and what it shows there."""

    def __init__(self, argv: Sequence[str], folder: Path) -> None:
        self._ours, theirs = pty.openpty()
        self.process = subprocess.Popen(
            [*ON_A_TERMINAL, *argv], stdin=theirs, stdout=theirs, stderr=theirs, cwd=folder, process_group=0
        )
        os.close(theirs)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._ours, text.encode())

    def wait_for(self, text: str, seconds: float = 120) -> None:
        end = time.monotonic() + seconds
        while text not in self.shown:
            assert select.select([self._ours], [], [], end - time.monotonic())[0], f"no {text!r} in:\n{self.shown}"
            self.shown += os.read(self._ours, 65536).decode(errors="replace")

    def end(self) -> int:
        """Take what it still shows until it ends; its exit status."""
        try:
            while data := os.read(self._ours, 65536):
                self.shown += data.decode(errors="replace")
        except OSError:  # the last one has left the terminal
            pass
        os.close(self._ours)
        return self.process.wait(60)


class Commands(GuestTest):
    """
    :avocado: tags=commands
    """

    def test_run_reports_for_programs(self) -> None:
        done = self.vfio_user("run", "--json")
        report = json.loads(done.stdout)
        self.assertEqual((done.returncode, report["ok"]), (0, True), done.stderr)
        self.assertTrue(all(part["ok"] for part in report["parts"]))
        for name in (
            "report.json",
            "timeline.json",
            "versions.json",
            "commands.txt",
            "guest.qmp.log",
            "guest.console.log",
        ):
            self.assertTrue((Path(report["logs"]) / name).exists(), name)

    def test_run_fails_when_the_guest_saw_something_wrong(self) -> None:
        (Path(self.workdir) / "wrong.py").write_text(WRONG_EDU)
        done = self.vfio_user("run", "--server", f"{' '.join(VFIO_USER)} serve wrong:WrongEdu --socket-path {{socket}}")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertIn("liveness", done.stderr)
        self.assertIn("FAIL", done.stdout)
        page = Path(self.workdir) / done.stdout.split()[-1]
        self.assertIn("liveness", page.read_text())

    def test_bad_input_is_a_sentence(self) -> None:
        for arguments, said in (
            (("--device", "no-such"), "no-such"),
            (("--image", "no-such"), "no-such"),
            (("--qemu", "/bin/false"), "/bin/false"),
            (("--server", "sh -c 'echo no licence; exit 3' {socket}"), "no licence"),
        ):
            done = self.vfio_user("run", *arguments)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn(said, done.stderr)
            self.assertNotIn("Traceback", done.stderr)

    def test_boot_gives_a_person_a_shell(self) -> None:
        terminal = Terminal([*VFIO_USER, "boot", "--device", "edu"], Path(self.workdir))
        terminal.wait_for("Ctrl-]")
        terminal.wait_for("# ")
        terminal.type("echo 6*7=$((6*7)); edu liveness; sh -c 'echo asleep $((40+2)); exec sleep 100'\n")
        terminal.wait_for("6*7=42")
        terminal.wait_for('"ok": true')
        terminal.wait_for("asleep 42")  # before that it would be for the shell, which goes on with the next command
        terminal.type("\x03")  # to the guest, not to us
        terminal.type("echo after $((1+1))\n")
        terminal.wait_for("after 2")
        terminal.type("\x1d")
        self.assertEqual(terminal.end(), 0, terminal.shown)

    def test_boot_ends_with_its_input(self) -> None:
        """When all that came by the pipe is done: also a command that reads to the end, and a last line without one.

        :avocado: tags=nightly
        """
        for typed, shown in (
            ("", ()),
            ("seq 3000; cat\nas it is $((6*7))\n", ("\n3000\n", "as it is $((6*7))")),
            ("sleep 1; echo six times seven is $((6*7))", ("six times seven is 42",)),
        ):
            done = self.vfio_user("boot", typed=typed)
            self.assertEqual(done.returncode, 0, done.stderr)
            for text in shown:
                self.assertIn(text, done.stdout)

    def test_boot_names_what_became_of_the_guest(self) -> None:
        done = self.vfio_user("boot", typed="echo '<0>Kernel panic - not syncing: pretended' > /dev/kmsg; sleep 600\n")
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assertRegex(done.stderr, "failed: the guest 'guest' panicked: .*pretended")

    def test_a_server_that_cannot_migrate_is_refused_before_anything_is_migrated(self) -> None:
        (Path(self.workdir) / "fixed_edu.py").write_text(
            "from userdev_servers.edu import Edu\nclass FixedEdu(Edu):\n    migratable = False\n"
        )
        for command in (["migrate"], ["soak", "--hops", "3"]):
            done = self.vfio_user(*command, "--device", "fixed_edu:FixedEdu")
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertRegex(done.stderr, "FixedEdu cannot be migrated: ")
            self.assertNotIn("phase", done.stderr + done.stdout)

    def test_exec_is_as_if_the_command_were_run_here(self) -> None:
        done = self.vfio_user("exec", "--device", "edu", "--", "lspci -n -s 01:00; cat; echo bad >&2; exit 3")
        self.assertEqual((done.returncode, done.stderr), (3, "bad\n"))
        self.assertIn("1234:11e8", done.stdout)
        typed = self.vfio_user("exec", "--stdin", "--json", "--", "sh", "-c", "cat; kill -9 $$", typed="some words")
        document = json.loads(typed.stdout)
        self.assertEqual((typed.returncode, document["status"], document["stdout"]), (137, 137, "some words"))
        self.assertEqual(self.vfio_user("exec", "--timeout", "0.2", "--", "sleep", "60").returncode, 124)

    def test_hardware_is_what_the_command_line_says(self) -> None:
        words = ("--root-bus", "--modules", "uio,vfio_pci", "--cpus", "2", "--device", "edu", "--device", "qemu:edu")
        shown = "nproc; lspci -n | grep -c '^00:.*1234:11e8'; ls -d /sys/module/uio /sys/module/vfio_pci"
        done = self.vfio_user("exec", *words, "--", shown)
        self.assertEqual(done.stdout.split(), ["2", "2", "/sys/module/uio", "/sys/module/vfio_pci"], done.stderr)
        lacking = self.vfio_user("exec", "--fresh", "--modules", "uio,no_such", "--", "true")
        self.assertEqual(lacking.returncode, 125)
        self.assertIn("no kernel module 'no_such'", lacking.stderr)

    def test_the_printed_command_does_the_same_by_hand(self) -> None:
        commands = self.vfio_user("boot", "--device", "edu", "--print-command").stdout
        # What a person does: paste, but wait until the server listens.
        server, _, machine = commands.partition("\n")
        script = f"{server}\nuntil test -S dev0.sock; do sleep 0.05; done\nexec {machine}"
        terminal = Terminal(["bash", "-c", script], Path(self.workdir))
        terminal.wait_for("READY")
        terminal.type("edu liveness\n")
        terminal.wait_for('"ok": true')
        terminal.type("\x01x")  # QEMU's own key to end
        os.killpg(terminal.process.pid, signal.SIGTERM)
        terminal.end()

    def test_a_killed_run_leaves_nothing(self) -> None:
        terminal = Terminal([*VFIO_USER, "run", "--keep"], Path(self.workdir))
        terminal.wait_for("Ctrl-C ends it")
        children = psutil.Process(terminal.process.pid).children(recursive=True)
        self.assertEqual(len(children), 2, children)
        terminal.process.kill()
        terminal.process.wait()
        _, alive = psutil.wait_procs(children, timeout=10)
        self.assertEqual(alive, [])
        directory = Path(terminal.shown.partition("QMP ")[2].split()[0]).parent
        with Scratch():  # what the next run does first
            self.assertFalse(directory.exists())
        terminal.end()

    def test_ctrl_c_ends_a_run_in_order(self) -> None:
        terminal = Terminal([*VFIO_USER, "run", "--keep"], Path(self.workdir))
        terminal.wait_for("Ctrl-C ends it")
        children = psutil.Process(terminal.process.pid).children(recursive=True)
        directory = Path(terminal.shown.partition("QMP ")[2].split()[0]).parent
        os.kill(terminal.process.pid, signal.SIGINT)
        self.assertEqual(terminal.end(), 0, terminal.shown)
        self.assertFalse(any(child.is_running() for child in children))
        self.assertFalse(directory.exists())

    def vfio_user(self, *arguments: str, typed: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((self.workdir, os.environ.get("PYTHONPATH", "")))}
        environment["VFIO_USER_RESULTS"] = self.outputdir
        return subprocess.run(
            [*VFIO_USER, *arguments],
            cwd=self.workdir,
            env=environment,
            input=typed,
            capture_output=True,
            text=True,
            check=False,
        )
