"""Tests of either kind of ring; apart from `tests.vhost_kit`, which programs import that need no pytest."""

from __future__ import annotations

import pytest

from tests.vhost_kit import PackedDriver, SplitDriver

BOTH = pytest.mark.parametrize("kind", [SplitDriver, PackedDriver])
