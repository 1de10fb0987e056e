"""What a program's last words come to: the line that says what went wrong, and the known noise around it."""

from __future__ import annotations

import re

# Known harmless: what QEMU 11.1.3 prints in every good run as well, and what follows from it (hw/vfio/, hw/vfio-user/).
NOISE = re.compile(
    r"vfio_container_dma_unmap\(.*\) = -\d+ \((?:No such file or directory|Input/output error|Bad address)\)"
    r"|vfio_user_(?:process|wait_reqs)[: -]+error reply on async request"
    r"|warning: TCG doesn't support requested feature"
    r"|terminating on signal"
)


def reason(text: str) -> str:
    """The line with what went wrong: the last that is neither noise nor indented, as hints are, and notes."""
    lines = [line for line in text.splitlines() if line.strip() and not NOISE.search(line)]
    told = [line for line in lines if not line[0].isspace()] or lines
    return told[-1].strip() if told else ""
