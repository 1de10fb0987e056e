"""A pytest plugin that runs the code blocks of pages (`-p tests.documents.blocks`): each is a test, in order.

| language | what is done |
|---|---|
| `python` | a file where the first line is a comment with its name; else executed, with what blocks before it named |
| `yaml`, `json`, `toml` | parsed; a file likewise |
| `c`, `rust`, `go`, `make` ... | a file, or nothing |
| `console` | each line behind `$ ` is a command of bash; what follows is its output, compared loosely (shell.py) |
| `sh` | command lines: that there are such commands, with such options (commands.py) |
| `text` | nothing: formats, diagrams, what other programs say |

A page has a folder of its own, in which all of it happens and its files are. What a reader has and the page does not
show, a server of theirs perhaps, is made by Python in a comment: `<!-- prepare: CODE -->`. Behind `<!-- not run: why
-->` commands are looked at as in `sh`, and Python is compiled.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import sys
import tempfile
import tomllib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import yaml
from sybil import Document, Example, Region, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown.lexers import FencedCodeBlockLexer

from tests.documents.commands import check_command
from tests.documents.shell import Shell, dialogue

ROOT = Path(__file__).parent.parent.parent
NOT_RUN = re.compile(r"<!-- not run: (?P<why>[^\n]+?) -->\n+\Z")
PREPARED = re.compile(r"^<!-- prepare: (?P<code>.+?) -->$", re.MULTILINE)
FILE = re.compile(r"(?:#|//|/\*|--) (?P<name>[\w./-]+\.\w+|Makefile)(?: \*/)?\n")


class Place:
    """What blocks of one page share: a folder, and a shell that keeps what was started."""

    def __init__(self) -> None:
        self.before = Path.cwd()
        self.modules = set(sys.modules)
        self.folder = Path(tempfile.mkdtemp(prefix="page-"))
        self.shell = Shell(self.folder)
        os.chdir(self.folder)
        sys.path.insert(0, str(self.folder))

    def close(self) -> None:
        self.shell.close()
        os.chdir(self.before)
        sys.path.remove(str(self.folder))
        for name in set(sys.modules) - self.modules:
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(self.folder)):
                del sys.modules[name]
        shutil.rmtree(self.folder)


def console(text: str, example: Example) -> None:
    place: Place = example.namespace["page"]
    for command, output in dialogue(text):
        place.shell.run(command, output)
    place.shell.settle()


def looked_at(text: str, example: Example) -> None:
    """Command lines of which each is one; what is in brackets may be left out."""
    check_commands(re.sub(r"\\?\n +|[\[\]]", " ", text).splitlines())


def check_commands(lines: Iterable[str]) -> None:
    """See `check_command`."""
    for line in lines:
        check_command(line)


def nothing(text: str, example: Example) -> None:
    """What is told, and not done."""


LANGUAGES: dict[str, Callable[[str, Example], Any]] = {
    "python": lambda _, example: PythonEvaluator()(example),
    "console": console,
    "yaml": lambda text, _: list(yaml.safe_load_all(text)),
    "json": lambda text, _: json.loads(text),
    "toml": lambda text, _: tomllib.loads(text),
    "sh": looked_at,
    **dict.fromkeys(("text", "c", "rust", "go", "make", "docker"), nothing),
}


AT_LEAST: dict[str, Callable[[str, Example], Any]] = {
    "console": lambda text, _: check_commands(command for command, _ in dialogue(text)),
    "python": lambda text, _: compile(text, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT),
}
"""What is done with blocks that are not run."""


def evaluate(example: Example) -> None:
    """Do with a block what its language says."""
    language, text = example.region.lexemes["language"], str(example.parsed)
    reason = NOT_RUN.search(example.document.text[: example.region.start])
    if reason:
        AT_LEAST.get(language, nothing)(text, example)
        return
    named = FILE.match(text)
    if named and language != "console":
        path = Path(named["name"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if language == "python":
            compile(text, named["name"], "exec")
            return
    LANGUAGES[language](text, example)


def parse(document: Document) -> Iterable[Region]:
    """Give Sybil every fenced block but those that are Sphinx's, and what is prepared."""
    for found in PREPARED.finditer(document.text):
        yield Region(found.start(), found.end(), found["code"], lambda example: exec(example.parsed, example.namespace))
    for region in FencedCodeBlockLexer(language="[^\n{]*")(document):
        region.parsed = region.lexemes["source"]
        region.evaluator = evaluate
        yield region


def begin(namespace: dict[str, Any]) -> None:
    namespace["page"] = Place()
    namespace["__name__"] = "page"


def end(namespace: dict[str, Any]) -> None:
    namespace["page"].close()


pytest_collect_file = Sybil(
    parsers=[parse], path=str(ROOT), patterns=["*.md"], excludes=["docs/reference/api/*"], setup=begin, teardown=end
).pytest()
