"""`vfio-user test-e2e`: the guest-driven tests, by avocado's job API."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TextIO

import click
import yaml

from userdev.counted import counted
from userdev.errors import UserError, VerdictError
from userdev.process.child import is_full
from vfio_user.avocado_job.ending import Ending
from vfio_user.avocado_job.job import (
    JobHangs,
    check_settings,
    chosen_tests,
    complete_junit,
    make_job,
    run_bounded,
    usual_settings,
)
from vfio_user.avocado_job.naming import check_tags, name_tests
from vfio_user.avocado_job.no_tests import passed_over
from vfio_user.avocado_job.selection import all_tests, filters, package_folders, reference, suite_folder
from vfio_user.avocado_job.surroundings import prepare_environment, provision
from vfio_user.avocado_job.whiteboard import tried_by
from vfio_user.bundle import bundle_of, moved
from vfio_user.bundle.keeping import mention
from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._bundling import bundled_cell, place_of_bundles, with_bundle_options
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_tests
from vfio_user.cli._durations import LEAST, Finite
from vfio_user.cli._hardware import capture_dma_option, guest_hardware
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.harness.artifacts import results_root
from vfio_user.harness.cell import Cell, parse_servers
from vfio_user.harness.command_line import HardwareOptions
from vfio_user.harness.evidence import cause_of
from vfio_user.harness.known_issues import XFAIL
from vfio_user.page.names import INDEX

# Two guests under TCG fill two processors; a third only makes timeouts of slowness.
SHOWN = 240
"""Characters of a cause that are printed; its page has all."""
MOST_AT_ONCE = 2


@click.command(cls=CommandLine)
@click.argument("tests", nargs=-1, shell_complete=complete_tests)
@click.option("-t", "--tag", "tags", multiple=True, help="Only tests with these avocado tags: `-t irq`, `-t dma,msix`.")
@click.option("--nightly", is_flag=True, help="Also those that take long, which have the tag `nightly`.")
@click.option("--interpose", is_flag=True, help="Put an interposer before every server: the verdicts are the same.")
@click.option("--trace", is_flag=True, help="And have it record every message among the evidence of each test.")
@capture_dma_option()
@guest_hardware(of_tests=True)
@click.option(
    "--server", "servers", multiple=True, metavar="DEVICE=COMMAND", help="Another server of a device, with {socket}."
)
@click.option("--parallel", type=click.IntRange(1, MOST_AT_ONCE), default=MOST_AT_ONCE, show_default=True)
@click.option(
    "--timeout-factor", type=Finite(LEAST), help="Wait so much longer everywhere; by default VFIO_USER_TIMEOUT_SCALE."
)
@click.option("--list", "list_only", is_flag=True, help="Name the tests, and run none.")
@click.option("-o", "--option", "options", multiple=True, metavar="KEY=VALUE", help="Any setting of avocado's.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, for programs; what fails goes to stderr.")
@quiet_option("Say only what failed, and the counts.")
@click.option("--cell", "cell_text", default="", hidden=True, help="What a bundle says of a test's guests.")
@with_bundle_options
def command(
    tests: tuple[str, ...],
    tags: tuple[str, ...],
    nightly: bool,
    interpose: bool,
    trace: bool,
    capture_dma: bool,
    qemu: str | None,
    hardware: HardwareOptions,
    servers: tuple[str, ...],
    parallel: int,
    timeout_factor: float | None,
    list_only: bool,
    options: tuple[str, ...],
    as_json: bool,
    quiet: bool,
    cell_text: str,
    bundle: str,
    bundle_size: int,
) -> None:
    """Run guest-driven tests: TESTS are files, or FILE:CLASS.METHOD from `--list`; without any, this project's own.

    QEMU, hardware and servers are meant where a test asks for nothing else; a device with options is always ours.

    The project's own suite is in its repository; the nightly ones of it are left out unless they are asked for.

    Evidence of every test is under results/. The last line counts: N passed, N failed, N skipped; tests that showed a
    known issue of QEMU (XFAIL, see `vfio-user known-issues`) are counted in a line before it. The exit status is 0 when
    some test passed, or showed such an issue, and none failed.
    """
    if list_only:
        refuse_beside("--list names the tests, and runs none", "as_json")
    printed = Printed(sys.stdout, as_json=as_json)
    folder = suite_folder()
    chosen = [reference(test, folder) for test in tests] or all_tests(folder)
    settings = dict(_setting(option) for option in options)
    if settings:
        check_settings(settings)
    results = results_root()
    config: dict[str, Any] = {
        **usual_settings(results, parallel),
        "resolver.references": chosen,
        "filter.by_tags.tags": filters(tags, everything=nightly or bool(tests)),
        "filter.by_tags.include_empty": not tags,
    }
    if as_json or quiet:
        config["core.show"] = ["none"]
    root = folder.parent if folder else Path.cwd()
    cell = replace(
        _cell(Cell.of_text(cell_text), qemu, hardware, servers, interpose=interpose, trace=trace or capture_dma),
        capture_dma=capture_dma or Cell.of_text(cell_text).capture_dma,
        **bundled_cell(bundle, bundle_size),
    )
    into = place_of_bundles(bundle)
    prepare_environment(root, timeout_factor, cell, package_folders(chosen, root))
    here = Path.cwd()
    with contextlib.chdir(root):  # so that the names of tests do not begin with where the checkout is
        if tags:
            check_tags(tags, chosen)
        if list_only:
            for name in chosen_tests(make_job({**config, **settings, "run.dry_run.enabled": True})):
                click.echo(name)
            return
        job = make_job({**config, **settings})
        for suite in job.test_suites:
            name_tests(suite, here)
        for file in dict.fromkeys(each for each in chosen if ":" not in each):
            for sentence in passed_over(file):
                _say(f"warning: {sentence}")
        with Waiting(quiet=quiet) as waiting:
            provision(cell.qemu, waiting.tell)
        _run(
            job,
            explicit="task.timeout.running" in settings,
            into=into,
            printed=printed,
            servers=parse_servers(servers),
        )


@dataclass(frozen=True)
class Printed:
    """Where a run's results go: avocado, told to show nothing, puts another standard output in place of this one."""

    out: TextIO
    as_json: bool = False

    def say(self, text: str) -> None:
        """Tell people: beside what programs read, where there are some."""
        click.echo(text, file=sys.stderr if self.as_json else self.out)

    def json(self, whole: Mapping[str, Any]) -> None:
        """Tell programs."""
        click.echo(json.dumps(whole), file=self.out)


