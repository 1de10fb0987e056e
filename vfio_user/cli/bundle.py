"""`vfio-user bundle`: what is in a bundle, and what is otherwise in another one."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from vfio_user.bundle import Bundle, open_bundle, schema
from vfio_user.bundle.difference import Difference, differences
from vfio_user.cli._command import Group

_PATH = click.Path(path_type=Path)


@click.group(cls=Group)
def command() -> None:
    """Read bundles, which `--bundle` of run, test-e2e, nightly, migrate and soak keeps (docs/bundles.md)."""


@command.command("show")
@click.argument("bundle", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print its bundle.json, for programs.")
def show_command(bundle: Path, as_json: bool) -> None:
    """Say what BUNDLE is of, what came of it, what it was made with and what is in it."""
    found = open_bundle(bundle)
    if as_json:
        click.echo(found.bundle.document().decode(), nl=False)
        return
    for line in _lines(found.bundle):
        click.echo(line)


@command.command("diff")
@click.argument("first", type=_PATH)
@click.argument("second", type=_PATH)
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object, for programs.")
@click.pass_context
def diff_command(context: click.Context, first: Path, second: Path, as_json: bool) -> None:
    """Say what is otherwise in bundle SECOND than in FIRST.

    The exit status is 1 where something else came of it: the verdict, its cause or what the guest saw.
    """
    found = differences(open_bundle(first), open_bundle(second))
    for line in told(found, as_json=as_json):
        click.echo(line)
    context.exit(int(any(difference.of_outcome for difference in found)))


@command.command("schema")
def schema_command() -> None:
    """Print the JSON schema of bundle.json."""
    click.echo(json.dumps(schema(), indent=2))


def told(found: Sequence[Difference], *, as_json: bool = False) -> Iterator[str]:
    """What is otherwise, for people, a line each, or for programs."""
    same = not any(difference.of_outcome for difference in found)
    if as_json:
        yield json.dumps({"same": same, "differences": [difference.as_dict() for difference in found]}, indent=2)
        return
    yield "same: verdict, cause and what the guest saw" if same else "not the same"
    yield from (f"  {difference}" for difference in found)


def _lines(bundle: Bundle) -> Iterator[str]:
    recipe, outcome = bundle.recipe, bundle.outcome
    yield f"{bundle.of}, {bundle.made}"
    yield f"{outcome.verdict}{': ' if outcome.cause else ''}{outcome.cause}"
    for seen in outcome.saw:
        yield f"  {'ok   ' if seen.ok else 'WRONG'}  {seen.what}{': ' if seen.seen else ''}{seen.seen}"
    yield ""
    if recipe.qemu is not None:
        name = f" ({recipe.qemu.name})" if recipe.qemu.name else ""
        yield f"QEMU {recipe.qemu.version}{name}, program {recipe.qemu.program[:12]}, accelerator {recipe.accelerator}"
    for name, digest in recipe.images.items():
        yield f"image {name} {digest[:12]}"
    for name, version in recipe.versions.items():
        yield f"{name} {version[:12] if name == 'sources' else version}"
    for name, seed in recipe.seeds.items():
        yield f"seed of {name}: {seed}"
    yield ""
    for name, content in bundle.contents.items():
        yield f"{content.size:>12}  {name}"
    for name, why in bundle.left_out.items():
        yield f"{'left out':>12}  {name}: {why}"
    yield ""
    for program in recipe.programs:  # those of QEMU are long
        yield f"{program.name}: {shlex.join(program.command)}"
