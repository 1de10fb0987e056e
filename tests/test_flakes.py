"""Counting the verdicts that changed between runs of the suite."""

from __future__ import annotations

import pytest

from avocado_tests.flakes import changes, main, tally, verdicts
from userdev.errors import UserError
from vfio_user.harness.known_issues import XFAIL


def result(name: str, status: str, reason: str = "") -> dict[str, str]:
    return {"name": f"/somewhere/avocado_tests/{name}", "status": status, "fail_reason": reason}


def test_a_test_is_the_same_wherever_the_checkout_is() -> None:
    one = {"tests": [{"name": "/a-b/c/test_dma.py:Dma.test_there_and_back", "status": "PASS"}]}
    two = {"tests": [{"name": "/d/test_dma.py:Dma.test_there_and_back", "status": "PASS"}]}
    assert verdicts(one) == verdicts(two) == {"test_dma.py:Dma.test_there_and_back": "PASS"}


def test_a_known_issue_is_a_verdict_of_its_own() -> None:
    seen = verdicts({"tests": [result("a", "CANCEL", f"{XFAIL}: msix"), result("b", "CANCEL", "no KVM")]})
    assert seen == {"a": XFAIL, "b": "CANCEL"}


def test_what_differs_from_the_most_frequent_verdict_has_changed() -> None:
    runs = [{"a": "PASS", "b": "PASS"}, {"a": "FAIL", "b": "PASS"}, {"a": "PASS", "b": "PASS"}]
    assert changes(runs) == 1
    assert tally(runs)["a"] == {"PASS": 2, "FAIL": 1}
    assert changes(runs[:1]) == 0


def test_a_test_that_a_run_did_not_have_has_changed() -> None:
    assert changes([{"a": "PASS", "b": "PASS"}, {"a": "PASS"}, {"a": "PASS", "b": "PASS"}]) == 1


@pytest.mark.parametrize("arguments", [[], ["0"], ["many"]])
def test_how_often_has_to_be_said(arguments: list[str]) -> None:
    with pytest.raises(UserError):
        main(arguments)
