"""Who makes what is kept in which file."""

from __future__ import annotations

import os
from pathlib import Path
from unittest.mock import patch

from tests.tellings import (
    Maker,
    Told,
    bundles,
    devices,
    lists,
    machines,
    nights,
    options,
    plans,
    runs,
    terminals,
    traces,
    verdicts,
)

ROOMS: dict[str, Maker] = {
    "traces-shown": traces.shown,
    "traces-counted": traces.counted,
    "traces-vhost-user": traces.of_vhost_user,
    "traces-exported": traces.exported,
    "nights": nights.told,
    "bundles": bundles.told,
    "devices": devices.told,
    "lists": lists.told,
    "machines": machines.told,
    "options": options.told,
    "pages": runs.of_traces,
    "plans": plans.told,
    "runs": runs.of_runs,
    "terminals": terminals.told,
    "verdicts": verdicts.told,
}

ENVIRONMENT = {"SHELL": "/bin/bash", "LANG": "C.UTF-8"}
"""What is in it beside where programs and a person's files are: what is told hangs on nothing that a machine happens
to have set."""


def told_in(room: str, folder: Path) -> Told:
    """All that is told in a room, whatever the environment of whoever asks."""
    own = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "VFIO_USER_CACHE") if name in os.environ}
    with patch.dict(os.environ, own | ENVIRONMENT, clear=True):
        return ROOMS[room](folder)
