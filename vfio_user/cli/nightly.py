"""`vfio-user nightly`: a plan's cells, run as one job of avocado's, and what they came to."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import click

from userdev.counted import counted
from userdev.errors import UserError, VerdictError, meant
from vfio_user.avocado_job.selection import package_folders, suite_folder
from vfio_user.avocado_job.surroundings import prepare_environment
from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._bundling import place_of_bundles, with_bundle_options
from vfio_user.cli._command import Group
from vfio_user.cli._completion import complete_cells
from vfio_user.cli._durations import LEAST, Finite
from vfio_user.cli._progress import quiet_option
from vfio_user.harness.artifacts import results_root
from vfio_user.harness.debian import Progress
from vfio_user.harness.debian import quiet as unsaid
from vfio_user.nightly.bundles import Bundles
from vfio_user.nightly.comparison import compare
from vfio_user.nightly.ended import end_those_killed
from vfio_user.nightly.history import REMEMBERED, History, estimate, results_of
from vfio_user.nightly.matrix import draw_plan, write_lock
from vfio_user.nightly.morning import JUNIT, MARKDOWN, PAGE
from vfio_user.nightly.night import Night, commit_of, only_one
from vfio_user.nightly.plan import read_plan
from vfio_user.nightly.slots import place_of
from vfio_user.nightly.staging import Stage, staged
from vfio_user.nightly.summary import FILE, Comparison, Status, Summary, read_summary


@click.group(cls=Group, invoke_without_command=True)
@click.option("--plan", "path", type=click.Path(dir_okay=False, path_type=Path), help="The plan, YAML.")
@click.option(
    "--only",
    multiple=True,
    metavar="PATTERN",
    shell_complete=complete_cells,
    help="Only these cells, or CELL/TEST: names, or patterns as a shell's ('edu*'). May be repeated.",
)
@click.option("--list", "list_only", is_flag=True, help="Name the cases, CELL/TEST, and run none.")
@click.option("--dry-run", is_flag=True, help="Say how many cases the cells have and how long they will take.")
@click.option("--locked", is_flag=True, help="Refuse to add combinations to the plan's lock file.")
@click.option("--wait", is_flag=True, help="Where a night runs already, wait until it has ended.")
@click.option(
    "--timeout-factor", type=Finite(LEAST), help="Wait so much longer everywhere; by default VFIO_USER_TIMEOUT_SCALE."
)
@click.option("--json", "as_json", is_flag=True, help="Print the night's summary.json; all else goes to stderr.")
@quiet_option("Say only what is wrong, the page, and the counts.")
@partial(with_bundle_options, recorded="Messages are recorded in cells that have an interposer.")
@click.pass_context
def command(
    context: click.Context,
    path: Path | None,
    only: tuple[str, ...],
    list_only: bool,
    dry_run: bool,
    locked: bool,
    wait: bool,
    timeout_factor: float | None,
    as_json: bool,
    quiet: bool,
    bundle: str,
    bundle_size: int,
) -> None:
    """Run the cells of a plan, or compare two nights (docs/nightly.md).

    The exit status is 0 when nothing is wrong that was not so in the last night of this plan, 1 when something is,
    2 when the night could not be done. Ctrl-C ends it in order, with a summary of what was run; again, at once.
    """
    if context.invoked_subcommand is not None:
        refuse_beside(f"{context.invoked_subcommand} runs no night", *context.params)
        return
    if path is None:
        raise click.UsageError("--plan says which plan")
    if as_json and (list_only or dry_run):
        raise click.UsageError("--json is of a night that is run: not with --list or --dry-run")
    place_of_bundles(bundle)
    bundles = Bundles(bundle, bundle_size)
    plan = read_plan(path)
    drawn = draw_plan(plan)
    folder = suite_folder()
    root = folder.parent if folder else Path.cwd()
    base = results_root() / "nightly"
    if drawn.is_new and locked:
        what = f"{plan.lock_path} does not have all combinations"
        raise UserError(what, hint="a night without --locked adds them; --list and --dry-run write nothing")
    named = [name for names in plan.references.values() for name in names]
    prepare_environment(root, timeout_factor, packages=package_folders(named, root))
    with contextlib.chdir(root):  # so that the names of tests do not begin with where the checkout is
        stage = staged(plan, drawn).limited(only)
        if list_only or dry_run:
            _show(stage, base, cases=list_only)
            return
        say = unsaid if quiet else partial(click.echo, file=sys.stderr)
        with only_one(base, wait=wait, say=say):
            if drawn.is_new:
                write_lock(plan, drawn)
                _say(f"{plan.lock_path} has the combinations from now on; keep it with the plan")
            end_those_killed(base, say)
            night = Night(stage.plan, drawn, base, commit=commit_of(root), bundles=bundles)
            _run(night, stage, base, say, as_json=as_json)


def _say(message: str) -> None:
    click.echo(message, err=True)


def _show(stage: Stage, base: Path, *, cases: bool) -> None:
    planned = [case for found in stage.cases().values() for case in found]
    if cases:
        for case in planned:
            click.echo(case.id)
        return
    for cell in dict.fromkeys(case.cell.id for case in planned):
        click.echo(f"{cell}: {sum(case.cell.id == cell for case in planned)}")
    if slots := stage.plan.text.slots:
        click.echo(
            f"{counted(len(slots), 'slot')} for {counted(stage.plan.text.at_once, 'case')} at once; none was asked"
        )
    click.echo(_estimate(stage, base))


def _estimate(stage: Stage, base: Path) -> str:
    planned = [(case.id, case.test) for found in stage.cases().values() for case in found]
    try:
        nights = History(base).latest(stage.plan.text.name, REMEMBERED)
    except UserError as error:  # locked by who looks at it, say, which is no reason for having no night
        return f"{counted(len(planned), 'case')}; how long that takes is not known: {error}"
    return str(estimate(planned, nights, stage.plan.text.at_once))


def _run(night: Night, stage: Stage, base: Path, say: Progress, *, as_json: bool) -> None:
    say(_estimate(stage, base))
    out, err = sys.stdout, sys.stderr
    try:
        summary = night.run(stage, place_of(stage.plan), say)
    finally:
        sys.stdout, sys.stderr = out, err  # avocado, which is to show nothing, puts others in their places
    compared = summary.compared()
    for line in (*_wrong(summary, compared), f"{night.folder / PAGE}", _counts(summary)):
        click.echo(line, err=as_json)
    if as_json:
        click.echo(summary.model_dump_json(indent=1))
    if summary.status is Status.ENDED:
        done = f"{counted(len(summary.results), 'result')} of {counted(summary.planned, 'case')}"
        _say(f"the night was ended {summary.reason}, with {done}")
        raise KeyboardInterrupt
    if compared.new:
        how = "wrong, and not so in the last night" if compared.against else "wrong"
        raise VerdictError(f"{how}: {len(compared.new)} of {counted(summary.planned, 'case')}")


def _wrong(summary: Summary, compared: Comparison) -> Iterator[str]:
    for result in summary.wrong():
        before = "as" if result.id in compared.as_before else compared.before(result.id)
        why = f": {cause}" if (cause := compared.cause_was.get(result.id)) else ""
        yield f"{result.verdict} {result.id}: {result.cause}{f' ({before} in the last night{why})' if before else ''}"
    yield from summary.remarks


def _counts(summary: Summary) -> str:
    return ", ".join(f"{number} {verdict}" for verdict, number in summary.counts().items() if number)


_NIGHT = click.Path(path_type=Path)


@command.command("compare")
@click.argument("before", type=_NIGHT)
@click.argument("after", type=_NIGHT)
@click.option("--json", "as_json", is_flag=True, help="As in a summary's field `comparison`.")
def compare_command(before: Path, after: Path, as_json: bool) -> None:
    """Say what is otherwise in one night than in another: folders or files of them, or names, as on their pages.

    The exit status is 1 when something is wrong in AFTER that was not so in BEFORE.
    """
    old, new = (read_summary(_kept(night)) for night in (before, after))
    compared = compare(new, (old.night, results_of(old)))
    if as_json:
        click.echo(compared.model_dump_json(indent=1))
    else:
        for note in (*_other_plans(old, new), *_unfinished(old), *_unfinished(new)):
            click.echo(f"note: {note}")
        click.echo("\n".join([*_lines(new, compared), *_unheard(old, new, compared)]) or "nothing is otherwise")
    if compared.new:
        raise VerdictError(f"newly wrong: {len(compared.new)} of {counted(new.planned, 'case')}")


def _kept(night: Path) -> Path:
    """Where the summary is of a night that somebody names: by a path, or as it is called in the results.

    Raises:
        UserError: there is none.
    """
    base = results_root() / "nightly"
    if night.exists():
        return night.parent if night.name in (PAGE, MARKDOWN, JUNIT) and (night.parent / FILE).is_file() else night
    if (base / night).is_dir():
        return base / night
    near = meant(str(night), [each.parent.name for each in base.glob(f"*/{FILE}")])
    raise UserError(f"there is no night {str(night)!r}", hint=f"{near}give its folder, or its name in {base}")


_UNFINISHED = {Status.RUNNING: "runs, or was killed", Status.UNDONE: "could not be done:", Status.ENDED: "was ended"}


def _unfinished(night: Summary) -> Iterator[str]:
    """Why of some cases of a night nothing can be said."""
    if night.only:
        yield f"{night.night} is only of {', '.join(night.only)}"
    if night.status in _UNFINISHED:
        how = f"{_UNFINISHED[night.status]} {night.reason}".strip()
        yield f"{night.night} {how}, with {counted(len(night.results), 'result')} of {counted(night.planned, 'case')}"


def _other_plans(old: Summary, new: Summary) -> Iterator[str]:
    """That these are no nights of one plan, where that is so."""
    if old.plan.name != new.plan.name:
        yield f"{old.night} is of the plan {old.plan.name!r}, {new.night} of {new.plan.name!r}"


def _unheard(old: Summary, new: Summary, compared: Comparison) -> Iterator[str]:
    """What was wrong, and may still be: cases to which the other night did not come."""
    told = {*compared.gone, *(result.id for result in new.results)}
    yield from (f"not run: {was.id}: {was.verdict} before: {was.cause}" for was in old.wrong() if was.id not in told)


def _lines(new: Summary, compared: Comparison) -> Iterator[str]:
    now = {result.id: result for result in new.results}
    for case in compared.new:
        why = f" ({compared.before(case)} before: {cause})" if (cause := compared.cause_was.get(case)) else ""
        yield f"new: {case}: {compared.before(case)} -> {now[case].verdict}: {now[case].cause}{why}"
    yield from (f"as before: {case}: {now[case].verdict}: {now[case].cause}" for case in compared.as_before)
    yield from (f"mended: {case}: {compared.before(case)} -> {now[case].verdict}" for case in compared.mended)
    for changed in compared.changed:
        why = now[changed.id].why
        yield f"changed: {changed.id}: {changed.before} -> {changed.after}{f': {why}' if why else ''}"
    yield from (f"moved: {moved.id}: {moved.before:.1f} s -> {moved.after:.1f} s" for moved in compared.moved)
    yield from (f"added: {case}" for case in compared.added)
    yield from (f"gone: {case}" for case in compared.gone)
