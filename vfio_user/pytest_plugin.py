"""Guests and devices as pytest fixtures; pytest loads this by itself where vfio-user is installed (docs/testing.md).

    @pytest.mark.guest(device="edu")
    def test_the_guest_sees_the_device(guest):
        assert "1234:11e8" in guest.succeed("lspci -n")

Fixtures: `lab` (guests, servers, migrations), `guest` (one that is booted as the marker says), `device`, `server` and
`client`, or `front_end` of a virtio device (a device in this process and its other side, without a guest).
"""

from __future__ import annotations

import glob
import hashlib
import inspect
import os
import re
import shutil
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import pytest

from vfio_user.extras import needing

if TYPE_CHECKING:
    # Imported where they are needed: a pytest that uses none of this does not wait for it.
    from userdev.errors import UserError, VerdictError
    from vfio_user.client import Client
    from vfio_user.device import PciDevice
    from vfio_user.harness.booted_guest import BootedGuest
    from vfio_user.harness.lab import Lab
    from vfio_user.harness.verdicts import Trial
    from vfio_user.server import Server
    from vhost_user.backend import Server as VirtioServer
    from vhost_user.device import VhostDevice
    from vhost_user.frontend import FrontEnd

_MARKERS = (
    "guest(device=..., image=..., iommu=..., cpus=..., ...): what `Lab.boot` makes for the fixture `guest`",
    "device(name, **options): the device of the fixtures `device`, `server`, `client`, `front_end`, named as a guest's",
    "known_issue(id): the test has to fail as this known issue says, where the QEMU has it",
)


class DeviceWarning(UserWarning):
    """The own code of a guest's device raised, and the test passes all the same."""


class FaultWarning(UserWarning):
    """A rule of the faults of a test never acted: what it is for was not tried."""


_FAILED: pytest.StashKey[BaseException] = pytest.StashKey()
_TRIAL: pytest.StashKey[Trial] = pytest.StashKey()
_OF_ONE_RUN: tuple[pytest.StashKey[Any], ...] = (_FAILED, _TRIAL)
_RUNS: pytest.StashKey[int] = pytest.StashKey()
"""How often a test was run: plugins run those again which fail, and what was seen of that is kept."""
_OF_VIRTIO = ("vhost-user:", "vhost-user-")
_NO_FAILURES = (pytest.skip.Exception, pytest.xfail.Exception)
_RESULTS = "results"
_ROOM = "make room, or name a folder on a larger disk by --vfio-results"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of the fixtures."""
    group = parser.getgroup("vfio-user", "guests and vfio-user devices")
    group.addoption("--qemu", metavar="PATH", help="the QEMU of the fixture lab, instead of the one that is found")
    group.addoption("--interpose", action="store_true", help="put an interposer before every server of the lab")
    group.addoption("--fresh", action="store_true", help="boot every guest of the fixture guest, from no checkpoint")
    group.addoption(
        "--vfio-results", metavar="FOLDER", default=_RESULTS, help="where each test's evidence goes (default: results)"
    )
    group.addoption(
        "--bundle",
        metavar="DIR|auto",
        help="keep what does a test of the lab again; auto: of those that fail",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Add the markers, and refuse options that are empty.

    Raises:
        UsageError: one is, as a variable that is not set leaves it.
    """
    for flag in ("--qemu", "--vfio-results", "--bundle"):
        if (value := config.getoption(flag)) is not None and not value.strip():
            raise pytest.UsageError(f"{flag} is empty, as a variable that is not set would leave it: leave it out")
    for line in _MARKERS:
        config.addinivalue_line("markers", line)


