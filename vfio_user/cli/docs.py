"""`vfio-user docs`: the documentation that came with this version."""

from __future__ import annotations

import shlex
import webbrowser
from pathlib import Path

import click

import vfio_user
from userdev.errors import UserError, meant
from vfio_user.cli._command import CommandLine

PAGES = Path(vfio_user.__file__).parent / "_pages"
HOME = "docs/index"
BUILDING = (
    "in the checkout that it was installed from, scripts/docs builds them; then `pip install` once more,"
    " unless that was `pip install -e`"
)


def there() -> bool:
    """Whether this installation has pages."""
    return (PAGES / f"{HOME}.html").exists()


def reading(page: str) -> str:
    """What to type to read a page: the command, or its source where no page is built and a checkout has that."""
    source = _source(page)
    return f"vfio-user docs {page}" if there() or source is None else f"less {shlex.quote(str(source))}"


def _source(page: str) -> Path | None:
    """The text that a page is built of, in a checkout."""
    source = PAGES.parent.parent / "docs" / f"{page.removeprefix('docs/')}.md"
    return source if source.is_file() else None


@click.command(cls=CommandLine)
@click.argument("page", default=HOME)
@click.option("--path", "only_path", is_flag=True, help="Print where the page is, and open nothing.")
def command(page: str, only_path: bool) -> None:
    """Open the documentation in a browser, or PAGE of it: tutorial, devices, reference/environment ...

    It is in the installation and needs no network. Where there is no browser, its path is printed.
    """
    file = _file(page)
    if only_path or not webbrowser.open(file.as_uri()):
        click.echo(file)


def _file(page: str) -> Path:
    if not there():
        source = _source(page)
        text = f"the page's text is {source}; " if source else ""
        raise UserError("this installation has no built pages", hint=text + BUILDING)
    for name in (page, f"docs/{page}"):
        if (file := PAGES / f"{name}.html").is_file():
            return file
    known = [path.relative_to(PAGES / "docs").with_suffix("").as_posix() for path in (PAGES / "docs").rglob("*.html")]
    raise UserError(f"there is no page {page!r}", hint=f"{meant(page, known)}{HOME} has the list")
