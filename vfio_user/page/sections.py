"""The logs of a run as its page shows them: their ends, without the noise, under a heading each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from userdev.counted import counted
from userdev.printable import printable
from userdev.process import tail
from vfio_user.page.names import COMMANDS
from vfio_user.page.noise import NOISE
from vfio_user.page.texts import lines_of

LAST_LINES = 400
"""Of a log that are shown; the file is beside the page."""
OPEN = 40
"""Lines of a log that need not be unfolded."""


@dataclass(frozen=True)
class Said:
    """The end of a file; `left_out` lines of it are noise."""

    name: str
    text: str
    left_out: int = 0
    noise: str = ""
    """The last of them."""

    @property
    def left_out_words(self) -> str:
        """How much that is, in words."""
        return counted(
            self.left_out, "line of known harmless noise is left out", "lines of known harmless noise are left out"
        )

    @property
    def short(self) -> bool:
        """Whether it takes no more room than its name deserves."""
        return self.text.count("\n") < OPEN


@dataclass(frozen=True)
class Section:
    """Files under a heading."""

    heading: str
    files: list[Said]


# A heading, and the files by their names, in the order of the page.
_SECTIONS = (
    ("What the test or the command said", "error.txt"),
    ("Backtraces", "*.backtrace.txt"),
    ("QEMU said", "*.qemu.log"),
    ("Device servers said", "*.server.log"),
    ("Interposers said", "*.interposer.log"),
    ("Consoles", "*.console.log"),
    ("Kernel logs of guests", "*.dmesg.log"),
    ("The last QMP traffic", "*.qmp.log"),
    ("The last messages on the wire, as QEMU traced them", "*.trace.log"),
    ("PCI, as QEMU has it", "*.pci.log"),
    ("Command lines", COMMANDS),
    ("Versions", "versions.json"),
)


def sections(folder: Path) -> list[Section]:
    """Those of which a folder has files that say something."""
    found = (Section(heading, list(_said(folder, pattern))) for heading, pattern in _SECTIONS)
    return [section for section in found if section.files]


def _said(folder: Path, pattern: str) -> Iterator[Said]:
    for path in filter(Path.is_file, sorted(folder.glob(pattern))):
        noise = _noise(path) if path.suffix == ".log" else []
        text = tail(path, LAST_LINES, without=NOISE)
        if text or noise:
            yield Said(path.name, text, len(noise), printable(noise[-1]) if noise else "")


def _noise(path: Path) -> list[str]:
    """The lines of a log that are noise."""
    return [line for line in lines_of(path) if NOISE.search(line)]
