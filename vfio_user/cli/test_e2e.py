"""`vfio-user test-e2e`: the guest-driven tests, by avocado's job API."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import yaml

import vfio_user
from userdev.errors import UserError, VerdictError
from userdev.process.child import is_full
from vfio_user.cli import _avocado
from vfio_user.cli._hardware import guest_hardware
from vfio_user.harness.artifacts import RESULTS_VARIABLE
from vfio_user.harness.cell import Cell, parse_servers
from vfio_user.harness.command_line import HardwareOptions
from vfio_user.harness.evidence import INDEX, cause_of
from vfio_user.harness.image import ensure_image
from vfio_user.harness.known_issues import XFAIL
from vfio_user.harness.qemu import ensure_qemu
from vfio_user.harness.timeouts import SCALE_VARIABLE

IMAGES = ("minimal", "storage")
"""What the tests boot."""
NIGHTLY = "nightly"
"""The tag of tests that take too long for every change."""

# Two guests under TCG fill two processors; a third only makes timeouts of slowness.
MOST_AT_ONCE = 2


@click.command()
@click.argument("tests", nargs=-1)
@click.option("-t", "--tag", "tags", multiple=True, help="Only tests with these avocado tags: `-t irq`, `-t dma,msix`.")
@click.option("--nightly", is_flag=True, help="Also those that take long, which have the tag `nightly`.")
@click.option("--interpose", is_flag=True, help="Put an interposer before every server: the verdicts are the same.")
@guest_hardware(of_tests=True)
@click.option(
    "--server", "servers", multiple=True, metavar="DEVICE=COMMAND", help="Another server of a device, with {socket}."
)
@click.option("--parallel", type=click.IntRange(1, MOST_AT_ONCE), default=MOST_AT_ONCE, show_default=True)
@click.option("--timeout-factor", type=float, default=1.0, show_default=True, help="Wait so much longer everywhere.")
@click.option("--list", "list_only", is_flag=True, help="Name the tests, and run none.")
@click.option("-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="Any setting of avocado's.")
def command(
    tests: tuple[str, ...],
    tags: tuple[str, ...],
    nightly: bool,
    interpose: bool,
    qemu: str | None,
    hardware: HardwareOptions,
    servers: tuple[str, ...],
    parallel: int,
    timeout_factor: float,
    list_only: bool,
    options: tuple[str, ...],
) -> None:
    """Run guest-driven tests: TESTS are files, or FILE:CLASS.METHOD from `--list`; without any, this project's own.

    QEMU, hardware and servers are meant where a test asks for nothing else; a device with options is always ours.

    The project's own suite is in its repository; the nightly ones of it are left out unless they are asked for.

    Evidence of every test is under results/. The last line counts: N passed, N failed, N skipped; tests that showed a
    known issue of QEMU (XFAIL, see `vfio-user known-issues`) are counted in a line before it. The exit status is 0 when
    some test passed, or showed such an issue, and none failed.
    """
    folder = suite_folder()
    chosen = [reference(test, folder) for test in tests] or _all(folder)
    settings = dict(_setting(option) for option in options)
    if settings:
        _avocado.check_settings(settings)
    config: dict[str, Any] = {
        "resolver.references": chosen,
        "filter.by_tags.tags": filters(tags, everything=nightly or bool(tests)),
        "filter.by_tags.include_empty": not tags,
        "run.max_parallel_tasks": parallel,
        "run.results_dir": str(Path(os.environ.get(RESULTS_VARIABLE) or "results").absolute()),
        "run.status_server_auto": True,
        "core.show": ["app"],
        "job.run.result.html.enabled": True,
        "sysinfo.collect.enabled": False,
    }
    root = folder.parent if folder else Path.cwd()
    cell = Cell(qemu or "", interpose, hardware, parse_servers(servers))
    _prepare_environment(root, timeout_factor, cell)
    with contextlib.chdir(root):  # so that the names of tests do not begin with where the checkout is
        if list_only:
            for name in _chosen(_avocado.make_job({**config, **settings, "run.dry_run.enabled": True})):
                click.echo(name)
            return
        job = _avocado.make_job({**config, **settings})
        _provision(cell)
        _run(job, explicit="task.timeout.running" in settings)


def filters(tags: tuple[str, ...], *, everything: bool) -> list[str]:
    """Avocado's filters: each is tags with commas between them, of which a test has all, and none behind a minus.

    Without `everything` nightly tests are left out where they are not asked for.
    """
    if everything:
        return list(tags)
    return [tag if NIGHTLY in tag.split(",") else f"{tag},-{NIGHTLY}".strip(",") for tag in tags or ("",)]


def suite_folder() -> Path | None:
    """The folder of the project's own guest-driven tests: beside the package, or here. None outside of a checkout."""
    candidates = (parent / "avocado_tests" for parent in (Path(vfio_user.__file__).parent.parent, Path.cwd()))
    return next((folder for folder in candidates if folder.is_dir()), None)


def _all(folder: Path | None) -> list[str]:
    if folder is None:
        hint = "give FILEs with tests of your own, or run this in a checkout"
        raise UserError(
            "the project's own guest-driven tests are in its repository, and this is no checkout", hint=hint
        )
    return [_named(path, folder) for path in sorted(folder.glob("test_*.py"))]