def _cell(
    before: Cell, qemu: str | None, hardware: HardwareOptions, servers: tuple[str, ...], *, interpose: bool, trace: bool
) -> Cell:
    """The cell of a run: what its command line says, over what a bundle says."""
    return replace(
        before,
        qemu=qemu or before.qemu,
        interpose=interpose or before.interpose,
        trace=trace or before.trace,
        hardware={**before.hardware, **hardware},
        servers={**before.servers, **parse_servers(servers)},
    )


def _setting(option: str) -> tuple[str, Any]:
    """KEY=VALUE as avocado's configuration has it: the value is a number, a truth value, a list or text, as in YAML."""
    key, equals, value = option.partition("=")
    if not equals or "." not in key:
        raise UserError(
            f"{option!r} is no setting of avocado's", hint="-o KEY=VALUE; `avocado config reference` has keys"
        )
    return key, yaml.safe_load(value)


def _say(message: str) -> None:
    click.echo(message, err=True)


def _run(job: Any, *, explicit: bool, into: Path | None, printed: Printed, servers: Mapping[str, str]) -> None:
    """Run a job, and say what came of it. `explicit`: whether it was said how long a test may take at all.

    `into` is the folder that tests' bundles are moved to, where that is not among their results, `servers` those that
    the run was given, by device.
    """
    ending = Ending()
    with job:
        try:
            status = run_bounded(job, ending, _say, explicit=explicit)
        except JobHangs as error:
            _complain(job, ending, into, printed)
            raise VerdictError(str(error), evidence=f"evidence: {job.logdir}") from None
    report(job, status, ending, into, printed)
    require_tried(servers, job.result.tests)


def require_tried(servers: Mapping[str, str], tests: Iterable[Mapping[str, Any]]) -> None:
    """See to it that each server that was given, by its device, was started for some test.

    Raises:
        UserError: one was not, so that what passed says nothing of it.
    """
    tried = {text for test in tests for text in tried_by(test)}
    unused = [device for device, command in servers.items() if command not in tried]
    if unused:
        hint = "they boot no such device, or give it options, which only ours has"
        raise UserError(f"no test started the server given for {', '.join(unused)}", hint=hint)


