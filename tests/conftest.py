"""Settings of all unit tests."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

# How long an example takes says something about the machine's load, not about the code; `timeout` ends what hangs.
settings.register_profile("vfio-user", deadline=None, print_blob=True)
settings.load_profile("vfio-user")


@pytest.fixture(scope="module")
def nothing_left_to_collect() -> None:
    """For tests that compare open descriptors: devices that earlier tests dropped close theirs now, not meanwhile."""
    gc.collect()