def _named(path: Path, folder: Path | None) -> str:
    """A file as its tests are to be named: from the folder that has the project's own, where it is below that."""
    root, path = folder.parent if folder else Path.cwd(), path.absolute()
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def reference(test: str, folder: Path | None) -> str:
    """A test as avocado wants it, from a path, or a name of the folder with or without `test_` and `.py`.

    What is behind the colon is a class or CLASS.METHOD, and means these alone: for avocado it is a regular expression,
    which may be found anywhere in a name.
    """
    name, _, chosen = test.partition(":")
    own = (folder / f"test_{name}.py", folder / name, folder / f"{name}.py") if folder else ()
    for path in (Path(name), *own):
        if path.is_file():
            exactly = f"^{re.escape(chosen)}{'$' if '.' in chosen else '[.]'}"
            return _named(path, folder) + (f":{exactly}" if chosen else "")
    known = f"there are: {', '.join(Path(path).stem for path in _all(folder))}" if folder else ""
    raise UserError(f"there is no test file {name}", hint=known)


def _provision(cell: Cell) -> None:
    """Have QEMU and the image before a test's time runs, and say what takes long."""

    def say(message: str) -> None:
        click.echo(message, err=True)

    ensure_qemu(cell.qemu or None, progress=say)
    for image in IMAGES:
        ensure_image(image, progress=say)


def _setting(option: str) -> tuple[str, Any]:
    """KEY=VALUE as avocado's configuration has it: the value is a number, a truth value, a list or text, as in YAML."""
    key, equals, value = option.partition("=")
    if not equals or "." not in key:
        raise UserError(
            f"{option!r} is no setting of avocado's", hint="-o KEY=VALUE; `avocado config reference` has keys"
        )
    return key, yaml.safe_load(value)


def _prepare_environment(root: Path, timeout_factor: float, cell: Cell) -> None:
    """For the processes of avocado's runner: its programs, our package, the factor for every deadline, the cell."""
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    sys.path.insert(0, str(root))  # where avocado looks for the classes that tests derive from
    paths = (str(root), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if timeout_factor != 1.0:
        os.environ[SCALE_VARIABLE] = str(timeout_factor)
    os.environ.update(cell.exported())


def _chosen(job: Any) -> Sequence[str]:
    return [runnable.identifier for suite in job.test_suites for runnable in suite.tests]


def _run(job: Any, *, explicit: bool) -> None:
    """Run a job, and say what came of it. `explicit`: whether it was said how long a test may take at all."""
    longest, margin = _avocado.longest_timeout(_chosen(job)), _avocado.margin()
    if not explicit:
        for suite in job.test_suites:
            suite.config["task.timeout.running"] = longest + margin

    def say(message: str) -> None:
        click.echo(message, err=True)

    ending = _avocado.Ending()
    with job, ending.noticed(job):
        try:
            with _avocado.watched(job, longest + 2 * margin, say):
                status = job.run()
        except _avocado.JobHangs as error:
            _complain(job, ending)
            raise VerdictError(str(error), evidence=f"evidence: {job.logdir}") from None
    report(job, status, ending)


def first_causes(tests: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, Path]]:
    """For each test that left evidence of what went wrong: its name, the first cause, and the page that tells more."""
    for test in tests:
        folder = Path(test["logdir"]) / "data"
        if test["status"] in ("FAIL", "ERROR", "INTERRUPTED") and (cause := cause_of(folder)):
            yield str(test["name"]).rpartition(":")[2], cause, folder / INDEX


def per_minute(count: int, seconds: float) -> float:
    """The number of `count` things that a minute had."""
    return 60 * count / seconds if seconds > 0 else 0.0


def report(job: Any, status: int, ending: _avocado.Ending) -> None:
    """Say what came of a job's tests.

    Raises:
        VerdictError: tests failed.
        KeyboardInterrupt: somebody ended the run; what it was at is no failure.
        UserError: avocado could not do its work, or there was no space for what the tests write.
    """
    result = job.result
    if is_full(Path(job.logdir)) and not ending.came:
        raise UserError(f"{job.logdir}: no space is left there, so that nothing of this is a verdict")
    failed = _complain(job, ending)
    if ending.came:
        names = ", ".join(str(test["name"]).rpartition(":")[2] for test in ending.tests(job))
        click.echo(f"ended {f'in {names}' if names else 'between tests'}: that is no verdict", err=True)
        raise KeyboardInterrupt
    if failed:
        raise VerdictError(f"{failed} of {result.tests_total} guest-driven tests failed")
    if status or not (result.passed or result.warned or _known(result.tests)):
        raise UserError(f"avocado did not finish its job (status {status})", hint=f"its log: {job.logfile}")


def _complain(job: Any, ending: _avocado.Ending) -> int:
    """First causes, where the evidence is, and the counts; JUnit's file is completed. How many tests failed."""
    result = job.result
    known = _known(result.tests)
    ended = len(ending.tests(job))
    _avocado.complete_junit(Path(job.logdir) / "results.xml", result.tests)
    for name, cause, page in first_causes(result.tests):
        click.echo(f"{name}: {cause}\n  {page}")
    click.echo(f"evidence: {job.logdir}")
    click.echo(f"{per_minute(result.tests_run, job.time_elapsed):.1f} cases per minute")
    if known:
        click.echo(f"{known} showed a known issue of QEMU ({XFAIL})")
    failed: int = result.failed + result.errors + result.interrupted - ended
    skipped = result.skipped + result.cancelled - known
    click.echo(f"{result.passed + result.warned} passed, {failed} failed, {skipped} skipped")
    return failed


def _known(tests: Iterable[Mapping[str, Any]]) -> int:
    return sum(str(test.get("fail_reason", "")).startswith(XFAIL) for test in tests)
