"""That a block which is wrong fails, and a page that hides one too. `scripts/docs check` runs it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from tests.documents import json_output
from tests.documents.blocks import LANGUAGES
from tests.documents.commands import check_command
from tests.documents.shell import Shell, alike, dialogue

ROOT = Path(__file__).parent.parent.parent
PAGES = sorted(
    path
    for path in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "servers").rglob("*.md"))
    if "api" not in path.parts
)
COMMAND = re.compile(r"^(vfio-user|vhost-user) [a-z]")

pytest_plugins = ["pytester"]


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    made = Shell(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_block_is_of_a_language_that_is_looked_at(page: Path) -> None:
    wrong = [
        f"line {token.map[0] + 1}: {token.type} {token.info!r}"
        for token in MarkdownIt("commonmark").enable("table").parse(page.read_text())
        if token.map and (token.type == "code_block" or token.type == "fence")
        if not (token.type == "fence" and (token.info in LANGUAGES or token.info.startswith("{")))
    ]
    assert wrong == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_command_in_a_sentence_is_one(page: Path) -> None:
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        for child in token.children or ():
            if child.type == "code_inline" and COMMAND.match(child.content):
                check_command(re.sub(r"[\[\]]", " ", child.content.replace(r"\|", "|")))


def test_a_dialogue_is_commands_and_what_they_say() -> None:
    text = "$ one\nsays\nthis\n$ two \\\n    goes on\n$ three <<X\n> in\n> X\nout\n"
    assert list(dialogue(text)) == [("one", "says\nthis"), ("two \\\n    goes on", ""), ("three <<X\nin\nX", "out")]


@pytest.mark.parametrize(
    ("shown", "said", "alike_"),
    [
        ("...\nthe end", "the end", True),
        ("3 passed in 0.12s", "30 passed in 14.1s\n", True),
        ("3 passed", "3 failed", False),
        ("a\n...\nz", "a\nb\nc\nz\n", True),
        ("a\nz", "a\nb\nz", False),
        ("a", "", False),
    ],
)
def test_output_is_compared_but_for_numbers(shown: str, said: str, alike_: bool) -> None:
    assert alike(shown, said) == alike_


@pytest.mark.parametrize(
    "command",
    [
        "vfio-user nothing",
        "vfio-user run --no-such-option",
        "vfio-user qemu nothing",
        "vhost-user probe --nothing s",
        "A=1 vfio-user boot --devices edu",
        "scripts/nothing",
        "python -m benchmarks.nothing",
    ],
)
def test_a_command_that_is_none_is_found(command: str) -> None:
    with pytest.raises(AssertionError):
        check_command(command)


def test_what_another_status_than_0_ends_has_to_be_asked_for(shell: Shell) -> None:
    shell.run("exit 3", "")
    shell.run("echo $?", "3")
    shell.run("exit 3", "")
    with pytest.raises(AssertionError, match="status 3"):
        shell.run("true", "")


def test_what_was_fetched_built_and_booted_before_is_found(shell: Shell, tmp_path: Path) -> None:
    assert "VFIO_USER_CACHE" in os.environ  # an empty one, which unit tests have
    shell.run("echo ${VFIO_USER_CACHE-that of a reader}", "that of a reader")
    assert json_output.run("echo ${VFIO_USER_CACHE-that of a reader}", tmp_path) == "that of a reader\n"


def test_a_job_is_waited_for_and_ended(shell: Shell) -> None:
    shell.run("echo ready; sleep 1000 &", "ready")
    assert shell.jobs[0][0].poll() is None
    shell.run("kill $!", "")
    assert shell.jobs[0][0].poll() is not None


def test_a_job_that_ends_before_it_says_what_is_shown_is_an_error(shell: Shell) -> None:
    with pytest.raises(AssertionError, match="ended with 1"):
        shell.run("echo wrong; exit 1 &", "ready")


def test_wrong_blocks_fail(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page with one block of each kind that is wrong, and one that is right."""
    page = ROOT / "build" / "wrong.md"
    blocks = ["python\n1 / 0", "yaml\na: [", "json\n{", "console\n$ false", "sh\nvfio-user x", "text\nright"]
    page.parent.mkdir(exist_ok=True)
    monkeypatch.syspath_prepend(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    page.write_text("\n\n".join(f"```{block}\n```" for block in blocks))
    done = pytester.runpytest_subprocess("-p", "tests.documents.blocks", f"--rootdir={ROOT}", str(page))
    page.unlink()
    done.assert_outcomes(failed=5, passed=1)
