"""What holds for any vfio-user server, whatever its device: the table of oracles."""

from __future__ import annotations

from userdev.fuzz.finds import BY_REFERENCE, Oracle
from userdev.fuzz.process import DESCRIPTORS, GROWTH, MAPPINGS

ALIVE = Oracle("alive", "the server lives, answers, and serves the next client, whatever this one has done")
REPLIES = Oracle("replies", "a reply is as the rules of `vfio-user conformance` say")
DESCRIPTION = Oracle("description", "what `vfio-user probe` is told has no problem that a VMM would stumble over")
MEMORY = Oracle("memory", "client memory that the device was not given for writing stays as it is")
CONFIG = Oracle("config", "PCI 3.0, 6.2: a write to configuration space changes what was written, and no id")
INTERRUPTS = Oracle("interrupts", "linux/vfio.h: an interrupt goes to the eventfd of its vector, once, and to no other")
MAPPED = Oracle("mapped", "a region that is mapped shows what REGION_READ says")
RESET = Oracle("reset", "the state after a reset is that after the start")
STATE = Oracle("state", "a state that is saved and loaded is the same state, by its digest and by its registers")
REFERENCE = Oracle(BY_REFERENCE, "a reference server answers the same")

ORACLES: tuple[Oracle, ...] = (
    ALIVE,
    REPLIES,
    DESCRIPTION,
    MEMORY,
    CONFIG,
    INTERRUPTS,
    MAPPED,
    RESET,
    STATE,
    REFERENCE,
    DESCRIPTORS,
    MAPPINGS,
    GROWTH,
)
