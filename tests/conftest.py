"""Settings of all unit tests."""

from __future__ import annotations

import gc

import pytest
from hypothesis import settings

# How long an example takes says something about the machine's load, not about the code; `timeout` ends what hangs.
# The examples are the same every time and everywhere, so that a verdict changes with the code alone. (Hypothesis by
# itself does so where CI is in the environment, and only there.) `--hypothesis-profile search` looks for new ones.
settings.register_profile("vfio-user", deadline=None, print_blob=True, derandomize=True)
settings.register_profile("search", deadline=None, print_blob=True, derandomize=False)
settings.load_profile("vfio-user")


@pytest.fixture(scope="module")
def nothing_left_to_collect() -> None:
    """For tests that compare open descriptors: devices that earlier tests dropped close theirs now, not meanwhile."""
    gc.collect()
