"""What workers report of tests, as whoever started them has it."""

from __future__ import annotations

import json
from typing import Any

from tests.conftest import pytest_report_from_serializable


def test_where_a_test_was_skipped_and_why_is_what_pytest_has_made_of_it() -> None:
    """It was a list, of which `-rs` and `--junitxml` raised AssertionError."""
    report = {"outcome": "skipped", "longrepr": ("tests/test_some.py", 7, "Skipped: there is none")}
    sent: dict[str, Any] = {"json": json.dumps(report)}
    pytest_report_from_serializable(sent)
    assert sent == report
