"""Settings of all unit tests."""

from __future__ import annotations

import contextlib
import gc
import importlib
import itertools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest
from _pytest.runner import runtestprotocol
from hypothesis import settings
from hypothesis.internal.constants_ast import constants_from_module, is_local_module_file

from tests.descriptors import Descriptors
from tests.forked_starts import ENOUGH, ForkedStarts
from vfio_user.client import Client, EventFd
from vfio_user.client.connection import ClientConnection

T = TypeVar("T")

# How long an example takes says something about the machine's load, not about the code; `timeout` ends what hangs.
# The examples are the same every time and everywhere, so that a verdict changes with the code alone. (Hypothesis by
# itself does so where CI is in the environment, and only there.) `--hypothesis-profile search` looks for new ones.
settings.register_profile("vfio-user", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True, derandomize=False)
settings.load_profile("vfio-user")

# What a shell starts with & ignores Ctrl-C, and so would the programs that tests interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Nor is a slow answer a fault: what a test waits for is the event, and this is when it gives up. A test of patience
# itself says how much it has.
PATIENCE = 60.0
CONNECT = vars(ClientConnection)["connect"].__func__
for function in (Client.__init__, CONNECT, Client.serve_until, Client.wait_interrupt, EventFd.wait):
    assert "timeout" in function.__annotations__, function
    if function.__kwdefaults__ and "timeout" in function.__kwdefaults__:
        function.__kwdefaults__["timeout"] = PATIENCE
    else:
        function.__defaults__ = (PATIENCE,)


MOST_YOUNG = (50_000, 20, 10)
"""Objects of each age before they are looked through: Python's 700 are a few lines of a test."""


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Have the collector of garbage leave alone what lasts to the end: thousands of tests, and their modules.

    It looked through all of it again and again: a quarter of the time that tests took which make many objects. Nor is
    it looked through once: what little collecting leaves behind is not worth that. What tests make is young for as
    long as they run, so that a look at what is young finds all that they have dropped.
    """
    gc.disable()
    try:
        _import_by_turns(session.config)
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(*MOST_YOUNG)
        gc.enable()


def _import_by_turns(config: pytest.Config) -> None:
    """Import the tests of a folder in each worker from another one on, and have Hypothesis read our modules likewise.

    In a fresh checkout each compiled all of them with their asserts, 8 s of processor time, and looked through ours for
    constants to draw, 1.5 s: so it finds most of them as others have left them. What cannot be imported is told when it
    is collected.
    """
    worker: Mapping[str, Any] = getattr(config, "workerinput", {})
    if not worker:
        return
    turn, turns = int(worker["workerid"].removeprefix("gw")), worker["workercount"]
    folders = [config.invocation_params.dir / arg for arg in config.args if "::" not in arg]
    for path in _from_turn([path for folder in folders for path in sorted(folder.rglob("test_*.py"))], turn, turns):
        with contextlib.suppress(Exception, pytest.skip.Exception):
            importlib.import_module(".".join(path.relative_to(config.rootpath).with_suffix("").parts))
    files = {name: str(getattr(module, "__file__", "")) for name, module in sorted(sys.modules.items())}
    ours = [sys.modules[name] for name, file in files.items() if file.endswith(".py") and is_local_module_file(file)]
    for module in ours[turn::turns]:  # each its own: it reads what they all have left once more, when it has collected
        constants_from_module(module)


def _from_turn(all_of_them: list[T], turn: int, turns: int) -> list[T]:
    """All of them, those first that are a worker's own share."""
    begin = len(all_of_them) * turn // turns
    return all_of_them[begin:] + all_of_them[:begin]


