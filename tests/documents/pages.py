"""The built pages: every public name is in them, and every link leads somewhere. `scripts/docs check` runs it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from urllib.parse import unquote, urlsplit

import pytest
from click.testing import CliRunner
from sphinx.util.inventory import InventoryFile

from tests.documents import terminal
from vfio_user.cli.docs import PAGES, command

ROOT = Path(__file__).parent.parent.parent


def extension() -> ModuleType:
    """The extension of Sphinx that writes the pages of packages."""
    spec = importlib.util.spec_from_file_location("reference_pages", ROOT / "docs/reference/reference_pages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Page(HTMLParser):
    """The links and the anchors of a built page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {"", "top"}
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if value and name == "id":
                self.anchors.add(value)
            elif value and name in ("href", "src"):
                self.links.add(value)


def dead_links() -> Iterator[str]:
    pages = {path: Page(path) for path in sorted(PAGES.rglob("*.html"))}
    assert len(pages) > 20
    for path, page in pages.items():
        for link in page.links:
            url = urlsplit(link)
            if url.scheme or url.netloc:
                continue
            target = (path.parent / unquote(url.path)).resolve() if url.path else path
            if not target.exists() or (target in pages and unquote(url.fragment) not in pages[target].anchors):
                yield f"{path.relative_to(PAGES)}: {link}"


def test_no_link_is_dead() -> None:
    assert sorted(dead_links()) == []


def test_the_picture_of_a_terminal_is_what_is_said_today() -> None:
    assert terminal.words(terminal.PICTURE.read_text()) == terminal.words(terminal.draw(terminal.said()))


def test_every_public_name_has_its_place_in_the_reference() -> None:
    inventory = InventoryFile.loads((PAGES / "objects.inv").read_bytes(), uri="")
    told = {name for kind, names in inventory.data.items() if kind.startswith("py:") for name in names}
    public = {f"{module}.{name}" for module, names in extension().faces() for name in names}
    also = {line for page in (ROOT / "docs/reference/api").glob("*.md") for line in page.read_text().splitlines()}
    missing = {
        name for name in public - told if not any(f"`{name.rpartition('.')[2]}`: on the page" in line for line in also)
    }
    assert missing == set()
    assert len(public) > 150


@pytest.mark.parametrize("page", ["devices", "docs/devices", "reference/command-line", "ARCHITECTURE"])
def test_a_page_is_found_by_its_name(page: str) -> None:
    done = CliRunner().invoke(command, [page, "--path"])
    assert Path(done.output.strip()).is_file(), done.output
