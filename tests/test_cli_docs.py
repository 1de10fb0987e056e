"""`vfio-user docs` finds the pages of the installation, or says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from userdev.errors import UserError
from vfio_user.cli import docs, man


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("docs/index", "docs/tutorial", "docs/reference/environment", "README"):
        path = tmp_path / f"{name}.html"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    monkeypatch.setattr(docs, "PAGES", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "page"),
    [
        ([], "docs/index"),
        (["tutorial"], "docs/tutorial"),
        (["reference/environment"], "docs/reference/environment"),
        (["README"], "README"),
    ],
)
def test_a_page_is_opened(pages: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], page: str) -> None:
    opened: list[str] = []

    def opens(url: str) -> bool:
        opened.append(url)
        return True

    monkeypatch.setattr("webbrowser.open", opens)
    done = CliRunner().invoke(docs.command, words)
    assert (done.exit_code, done.output) == (0, "")
    assert opened == [(pages / f"{page}.html").as_uri()]


def test_without_a_browser_the_path_is_printed(pages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("webbrowser.open", lambda url: False)
    assert CliRunner().invoke(docs.command, []).output == f"{pages}/docs/index.html\n"


@pytest.mark.parametrize("page", ["tutorail", "../../etc/passwd", "docs"])
def test_what_is_no_page_is_an_error_that_names_one_nearby(pages: Path, page: str) -> None:
    error = CliRunner().invoke(docs.command, [page]).exception
    assert isinstance(error, UserError)
    assert page in str(error)
    assert ("'tutorial'" in (error.hint or "")) == (page == "tutorail")


def test_an_installation_without_pages_says_how_they_are_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(docs, "PAGES", tmp_path)
    error = CliRunner().invoke(docs.command, []).exception
    assert isinstance(error, UserError)
    assert "scripts/docs" in (error.hint or "")
    assert "then `pip install`" in (error.hint or ""), "an installation has what was built before it"


@pytest.mark.parametrize("program", ["vfio-user", "vhost-user"])
def test_the_page_of_the_manual_is_that_of_the_program(pages: Path, program: str) -> None:
    (pages / "man").mkdir()
    (pages / "man" / f"{program}.1").touch()
    shown = CliRunner().invoke(man.command, [], prog_name=program)
    assert (shown.exit_code, shown.output) == (0, f"{pages}/man/{program}.1\n")


def test_an_installation_without_a_page_of_the_manual_says_how_it_is_built(pages: Path) -> None:
    error = CliRunner().invoke(man.command, [], prog_name="vfio-user").exception
    assert isinstance(error, UserError)
    assert "scripts/docs" in error.hint


def test_a_word_behind_man_is_referred_to_the_help_of_that_command(pages: Path) -> None:
    error = CliRunner().invoke(man.command, ["trace", "show"], prog_name="vfio-user").exception
    assert isinstance(error, UserError)
    assert "`vfio-user trace show --help`" in error.hint