@pytest.fixture
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A `Lab` of this test: what it starts ends with the test, and a failure leaves evidence in a folder of its own."""
    from userdev.errors import UserError

    try:
        with needing("harness", "the fixture lab"):
            from vfio_user.bundle import AUTO, keeping_pytest
            from vfio_user.harness.cell import Cell
            from vfio_user.harness.verdicts import trial
    except UserError as error:
        pytest.fail(f"{error}: {error.hint}", pytrace=False)

    option = request.config.getoption
    begun_in = request.config.invocation_params.dir  # wherever a test goes
    name = folder_name(request.node.nodeid)
    request.node.stash[_RUNS] = run = request.node.stash.get(_RUNS, 0) + 1
    folder = begun_in / option("--vfio-results") / (f"{name}.run{run}" if run > 1 else name)
    bundle = option("--bundle") or ""
    cell = Cell(qemu=option("--qemu") or "", interpose=option("--interpose"), trace=bool(bundle))
    options = [*(["--interpose"] if cell.interpose else []), *(["--fresh"] if option("--fresh") else [])]
    place = bundle if bundle in ("", AUTO) else str(begun_in / bundle / folder.name)
    keeping = keeping_pytest(request.node.nodeid, options, cell.qemu, place)
    keeping.folder = folder
    for earlier in (folder, *(folder.parent.glob(f"{glob.escape(name)}.run*") if run == 1 else ())):
        shutil.rmtree(earlier, ignore_errors=True)  # its page and cores would be taken for this one's
    with keeping, trial(request.node.nodeid, folder=folder, cell=cell) as made:
        request.node.stash[_TRIAL] = made
        yield made.lab
        failed = request.node.stash.get(_FAILED, None)
        if failed is not None and made.lab.failure is None:
            made.lab.failure = _told(failed)
        keeping.failure = failed if isinstance(failed, Exception) else made.lab.failure
    for exception in made.unnoticed():
        what = f"{exception.sentence}, beside a test that passes; its log is in {made.lab.folder}"
        file, line = exception.source or (str(request.path), 0)
        warnings.warn_explicit(what, DeviceWarning, file, line)
    for rule in made.untried:
        warnings.warn_explicit(f"of the faults of this test {rule}", FaultWarning, str(request.path), 0)


@pytest.fixture
def guest(request: pytest.FixtureRequest, lab: Lab) -> BootedGuest:
    """A running guest, as the marker `guest` says: its keywords are the arguments of `Lab.boot`."""
    mark = request.node.get_closest_marker("guest")
    if mark is not None:
        from vfio_user.harness.command_line import HardwareOptions

        _check_keywords(mark, lab.boot, *HardwareOptions.__annotations__)
    wanted: dict[str, Any] = {"fresh": request.config.getoption("--fresh"), **(mark.kwargs if mark else {})}
    return lab.boot(*(mark.args if mark else ()), **wanted)


@pytest.fixture
def device(request: pytest.FixtureRequest) -> Iterator[PciDevice | VhostDevice]:
    """The device that the marker `device` names, with its options; or override this fixture with one of your own.

    The name is a string: a marker whose only argument is a class decorates the class.
    """
    from userdev.errors import UserError
    from vfio_user.server.catalogue import DEVICES
    from vhost_user.backend.catalogue import DEVICES as VIRTIO_DEVICES

    mark = request.node.get_closest_marker("device")
    if mark is None:
        pytest.fail('no device is named: mark the test with @pytest.mark.device("module:Class")', pytrace=False)
    if len(mark.args) != 1 or not isinstance(mark.args[0], str):
        raise UserError("the marker device names one device", hint='@pytest.mark.device("module:Class", option=1)')
    [name] = mark.args
    device_class: type[PciDevice | VhostDevice]
    device_class = (VIRTIO_DEVICES if name.startswith(_OF_VIRTIO) else DEVICES).find(name)
    _check_keywords(mark, device_class)
    made = device_class(**mark.kwargs)
    yield made
    made.close()


def _check_keywords(mark: pytest.Mark, called: Callable[..., object], *more: str) -> None:
    """Compare a marker's keywords with what they are given to, and with what its `**` stands for.

    Raises:
        UserError: one is none of these.
    """
    from userdev.errors import UserError, meant

    parameters = inspect.signature(called).parameters.values()
    names = [*(each.name for each in parameters if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)), *more]
    if not more and any(each.kind is each.VAR_KEYWORD for each in parameters):
        return  # what its author does with them is theirs
    for name in mark.kwargs:
        if name not in names:
            what = f"the marker {mark.name} says {name}=, which {called.__qualname__} does not take"
            raise UserError(what, hint=f"{meant(name, names)}it takes: {', '.join(names) or 'nothing'}")


@pytest.fixture
def server(
    device: PciDevice | VhostDevice, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server | VirtioServer]:
    """A `Server` of the fixture `device`, in this process: of vhost-user where that is a virtio device."""
    from vfio_user.device import PciDevice
    from vfio_user.server import Server
    from vhost_user.backend import Server as VirtioServer

    path = str(tmp_path_factory.mktemp("vfu") / "s")
    with Server(device, path) if isinstance(device, PciDevice) else VirtioServer(device, path) as serving:
        yield serving


@pytest.fixture
def client(server: Server | VirtioServer) -> Iterator[Client]:
    """A client that is connected to the fixture `server`."""
    from vfio_user.client import Client
    from vfio_user.server import Server

    if not isinstance(server, Server):
        pytest.fail(
            f"{type(server.device).__name__} is a virtio device, of which no client is: take front_end", pytrace=False
        )
    connected = Client.connect(server.listener.address)
    try:
        yield connected
    finally:
        connected.close()


@pytest.fixture
def front_end(server: Server | VirtioServer) -> Iterator[FrontEnd]:
    """A front-end that has negotiated with the fixture `server`, of a virtio device, and shares memory with it."""
    from vhost_user.backend import Server as VirtioServer
    from vhost_user.frontend import FrontEnd

    if not isinstance(server, VirtioServer):
        pytest.fail("a vfio-user device has no front-end: take client", pytrace=False)
    with FrontEnd(server.listener.address) as connected:
        connected.negotiate()
        connected.share_memory()
        yield connected


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, object, object]:
    """Run the test within the known issues that its markers name; one that was seen makes it XFAIL."""
    with ExitStack() as named:
        for mark in pyfuncitem.iter_markers("known_issue"):
            guest: Any = pyfuncitem.funcargs.get("guest")
            if guest is None:
                pytest.fail("the marker known_issue needs the fixture guest", pytrace=False)
            named.enter_context(pyfuncitem.stash[_TRIAL].known_issue(mark.args[0], guest))
        result = yield
    if (made := pyfuncitem.stash.get(_TRIAL, None)) and made.seen:
        pytest.xfail("; ".join(made.seen))
    return result


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Look at what the test's markers name, before a guest is booted for it; a test that is run again begins anew.

    Raises:
        UserError: there is no such known issue, or none is named.
    """
    from userdev.errors import UserError

    for of_a_run_before in _OF_ONE_RUN:
        if of_a_run_before in item.stash:
            del item.stash[of_a_run_before]
    for mark in item.iter_markers("known_issue"):
        from vfio_user.harness.known_issues import known_issue  # what it needs comes with an extra

        if len(mark.args) != 1:
            raise UserError("the marker known_issue names no issue", hint='@pytest.mark.known_issue("ID")')
        known_issue(mark.args[0])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Leave a page where a fixture has failed at its end: its test's lab was ended as one of a test that passed."""
    try:
        return (yield)
    except (Exception, pytest.fail.Exception) as failure:
        made = item.stash.get(_TRIAL, None)
        if made is not None:
            made.fails_at_last(_told(failure))
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Say in our errors' own words what went wrong, without this package's lines, and where the evidence is."""
    from userdev.errors import FULL, UserError, VerdictError

    error = call.excinfo.value if call.excinfo else None
    is_full = isinstance(error, OSError) and error.errno in FULL
    is_told = is_full or isinstance(error, UserError | VerdictError | DeviceWarning | FaultWarning)
    if error is None or not is_told or item.config.getoption("fulltrace"):
        report = yield
    else:
        authors = [entry for entry in _entries(error) if _is_authors(Path(entry.tb_frame.f_code.co_filename), item)]
        with _cut_behind(authors[-1]) if authors else nullcontext():
            report = yield
        if call.excinfo and not authors and report.failed:
            report.longrepr = call.excinfo.getrepr(style="value", chain=False)
    ended = call.excinfo.value if call.excinfo else None  # other plugins have changed it where it skips the test
    if ended is not None and not isinstance(ended, _NO_FAILURES):
        item.stash.setdefault(_FAILED, ended)
    if report.failed:
        made = item.stash.get(_TRIAL, None)
        said = (
            ("first cause", made.lab.cause_so_far(error) if made and error else ""),
            ("evidence", str(made.lab.folder) if made else ""),
            ("what was seen", getattr(error, "evidence", "")),
            ("what to do", _ROOM if is_full else getattr(error, "hint", "")),
        )
        report.sections += [(title, text) for title, text in said if text]
    return report


def _told(failure: BaseException) -> UserError | VerdictError:
    """A failure as one of our errors, of which evidence tells."""
    from userdev.errors import UserError, VerdictError

    return failure if isinstance(failure, UserError | VerdictError) else VerdictError(str(failure))


def _entries(error: BaseException) -> Iterator[TracebackType]:
    entry = error.__traceback__
    while entry is not None:
        yield entry
        entry = entry.tb_next


def _is_authors(path: Path, item: pytest.Item) -> bool:
    """Whether a line of a traceback is in the tests, or in what they use: neither this package's nor what runs it."""
    from userdev.serving.authored import is_authors

    return path == item.path or (is_authors(str(path)) and "site-packages" not in path.parts)


@contextmanager
def _cut_behind(entry: TracebackType) -> Iterator[None]:
    """A block in which a traceback ends with this entry."""
    rest, entry.tb_next = entry.tb_next, None
    try:
        yield
    finally:
        entry.tb_next = rest


def folder_name(node: str) -> str:
    """A folder's name for a test's id: `tests/test_x.py::test_y[a]` is `tests-test_x.py-test_y-a`.

    No other test has it: where more is lost of the id than its own signs, a few of its digest's follow.
    """
    name = re.sub(r"[^\w.]+", "-", node).strip("-")
    short = os.fsencode(name)[:_LONGEST_NAME].decode(errors="ignore")
    if short == name and _TOLD_BY_ITS_NAME.fullmatch(node):
        return name
    return f"{short}-{hashlib.sha256(os.fsencode(node)).hexdigest()[:8]}"


_LONGEST_NAME = 200
"""Bytes, of the 255 that a folder's may have."""
_TOLD_BY_ITS_NAME = re.compile(r"[\w./]+(::\w+)*(\[[\w.]+(-[\w.]+)*\])?")
