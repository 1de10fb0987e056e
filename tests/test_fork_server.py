"""A program that is forked for a test is what it is when an interpreter is started for it."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.device_kit import open_fds
from tests.fork_server import ROOT
from tests.forked_starts import ENOUGH, ForkedStarts
from tests.seeded_bugs.planting import environment
from userdev.errors import UserError
from userdev.process import spawn

FACTS = """
import ctypes, json, os, signal, sys
ctypes.CDLL(None).prctl(2, ctypes.byref(death := ctypes.c_int()), 0, 0, 0)  # PR_GET_PDEATHSIG
unlike = {"LINES", "COLUMNS"}  # readline gives them to the C library's environment alone, which a plain start has
print(json.dumps({
    "argv": sys.argv,
    "path": sys.path,
    "program": vars(sys.modules["__main__"]).get("__file__"),
    "folder": os.getcwd(),
    "environment": {name: value for name, value in os.environ.items() if name not in unlike},
    "parent": os.getppid(),
    "leads": [os.getpgid(0) == os.getpid(), os.getsid(0) == os.getpid()],
    "umask": os.umask(0),
    "descriptors": sorted(map(int, os.listdir("/proc/self/fd"))),
    "stdin": os.readlink("/proc/self/fd/0"),
    "death": death.value,
    "signals": {number: str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM)},
    "buffered": [sys.stdout.line_buffering, sys.stderr.line_buffering],
}))
"""


@pytest.fixture(scope="module")
def starts() -> Iterator[ForkedStarts]:
    """One of this module's own, that forks."""
    made = ForkedStarts()
    made.install()
    made.starts = ENOUGH
    made.prepare()
    yield made
    made.close()


@pytest.fixture
def device(tmp_path: Path) -> Path:
    (tmp_path / "facts.py").write_text(FACTS)
    return tmp_path / "facts.py"


def both(starts: ForkedStarts, start: Callable[[], Any]) -> tuple[Any, Any]:
    """What comes of a start that is forked, and of one that is not."""
    before = starts.forks
    forked = start()
    assert starts.forks == before + 1
    with starts.left_out():
        plain = start()
    return forked, plain


@pytest.mark.parametrize(
    "how",
    [
        SimpleNamespace(),
        SimpleNamespace(safe=True),
        SimpleNamespace(process_group=0),
        SimpleNamespace(start_new_session=True),
        SimpleNamespace(umask=0o31),
        SimpleNamespace(cwd="/"),
        SimpleNamespace(env={"OF_THE_TEST": "1"}),
        SimpleNamespace(env={"PYTHONPATH": ROOT}),
        SimpleNamespace(env={"PYTHONPATH": f"{ROOT}:{ROOT}"}),
        SimpleNamespace(stdin=subprocess.DEVNULL),
        SimpleNamespace(passes=True),
    ],
    ids=lambda how: ", ".join(vars(how)) or "nothing said",
)
def test_it_has_all_that_the_start_says(starts: ForkedStarts, device: Path, how: SimpleNamespace) -> None:
    options = vars(how).copy()
    safe = ["-P"] if options.pop("safe", False) else []
    inherited = os.open("/dev/null", os.O_RDONLY)
    if options.pop("passes", False):
        options["pass_fds"] = [inherited, 2]
    if "env" in options:
        options["env"] = {**os.environ, **options["env"]}
    command = [sys.executable, *safe, "-m", "vfio_user", "serve", f"{device}:Missing"]

    def facts() -> Any:
        done = subprocess.run(command, capture_output=True, text=True, **options)
        return json.loads(done.stdout), done.stderr, done.returncode

    forked, plain = both(starts, facts)
    os.close(inherited)
    assert forked == plain
    assert forked[0]["parent"] == os.getpid()
    assert forked[2] == 2


def test_it_can_be_killed_with_its_group_as_soon_as_it_is_there(starts: ForkedStarts, tmp_path: Path) -> None:
    """Whoever ends a server kills its group, and then waits for it."""
    command = [sys.executable, "-m", "vfio_user", "serve", "edu", "--socket-path", str(tmp_path / "socket")]
    before = starts.forks
    for _ in range(10):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert starts.forks == before + 10


