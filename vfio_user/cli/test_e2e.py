"""`vfio-user test-e2e`: the guest-driven tests, by avocado's job API."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import click
import yaml

import vfio_user
from vfio_user.errors import UserError, VerdictError
from vfio_user.harness.artifacts import RESULTS_VARIABLE
from vfio_user.harness.deadline import SCALE_VARIABLE
from vfio_user.harness.evidence import INDEX, cause_of
from vfio_user.harness.image import ensure_image
from vfio_user.harness.interruption import interruptible
from vfio_user.harness.known_issues import XFAIL
from vfio_user.harness.qemu import ensure_qemu

IMAGES = ("minimal", "storage")
"""What the tests boot."""
NIGHTLY = "nightly"
"""The tag of tests that take too long for every change."""
INTERPOSE = "interpose"
"""Avocado's parameter that tells tests to put an interposer before every server."""

# Two guests under TCG fill two processors; a third only makes timeouts of slowness.
MOST_AT_ONCE = 2


@click.command()
@click.argument("tests", nargs=-1)
@click.option("-t", "--tag", "tags", multiple=True, help="Only tests with these avocado tags: `-t irq`, `-t dma,msix`.")
@click.option("--nightly", is_flag=True, help="Also those that take long, which have the tag `nightly`.")
@click.option("--interpose", is_flag=True, help="Put an interposer before every server: the verdicts are the same.")
@click.option("--parallel", type=click.IntRange(1, MOST_AT_ONCE), default=MOST_AT_ONCE, show_default=True)
@click.option("--timeout-factor", type=float, default=1.0, show_default=True, help="Wait so much longer everywhere.")
@click.option("--list", "list_only", is_flag=True, help="Name the tests, and run none.")
@click.option("-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="Any setting of avocado's.")
def command(
    tests: tuple[str, ...],
    tags: tuple[str, ...],
    nightly: bool,
    interpose: bool,
    parallel: int,
    timeout_factor: float,
    list_only: bool,
    options: tuple[str, ...],
) -> None:
    """Run the guest-driven tests: all but the nightly ones, or TESTS: files, or FILE:CLASS.METHOD from `--list`.

    Evidence of every test is under results/. The last line counts: N passed, N failed, N skipped; tests that showed a
    known issue of QEMU (XFAIL, see `vfio-user known-issues`) are counted in a line before it. The exit status is 0 when
    some test passed, or showed such an issue, and none failed.
    """
    Job, NoTests = _avocado()
    folder = tests_folder()
    config: dict[str, Any] = {
        "resolver.references": [_reference(folder, test) for test in tests] or _all(folder),
        "filter.by_tags.tags": filters(tags, everything=nightly or bool(tests)),
        "filter.by_tags.include_empty": not tags,
        "run.max_parallel_tasks": parallel,
        "run.results_dir": os.environ.get(RESULTS_VARIABLE) or str(Path("results").absolute()),
        "run.status_server_auto": True,
        "run.test_parameters": [(INTERPOSE, "yes")] if interpose else [],
        "core.show": ["app"],
        "job.run.result.html.enabled": True,
        "sysinfo.collect.enabled": False,
        **dict(_setting(option) for option in options),
    }
    _prepare_environment(folder, timeout_factor)
    try:
        job = Job.from_config({**config, "run.dry_run.enabled": list_only})
    except NoTests as error:
        raise UserError("no test is to be run", hint="`vfio-user test-e2e --list` names all that there are") from error
    if list_only:
        for suite in job.test_suites:
            for runnable in suite.tests:
                click.echo(runnable.identifier)
        return
    _provision()
    with interruptible(), job:
        _report(job, job.run())


def filters(tags: tuple[str, ...], *, everything: bool) -> list[str]:
    """Avocado's filters: each is tags with commas between them, of which a test has all, and none behind a minus.

    Without `everything` nightly tests are left out where they are not asked for.
    """
    if everything:
        return list(tags)
    return [tag if NIGHTLY in tag.split(",") else f"{tag},-{NIGHTLY}".strip(",") for tag in tags or ("",)]


def tests_folder() -> Path:
    """Where the guest-driven tests are: beside the package in a checkout, else here. Raises `UserError`."""
    for parent in (Path(vfio_user.__file__).parent.parent, Path.cwd()):
        folder = parent / "avocado_tests"
        if folder.is_dir():
            return folder
    raise UserError("the guest-driven tests are not here", hint="run this in a checkout of the project")


def _avocado() -> tuple[Any, type[Exception]]:
    """Its job, and what it raises when there is nothing to run."""
    try:
        from avocado.core.job import Job
        from avocado.core.suite import TestSuiteError
    except ImportError as error:
        raise UserError("avocado is not installed", hint="pip install 'vfio-user[test]'") from error
    return Job, TestSuiteError


def _all(folder: Path) -> list[str]:
    return [str(path) for path in sorted(folder.glob("test_*.py"))]


def _reference(folder: Path, test: str) -> str:
    """A test as avocado wants it, from a path, or a name of the folder with or without `test_` and `.py`."""
    name, colon, method = test.partition(":")
    candidates = (Path(name), folder / name, folder / f"{name}.py", folder / f"test_{name}.py")
    for path in candidates:
        if path.is_file():
            return f"{path.absolute()}{colon}{method}"
    raise UserError(
        f"there is no test file {name}", hint=f"there are: {', '.join(Path(path).stem for path in _all(folder))}"
    )


def _provision() -> None:
    """Have QEMU and the image before a test's time runs, and say what takes long."""

    def say(message: str) -> None:
        click.echo(message, err=True)

    ensure_qemu(progress=say)
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


def _prepare_environment(folder: Path, timeout_factor: float) -> None:
    """For the processes of avocado's runner: its programs, our package and the factor for every deadline."""
    os.environ["PATH"] = os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)))
    sys.path.insert(0, str(folder.parent))  # where avocado looks for the classes that tests derive from
    paths = (str(folder.parent), os.environ.get("PYTHONPATH", ""))
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
    if timeout_factor != 1.0:
        os.environ[SCALE_VARIABLE] = str(timeout_factor)


def first_causes(tests: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, Path]]:
    """Of each test that left evidence of what went wrong: its name, the first cause, and the page that tells more."""
    for test in tests:
        folder = Path(test["logdir"]) / "data"
        if test["status"] in ("FAIL", "ERROR", "INTERRUPTED") and (cause := cause_of(folder)):
            yield str(test["name"]).rpartition(":")[2], cause, folder / INDEX


def per_minute(count: int, seconds: float) -> float:
    """How many of `count` things a minute had."""
    return 60 * count / seconds if seconds > 0 else 0.0


def _report(job: Any, status: int) -> None:
    result = job.result
    failed = result.failed + result.errors + result.interrupted
    known = sum(str(test.get("fail_reason", "")).startswith(XFAIL) for test in result.tests)
    skipped = result.skipped + result.cancelled - known
    for name, cause, page in first_causes(result.tests):
        click.echo(f"{name}: {cause}\n  {page}")
    click.echo(f"evidence: {job.logdir}")
    click.echo(f"{per_minute(result.tests_run, job.time_elapsed):.1f} cases per minute")
    if known:
        click.echo(f"{known} showed a known issue of QEMU ({XFAIL})")
    click.echo(f"{result.passed + result.warned} passed, {failed} failed, {skipped} skipped")
    if failed:
        raise VerdictError(f"{failed} of {result.tests_total} guest-driven tests failed")
    if status or not (result.passed or result.warned or known):
        raise UserError(f"avocado did not finish its job (status {status})", hint=f"its log: {job.logfile}")
