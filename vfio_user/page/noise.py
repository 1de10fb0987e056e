"""Known harmless noise of QEMU: what it prints, and asks for and is refused, in every good run as well."""

from __future__ import annotations

import re

# What QEMU 11.1.3 prints in every good run as well, and what follows from it (hw/vfio/, hw/vfio-user/).
NOISE = re.compile(
    r"vfio_container_dma_unmap\(.*\) = -\d+ \((?:No such file or directory|Input/output error|Bad address)\)"
    r"|vfio_user_(?:process|wait_reqs)[: -]+error reply on async request"
    r"|warning: TCG doesn't support requested feature"
    r"|terminating on signal"
)

REFUSED = frozenset({("DMA_UNMAP", "ENOENT")})
"""Requests and the errors that they are answered: what QEMU unmaps without having mapped it."""
NAME = "known harmless noise"