def test_it_is_killed_with_its_owner_as_others_are(starts: ForkedStarts, device: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "vfio_user", "serve", f"{device}:Missing"]

    def death() -> Any:
        with (tmp_path / "log").open("w+b") as log:
            assert spawn(command, output=log).wait() == 2
            log.seek(0)
            return next(json.loads(line)["death"] for line in log if line.startswith(b"{"))

    assert both(starts, death) == (9, 9)


def test_what_is_prepared_and_executed_is_as_by_a_fork_of_this(starts: ForkedStarts, tmp_path: Path) -> None:
    inherited = os.open("/dev/null", os.O_RDONLY)
    environment = {**os.environ, "OF_THE_TEST": "1"}

    def facts() -> Any:
        with (tmp_path / "log").open("w+b") as log:
            command = [sys.executable, "-c", FACTS, "words"]
            assert (
                spawn(command, output=log, pass_fds=[inherited], environment=environment, folder=tmp_path).wait() == 0
            )
            log.seek(0)
            return json.loads(log.read())

    forked, plain = both(starts, facts)
    assert forked == plain
    assert (forked["death"], forked["parent"], forked["folder"]) == (9, os.getpid(), str(tmp_path))
    assert str(inherited) in map(str, forked["descriptors"])
    os.close(inherited)


def test_why_it_cannot_be_executed_is_told_as_by_a_fork_of_this(starts: ForkedStarts, tmp_path: Path) -> None:
    (tmp_path / "text").touch()
    before = starts.forks
    for name in ("./text", "./missing", "missing-from-every-path", "./text/below"):

        def why(name: str = name) -> Any:
            with pytest.raises(UserError) as told:
                spawn([name], output=subprocess.DEVNULL, folder=tmp_path)
            return str(told.value), told.value.hint

        forked, plain = both(starts, why)
        assert forked == plain, name
    assert starts.forks == before + 4
    with pytest.raises(subprocess.SubprocessError, match="preexec_fn"):
        subprocess.Popen(["true"], preexec_fn=partial(os.chdir, tmp_path / "none"))
    assert starts.forks == before + 5


def test_statuses_and_output_are_the_programs(starts: ForkedStarts) -> None:
    def said() -> Any:
        command = [sys.executable, "-m", "vhost_user", "serve", "rng", "--print-capabilities"]
        done = subprocess.run(command, capture_output=True, text=True)
        return done.returncode, done.stdout, done.stderr

    forked, plain = both(starts, said)
    assert forked == plain
    assert json.loads(forked[1])["type"] == "rng"


def test_nothing_of_it_stays_open_here(starts: ForkedStarts) -> None:
    before = open_fds()
    subprocess.run([sys.executable, "-m", "vfio_user", "--help"], stdout=subprocess.DEVNULL, check=True)
    assert open_fds() == before


def test_what_a_fork_cannot_have_is_started_plainly(starts: ForkedStarts) -> None:
    command = [sys.executable, "-m", "vfio_user", "--help"]
    before, limits = starts.forks, resource.getrlimit(resource.RLIMIT_FSIZE)
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, env={**os.environ, "PYTHONOPTIMIZE": "1"})
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, preexec_fn=lambda: None)
    subprocess.run([sys.executable, "-c", ""], check=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 30, limits[1]))
    try:
        subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert starts.forks == before


PLANTED = """
import subprocess, sys
from tests.forked_starts import ENOUGH, ForkedStarts
starts = ForkedStarts()
starts.install()
starts.starts = ENOUGH
starts.prepare()
subprocess.run([sys.executable, "-m", "vhost_user", "serve", "rng", "--print-capabilities"], check=True)
assert starts.forks == 1
starts.close()
"""


def test_a_planted_bug_is_in_what_is_forked(tmp_path: Path) -> None:
    path = Path(__file__).parent.parent / "servers/userdev_servers/rng.py"
    planted = path.read_text().replace("virtio_id = 4", "virtio_id = 44")
    change = SimpleNamespace(module="userdev_servers.rng", path=path, planted=planted)
    ran = subprocess.run(
        [sys.executable, "-c", PLANTED], env=environment(change, tmp_path), capture_output=True, text=True, check=True
    )
    assert json.loads(ran.stdout)["virtio-id"] == 44
