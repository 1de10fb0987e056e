"""Functions that are sent to a guest: which can be, and what they are there."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

from tests.test_harness_agent import guest as guest
from tests.test_harness_agent import port as port
from userdev.errors import UserError
from vfio_user.harness.agent import AgentGuest
from vfio_user.harness.guest import shipped


def test_a_function_that_needs_what_stays_here_is_refused() -> None:
    around = 5

    def closure() -> int:
        return around

    for function in (closure, lambda: 1, print):
        with pytest.raises(UserError):
            shipped(function)


def test_a_function_stays_what_it_was_though_its_file_is_edited(
    guest: AgentGuest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As somebody goes on working while a soak runs."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "edited_meanwhile.py").write_text("def answer():\n    return 42\n")
    try:
        answer = importlib.import_module("edited_meanwhile").answer
        assert guest.call(answer) == 42
        (tmp_path / "edited_meanwhile.py").write_text(
            "def question():\n    return 'why'\n\n\ndef answer():\n    return 6\n"
        )
        assert guest.call(answer) == 42
    finally:
        sys.modules.pop("edited_meanwhile", None)
