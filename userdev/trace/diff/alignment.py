"""Which parts of two long sequences are the same, in order."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator, Sequence
from tempfile import NamedTemporaryFile
from typing import NamedTuple

from userdev.errors import UserError

SMALL = 1 << 16
"""Pairs of elements up to which all of them are looked at: a table of them takes 20 ms."""
_HUNK = re.compile(r"^(\d+)(?:,(\d+))?([acd])(\d+)(?:,(\d+))?$")


class Hunk(NamedTuple):
    """Elements `a_from` to before `a_to` of the one stand where the other has `b_from` to before `b_to`."""

    a_from: int
    a_to: int
    b_from: int
    b_to: int


def hunks(a: Sequence[int], b: Sequence[int]) -> list[Hunk]:
    """Where the sequences differ, as few elements as can be found in little time.

    difflib is of no use here: it is after long matches and not few differences, and slow where elements come often.

    Raises:
        UserError: they are long, and there is no `diff` program.
    """
    return list(_by_table(a, b) if len(a) * len(b) <= SMALL else _by_program(a, b))


def _by_table(a: Sequence[int], b: Sequence[int]) -> Iterator[Hunk]:
    """By the longest common subsequence: `common[i][j]` is how long that of the rests from i and j on is."""
    common = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i in range(len(a) - 1, -1, -1):
        row, below = common[i], common[i + 1]
        for j in range(len(b) - 1, -1, -1):
            row[j] = below[j + 1] + 1 if a[i] == b[j] else max(below[j], row[j + 1])
    i = j = 0
    while i < len(a) or j < len(b):
        from_i, from_j = i, j
        while (i < len(a) or j < len(b)) and not (i < len(a) and j < len(b) and a[i] == b[j]):
            if j == len(b) or (i < len(a) and common[i + 1][j] >= common[i][j + 1]):
                i += 1
            else:
                j += 1
        if (i, j) != (from_i, from_j):
            yield Hunk(from_i, i, from_j, j)
        else:
            i, j = i + 1, j + 1


def _by_program(a: Sequence[int], b: Sequence[int]) -> Iterator[Hunk]:
    """By GNU diff or another, which bounds its time where much differs: a million elements take a second or two."""
    with NamedTemporaryFile("w", suffix=".a") as of_a, NamedTemporaryFile("w", suffix=".b") as of_b:
        for file, elements in ((of_a, a), (of_b, b)):
            file.writelines(f"{element}\n" for element in elements)
            file.flush()
        try:
            done = subprocess.run(["diff", of_a.name, of_b.name], capture_output=True, text=True)
        except FileNotFoundError:
            raise UserError("there is no program `diff`", hint="install diffutils") from None
    if done.returncode > 1:
        raise UserError(f"diff failed: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        if (found := _HUNK.match(line)) is not None:
            first, last, kind, other, end = found.groups()
            a_from, a_to = int(first) - (kind != "a"), int(last or first)
            b_from, b_to = int(other) - (kind != "d"), int(end or other)
            yield Hunk(a_from, a_to, b_from, b_to)
