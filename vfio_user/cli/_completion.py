"""What a shell may complete: devices, images, QEMUs and tests, by what is there. Nothing is imported before that."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from click import Command, Context, Group, Parameter
from click.shell_completion import CompletionItem

Completer = Callable[[Context, Parameter, str], list[CompletionItem]]


def completer(words: Callable[[], Iterable[tuple[str, str]]]) -> Completer:
    """A function for `shell_complete`: `words` gives what there is, each with a help. A typist is never told an error.

    Files can be given as well, and are completed where no word fits.
    """

    def complete(_context: Context, _parameter: Parameter, incomplete: str) -> list[CompletionItem]:
        try:
            found = [CompletionItem(word, help=about) for word, about in words() if word.startswith(incomplete)]
        except Exception:
            found = []  # an extra that is not installed, say: the command itself says so
        return found or [CompletionItem(incomplete, type="file")]

    return complete


def _devices() -> Iterable[tuple[str, str]]:
    from vfio_user.harness.family import FAMILIES

    return ((name, family.name) for family in FAMILIES for name in family.devices())


def _served_by(protocol: str) -> Callable[[], Iterable[tuple[str, str]]]:
    return lambda: ((name, family) for name, family in _devices() if family == protocol)


def _exercised() -> Iterable[tuple[str, str]]:
    from vfio_user.harness.exercises import EXERCISES

    return ((name, program.name) for name, program in EXERCISES.items())


def _checked_back_ends() -> Iterable[tuple[str, str]]:
    from vhost_user.frontend.conformance.devices import DEVICES

    return ((name, "vhost-user") for name in DEVICES)


def _images() -> Iterable[tuple[str, str]]:
    from vfio_user.harness.image.recipe import load_recipe, recipe_names

    return ((name, load_recipe(name).description) for name in recipe_names())


def _qemus() -> Iterable[tuple[str, str]]:
    from vfio_user.harness.qemu import manifest

    return ((name, recipe.about) for name, recipe in manifest().items())


def _known_issues() -> Iterable[tuple[str, str]]:
    from vfio_user.harness.known_issues import known_issues

    return ((issue.id, issue.what) for issue in known_issues().values())


def _tests() -> Iterable[tuple[str, str]]:
    from vfio_user.avocado_job.selection import all_tests, suite_folder

    return ((Path(path).stem.removeprefix("test_"), path) for path in all_tests(suite_folder()))


def _cells(plan: Path) -> Iterable[tuple[str, str]]:
    from vfio_user.nightly.cells import cells_of
    from vfio_user.nightly.matrix import draw_plan
    from vfio_user.nightly.plan import read_plan

    read = read_plan(plan)
    return ((cell.id, cell.group) for cells in cells_of(read, draw_plan(read)).values() for cell in cells)


def complete_cells(context: Context, parameter: Parameter, incomplete: str) -> list[CompletionItem]:
    """The cells of the plan that --plan has named before."""
    return completer(lambda: _cells(context.params["path"]))(context, parameter, incomplete)


complete_devices = completer(_devices)
complete_servers = completer(_served_by("vfio-user"))
complete_back_ends = completer(_served_by("vhost-user"))
complete_checked_back_ends = completer(_checked_back_ends)
complete_exercised = completer(_exercised)
complete_images = completer(_images)
complete_qemus = completer(_qemus)
complete_known_issues = completer(_known_issues)
complete_tests = completer(_tests)


def subcommands(
    group: Group, context: Context, incomplete: str, table: Iterable[tuple[str, str]]
) -> list[CompletionItem]:
    """The subcommands and options of a group that begin so, from a table with the help of each: none is imported."""
    found = [CompletionItem(name, help=about) for name, about in table if name.startswith(incomplete)]
    return found + Command.shell_complete(group, context, incomplete)
