"""README.md's picture of a terminal: `scripts/docs picture` runs the command and draws what it said."""

from __future__ import annotations

import io
import re
import subprocess
import tempfile
from html import unescape
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tests.documents.shell import surroundings

ROOT = Path(__file__).parent.parent.parent
PICTURE = ROOT / "docs/pictures/terminal.svg"
COMMAND = "vfio-user run"
WIDTH = 110
NUMBER = re.compile(r"\d+(?:\.\d+)*")
FONT = re.compile(r"\s*@font-face \{.*?\}", re.DOTALL)
LOGS = re.compile(r" Logs: .*")


def said() -> str:
    """What a real run says, without where its logs are."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            COMMAND.split(), cwd=folder, env=surroundings(), capture_output=True, text=True, timeout=400, check=True
        )
    return LOGS.sub("", done.stdout).rstrip()


def draw(text: str) -> str:
    """A terminal with the command and what it said, as SVG."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(Text(f"$ {COMMAND}", style="bold"))
    shown = Text(text)
    shown.highlight_regex(r"(?m)^ +[\d.]+ s", "dim")
    shown.highlight_regex(r"\bok\b|All right", "green")
    console.print(shown)
    svg = console.export_svg(title=COMMAND, unique_id="terminal")
    return FONT.sub("", svg)  # whoever looks at it asks nobody for a font


def words(svg: str) -> list[str]:
    """The words of a picture, numbers aside, from where the guest is there: steps before that are those it took."""
    lines = re.findall(r"<text [^>]*>([^<]*)</text>", svg)
    told = NUMBER.sub("0", unescape(" ".join(lines)).replace("\xa0", " ")).split()
    return told[told.index("Linux") :]


if __name__ == "__main__":
    PICTURE.write_text(draw(said()))
    print(PICTURE.relative_to(ROOT))
