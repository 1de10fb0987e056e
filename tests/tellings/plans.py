"""The cells of a handful of plans, with all their parameters and what the harness is told of each."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from unittest.mock import patch

from tests.tellings import Told
from tests.test_nightly_plan import SERVERS
from userdev.errors import UserError
from vfio_user.nightly import matrix
from vfio_user.nightly.cells import NightCell, cells_of
from vfio_user.nightly.matrix import Drawn, Row, draw_plan, write_lock
from vfio_user.nightly.plan import Plan, read_plan
from vfio_user.nightly.staging import Stage

MORE_SERVERS = """\
  a-disk:
    about: a disk of theirs
    protocol: vhost-user
    kind: blk
    command: "./disk --socket {socket}"
    properties: {driver: vhost-user-blk-pci}
    probe: yes
  old:
    about: one that speaks as QEMU did once
    protocol: vfio-user
    kind: edu
    dialect: region-migration
    command: "./old {socket}"
    supports: [reset, interrupts]
"""
_TESTS = 'tests: ["registers:Registers.test_factorial"]'
EVERY_KEY = f"""\
name: all-keys
servers: servers.yaml
qemus: {{mine: /opt/qemu}}
images: [minimal]
parallel: 3
groups:
  first:
    servers: [edu, theirs, old]
    {_TESTS}
    nightly: true
    combine: all
    vary:
      qemu: [usual, mine]
      cpus: [1, 4]
      memory: [512, 1024]
      iommu: [off, on]
    without:
      - {{server: theirs, cpus: 4}}
      - {{server: old, iommu: on, qemu: mine}}
  second:
    servers: [edu, vhost-user-blk, a-disk]
    {_TESTS}
    vary: {{interpose: [off, on]}}
"""
PAIRS = f"""\
name: pairs
servers: servers.yaml
qemus: {{mine: /opt/qemu}}
groups:
  first:
    servers: [edu, nvme]
    {_TESTS}
    vary: {{qemu: [usual, mine], cpus: [2, 1], memory: [512, 768], iommu: [on, off], interpose: [off, on]}}
    without: [{{server: nvme, iommu: on}}]
  dialects:
    servers: [edu]
    {_TESTS}
    vary: {{dialect: [current, region-migration], cpus: [1, 3]}}
"""
# Rows that were drawn once, of which one has an axis less than today's, and one is not allowed any more.
LOCKED: Mapping[str, list[Row]] = {
    "first": [
        {"server": "nvme", "qemu": "mine", "cpus": 2, "iommu": False, "interpose": True},
        {"server": "nvme", "qemu": "usual", "cpus": 1, "memory": 768, "iommu": True, "interpose": False},
        {"server": "edu", "qemu": "usual", "cpus": 2, "memory": 512, "iommu": True, "interpose": True},
    ]
}
TEST = "registers.py:Registers.test_factorial"
ONLY = ("edu", "edu+cpus=?*", "*interpose*", "old+memory=1024", "a-disk/*", "*")


def told(folder: Path) -> Told:
    """Of each plan the cells that are drawn, what is locked then, and which are left of it."""
    found: Told = {}
    for name, text, locked in (("all keys", EVERY_KEY, None), ("pairs", PAIRS, None), ("locked", PAIRS, LOCKED)):
        place = folder / name
        place.mkdir()
        (place / "servers.yaml").write_text(SERVERS + MORE_SERVERS)
        (place / "plan.yaml").write_text(text)
        plan = read_plan(place / "plan.yaml")
        if locked is not None:
            write_lock(plan, Drawn(locked, is_new=True))
        with patch.object(matrix, "_table", _table):
            drawn = draw_plan(plan)
        cells = cells_of(plan, drawn)
        found[name] = {
            "is new": drawn.is_new,
            "lock": json.loads(drawn.text()),
            "at once": plan.text.at_once,
            "cells": {group: {cell.id: _told(plan, cell) for cell in each} for group, each in cells.items()},
        }
        if locked is None:
            found[name] |= _limited(Stage(plan, cells, {group: {TEST: {}} for group in cells}))
    return found


def _table(sizes: tuple[int, ...]) -> Sequence[Sequence[int]]:
    """Every other row, where avocado draws others each time."""
    return list(itertools.product(*map(range, sizes)))[::2]


def _told(plan: Plan, cell: NightCell) -> Told:
    return {"parameters": cell.parameters, "guest": asdict(cell.guest_cell(plan.qemu(cell.qemu), cell.server.kind))}


def _limited(stage: Stage) -> Told:
    """What is left of it by each pattern that fits something there, and what is used by all of it."""
    left: Told = {}
    for pattern in ONLY:
        with suppress(UserError):
            limited = stage.limited([pattern])
            left[pattern] = {
                "cases": [case.id for cases in limited.cases().values() for case in cases],
                "servers": limited.used_servers,
                "QEMUs": {name: str(qemu) for name, qemu in limited.used_qemus.items()},
            }
    return {"left by": left}