def first_causes(tests: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, str, Path]]:
    """For each test that left evidence of what went wrong: its name, the first cause, and the page that tells more."""
    for test in tests:
        folder = Path(test["logdir"]) / "data"
        if test["status"] in ("FAIL", "ERROR", "INTERRUPTED") and (cause := cause_of(folder)):
            yield str(test["name"]).rpartition(":")[2], cause, folder / INDEX


def _bundles(tests: Iterable[Mapping[str, Any]], into: Path | None) -> Iterator[Path]:
    """The bundles that tests have left, moved to `into` where that is said."""
    for test in tests:
        if (place := bundle_of(Path(test["logdir"]))) is not None:
            yield place if into is None else moved(place, into, str(test["name"]).rpartition("/")[2])


def brief(cause: str) -> str:
    """A cause on one line that can be read: the last of several, which says it; the beginning and end of a long one.

    A command, a trace or what a program said last may be in it.
    """
    lines = [line.strip() for line in cause.splitlines() if line.strip()]
    if not lines:
        return cause
    last = lines[-1]
    if len(last) > SHOWN:
        last = f"{last[: SHOWN * 2 // 3].rstrip()} ... {last[-SHOWN // 3 :].lstrip()}"
    return last if len(lines) == 1 else f"... {last}"


def per_minute(count: int, seconds: float) -> float:
    """The number of `count` things that a minute had."""
    return 60 * count / seconds if seconds > 0 else 0.0


def report(job: Any, status: int, ending: Ending, into: Path | None = None, printed: Printed | None = None) -> None:
    """Say what came of a job's tests; bundles of theirs are moved to `into`.

    Raises:
        VerdictError: tests failed.
        KeyboardInterrupt: somebody ended the run; what it was at is no failure.
        UserError: avocado could not do its work, or there was no space for what the tests write.
    """
    result = job.result
    if is_full(Path(job.logdir)) and not ending.came:
        raise UserError(f"{job.logdir}: no space is left there, so that nothing of this is a verdict")
    failed = _complain(job, ending, into, printed or Printed(sys.stdout))
    if ending.came:
        names = ", ".join(str(test["name"]).rpartition(":")[2] for test in ending.tests(job))
        click.echo(f"ended {f'in {names}' if names else 'between tests'}: that is no verdict", err=True)
        raise KeyboardInterrupt
    if failed:
        raise VerdictError(f"{failed} of {counted(result.tests_total, 'guest-driven test')} failed")
    if status or not (result.passed or result.warned or _known(result.tests)):
        raise UserError(f"avocado did not finish its job (status {status})", hint=f"its log: {job.logfile}")


def _complain(job: Any, ending: Ending, into: Path | None, printed: Printed) -> int:
    """First causes, where the evidence is, and the counts; JUnit's file is completed. How many tests failed."""
    result = job.result
    known = _known(result.tests)
    ended = ending.tests(job)
    complete_junit(Path(job.logdir) / "results.xml", result.tests)
    causes = list(first_causes(test for test in result.tests if test not in ended))  # that of an end is no failure
    bundles = list(_bundles(result.tests, into))
    failed: int = result.failed + result.errors + result.interrupted - len(ended)
    passed, skipped = result.passed + result.warned, result.skipped + result.cancelled - known
    for name, cause, page in causes:
        shown = brief(cause)
        printed.say(f"{name}: {shown}\n  {'' if shown == cause else 'all of it: '}{page}")
    for bundle in bundles:
        printed.say(mention(bundle))
    if printed.as_json:
        counts = {"passed": passed, "failed": failed, "skipped": skipped, "known_issues": known}
        tests = [
            {
                "name": str(test["name"]),
                "status": str(test["status"]),
                "seconds": round(float(test.get("time_elapsed") or 0), 3),
                "reason": str(test.get("fail_reason") or ""),
                "evidence": str(test["logdir"]),
            }
            for test in result.tests
        ]
        whole = {**counts, "evidence": str(job.logdir), "tests": tests, "bundles": [str(bundle) for bundle in bundles]}
        printed.json(whole)
        return failed
    printed.say(f"evidence: {job.logdir}")
    printed.say(f"{per_minute(result.tests_run, job.time_elapsed):.1f} cases per minute")
    if known:
        printed.say(f"{known} showed a known issue of QEMU ({XFAIL})")
    printed.say(f"{passed} passed, {failed} failed, {skipped} skipped")
    return failed


def _known(tests: Iterable[Mapping[str, Any]]) -> int:
    return sum(str(test.get("fail_reason", "")).startswith(XFAIL) for test in tests)