def pytest_configure(config: pytest.Config) -> None:
    """Give tests that need no network an empty cache: what an earlier stage fetched decides nothing here.

    On a new machine nothing is there yet, and a verdict must not be another one then. Workers inherit it.
    """
    if "not network" in config.option.markexpr and not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="vfio-user-cache-", ignore_cleanup_errors=True)
        os.environ["VFIO_USER_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.hookimpl(wrapper=True)
def pytest_report_to_serializable(config: pytest.Config) -> Generator[None, dict[str, Any], dict[str, Any]]:
    """Send a worker's reports as one text each: value by value, as xdist sends them, takes five times as long."""
    report = yield
    return {"json": json.dumps(report)} if hasattr(config, "workerinput") else report


@pytest.hookimpl(tryfirst=True)
def pytest_report_from_serializable(data: dict[str, Any]) -> None:
    """Make such a text what pytest has made, which goes on with it."""
    if "json" in data:
        data.update(json.loads(data.pop("json")))
        if isinstance(data.get("longrepr"), list):  # where a test was skipped, and why
            data["longrepr"] = tuple(data["longrepr"])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Have a worker report what became of a test alone: that it begins, that it has its fixtures and has given them
    back were half of what workers said, each time through to the terminal, which shows nothing of it.
    """
    options = item.config.option
    if not hasattr(item.config, "workerinput") or options.durations is not None or options.xmlpath:
        return None
    for report in runtestprotocol(item, log=False, nextitem=nextitem):
        if report.when == "call" or not report.passed:
            item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


MANY = 1000
"""Tests, of which some hundreds start programs."""
STARTS = ForkedStarts()
STARTS.install()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Have each worker begin with a share of what takes long: what was begun last was waited for by all others.

    A worker begins with as many tests as another, in their order (--dist worksteal). Those of a module, which may share
    what takes long, stay together.
    """
    workers: int = getattr(config, "workerinput", {}).get("workercount", 1)
    modules: dict[Path, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("long") is not None:
            modules.setdefault(item.path, []).append(item)
    rest = iter([item for item in items if item.get_closest_marker("long") is None])
    ordered: list[pytest.Item] = []
    for worker in range(workers):
        share = [item for module in list(modules.values())[worker::workers] for item in module]
        number = (len(items) - len(ordered)) // (workers - worker) - len(share)
        ordered += [*share, *itertools.islice(rest, max(number, 0))]
    items[:] = [*ordered, *rest]


def pytest_collection_finish(session: pytest.Session) -> None:
    """Where most tests are run, each worker starts programs enough: none plainly."""
    if len(session.items) >= MANY:
        STARTS.starts = ENOUGH


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where open descriptors are compared, what earlier tests dropped closes its own now, and not meanwhile.

    What is left then is what lasts, and is left alone from now on: to look through all of it took 100 ms for each test.
    """
    STARTS.prepare()
    if isinstance(item, pytest.Function) and vars(item.module).keys() & {"open_fds", "fd_count"}:
        gc.collect()
        gc.freeze()


DISK = "/var/tmp"
"""For what outlasts a machine's start (hier(7)); /tmp is in memory on some."""

OPEN = pytest.StashKey[Descriptors]()
"""What was open before a test had its own fixtures: those of its module are there."""


@pytest.fixture(autouse=True)
def _same_environment(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail who leaves variables to the tests behind it, where they decide what is forked, found and waited for.

    What is left of folders to import from is taken away: avocado 113 adds one for each import that it looks at,
    hundreds after a few tests, and all that is imported later is looked for in each.
    """
    request.node.stash[OPEN] = Descriptors.now()
    before, path = _environment(), sys.path[:]
    yield
    if sys.path != path:
        sys.path[:] = path
    after = _environment()
    left = {os.fsdecode(name) for name, _ in before.items() ^ after.items()} - {"PYTEST_CURRENT_TEST"}
    if left:
        for name in left:
            os.environ.pop(name, None)
        os.environb.update({name: value for name, value in before.items() if os.fsdecode(name) in left})
        pytest.fail(f"this test leaves the environment otherwise: {', '.join(sorted(left))}")


def _environment() -> dict[bytes, bytes]:
    """All variables, without what `os.environ` does for each: it took 0.2 ms for each test."""
    return dict(os.environ._data)  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, None, None]:
    """Let who has failed leave what it likes: its traceback keeps that."""
    try:
        return (yield)
    except BaseException:
        del item.stash[OPEN]
        raise


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Fail who leaves descriptors open: not before its log is gone, in which errors have all that led to them, and
    what its fixtures gave it.
    """
    yield
    vars(item).get("funcargs", {}).clear()
    before = item.stash.get(OPEN, None)
    if before is not None and (left := before.left()):
        pytest.fail(f"this test leaves descriptors open: {', '.join(left)}", pytrace=False)


ON_DISK = (
    *("after_failure", "before_and_after", "block_", "conformance", "device_options", "device_state", "fuzz_"),
    *("interposer_survival", "new_servers", "nvme_", "order", "restoring", "saved_values", "short_io", "vhost_"),
)
"""How the names of modules go on behind `test_` that have images for disks."""


@pytest.fixture
def tmp_path(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A folder, and on a disk where an image may be: in memory, where `scripts/test` has the others, no file can be
    read as far as that takes no wait (RWF_NOWAIT), and another way of servers was tried.
    """
    if not request.path.stem.removeprefix("test_").startswith(ON_DISK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(prefix="vfio-user-", dir=DISK, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture
def plain_starts() -> Iterator[None]:
    """For tests of how a program starts: each has an interpreter of its own, as for everybody else."""
    with STARTS.left_out():
        yield
