"""What holds for any back-end, whatever its device: the table of oracles."""

from __future__ import annotations

from userdev.fuzz.finds import BY_REFERENCE, Oracle
from userdev.fuzz.process import DESCRIPTORS, GROWTH, MAPPINGS

ALIVE = Oracle("alive", "the back-end lives, answers, and serves the next front-end, whatever this one has done")
REPLIES = Oracle("replies", "a message is answered as the rules of `vhost-user conformance` say")
OFFER = Oracle("offer", "what a back-end offers is the same at any time")
RINGS = Oracle("rings", "virtio 1.3, Virtqueues: what was made available comes back, once, right, and is told of")
MEMORY = Oracle("memory", "guest memory that a request did not give for writing stays as it is")
BLOCKS = Oracle("blocks", "virtio 1.3, Block Device: a read has what was written last")
LOG = Oracle("log", "spec, Migration: every page that is written while the log is on is marked")
STATE = Oracle("state", "a state that is saved and loaded is the same state")
REFERENCE = Oracle(BY_REFERENCE, "a reference back-end answers the same")

ORACLES: tuple[Oracle, ...] = (
    ALIVE,
    REPLIES,
    OFFER,
    RINGS,
    MEMORY,
    BLOCKS,
    LOG,
    STATE,
    REFERENCE,
    DESCRIPTORS,
    MAPPINGS,
    GROWTH,
)
