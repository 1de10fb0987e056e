"""Docstrings say errors in one form: a block `Raises:` with a line `Error: when` for each."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.test_architecture import statements_in

ROOT = Path(__file__).parent.parent
ROOMS = ("userdev", "vfio_user", "vhost_user", "servers/userdev_servers")
IN_A_SENTENCE = re.compile(r"\bRaises [`A-Z]")
ENTRY = re.compile(r"\w[\w.]*(, \w[\w.]*)*: \S")


def modules(room: str) -> Iterator[tuple[Path, ast.Module]]:
    """Those that say anything of errors."""
    for path in sorted((ROOT / room).rglob("*.py")):
        if "guest_images" not in path.parts and "Raises" in (text := path.read_text()):
            yield path.relative_to(ROOT), ast.parse(text)


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """All in it; classes and functions are in no expression."""
    waiting = [tree]
    while waiting:
        yield (node := waiting.pop())
        waiting += statements_in(node)


@pytest.mark.parametrize("room", ROOMS)
def test_errors_are_a_block_of_a_docstring_and_no_sentence_of_it(room: str) -> None:
    wrong = []
    found = list(modules(room))
    assert found
    for path, tree in found:
        for node in statements(tree):
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node, clean=False) or ""
                before, block, entries = text.partition("Raises:\n")
                if IN_A_SENTENCE.search(before) or (block and not ENTRY.match(entries.strip())):
                    wrong.append(f"{path}:{node.lineno} {node.name}")
    assert not wrong
