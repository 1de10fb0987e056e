"""What a page says, read without a browser: what is on its axis, taken apart as its script does it."""

from __future__ import annotations

import base64
import json
import re
import zlib
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_EMBEDDED = re.compile(r'<script type="[\w/]+" id="([\w-]+)">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True)
class Happened:
    """One thing on the axis; times are seconds, `when` since the first."""

    where: tuple[str, str]
    when: float
    lasted: float
    kind: str
    title: str
    short: str
    fields: dict[str, Any]
    record: int
    answer: int


def happened(page: Path) -> list[Happened]:
    """Everything on the axis of a page, in its order."""
    embedded = dict(_EMBEDDED.findall(page.read_text()))
    about = json.loads(embedded["about"])
    blocks = [_whole(block).decode() for block in embedded["blocks"].split("\n") if block]
    words: list[tuple[str, str, dict[str, Any]]] = [
        json.loads(line, parse_constant=_no_json) for block in blocks for line in block.split("\n")
    ]

    def column(name: str, kind: str) -> array[int]:
        return array(kind, _whole(embedded[f"column-{name}"]))

    def long(name: str) -> list[int]:
        return [low + (high << 32) for low, high in zip(column(name, "I"), column(f"{name}_high", "I"), strict=True)]

    found, now = [], 0
    times = zip(long("when"), long("lasted"), strict=True)
    texts = zip(column("row", "H"), column("said", "I"), column("kind", "B"), strict=True)
    numbers = zip(column("record", "I"), column("answer", "I"), strict=True)
    for (step, lasted), (row, said, kind), (record, answer) in zip(times, texts, numbers, strict=True):
        now += step
        group, name = about["rows"][row]
        title, short, fields = words[said]
        seconds, took = now / 1e9, lasted / 1e9
        found.append(Happened((group, name), seconds, took, about["kinds"][kind], title, short, fields, record, answer))
    return found


def _no_json(constant: str) -> Any:
    raise AssertionError(f"a browser reads no {constant} in JSON, and shows nothing of the page")


def _whole(text: str) -> bytes:
    return zlib.decompress(base64.b64decode(text))
