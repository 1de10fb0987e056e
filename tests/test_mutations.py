"""Which small changes of code are drawn as mutants; `scripts/mutants`, whose extra that needs, runs this first."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

SAMENESS = """
def told(a):
    gone = False
    call(1, kept=False)
    return zip(a, gone, strict=True)


def nothing(a):
    if a:
        return None
    try:
        call()
    except OSError:
        return None
"""


@pytest.mark.skipif(find_spec("libcst") is None, reason="without the extra `mutants`: scripts/mutants runs this first")
def test_what_changes_nothing_by_its_kind_is_no_mutant(tmp_path: Path) -> None:
    """None is as false as False; `strict` of `zip` tells what is known; a function that ends returns None."""
    from tests.mutants.mutations import drafts

    (tmp_path / "module.py").write_text(SAMENESS)
    made = [draft.mutant() for draft in drafts(str(tmp_path / "module.py"))]
    assert sorted((each.old, each.new) for each in made if each is not None) == [
        ("call()", "pass"),
        ("call(1, kept=False)", "call(1, )"),
        ("call(1, kept=False)", "call(1, kept=True)"),
        ("call(1, kept=False)", "call(2, kept=False)"),
        ("call(1, kept=False)", "call(None, kept=False)"),
        ("call(1, kept=False)", "call(kept=False)"),
        ("call(1, kept=False)", "pass"),
        ("gone = False", "gone = True"),
        ("gone = False", "pass"),
        ("if a:", "if not (a):"),
        ("return None", "pass"),
        ("return zip(a, gone, strict=True)", "pass"),
        ("return zip(a, gone, strict=True)", "return zip(None, gone, strict=True)"),
        ("return zip(a, gone, strict=True)", "return zip(a, None, strict=True)"),
        ("return zip(a, gone, strict=True)", "return zip(a, strict=True)"),
        ("return zip(a, gone, strict=True)", "return zip(gone, strict=True)"),
    ]
