"""Docstrings say errors in one form: a block `Raises:` with a line `Error: when` for each."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
ROOMS = ("userdev", "vfio_user", "vhost_user", "servers/userdev_servers")
DOCSTRING = re.compile(r'^ *"""(.*?)"""', re.MULTILINE | re.DOTALL)
IN_A_SENTENCE = re.compile(r"\bRaises [`A-Z]")
ENTRY = re.compile(r"\w[\w.]*(, \w[\w.]*)*: \S")


def test_errors_are_a_block_of_a_docstring_and_no_sentence_of_it() -> None:
    blocks, wrong = 0, []
    for path in (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))):
        for found in DOCSTRING.finditer(text := path.read_text()):
            before, block, entries = found[1].partition("Raises:\n")
            blocks += bool(block)
            if IN_A_SENTENCE.search(before) or (block and not ENTRY.match(entries.strip())):
                wrong.append(f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, found.start()) + 1}")
    assert blocks > 500
    assert not wrong
