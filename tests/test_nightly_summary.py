"""What a night leaves on disk is read as it was written, or refused with what is wrong."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from tests.cases import for_each
from userdev.errors import UserError
from vfio_user.nightly.summary import (
    CaseResult,
    Cell,
    Changed,
    Comparison,
    Flake,
    Machine,
    Moved,
    PlanIdentity,
    Slot,
    Status,
    Summary,
    Verdict,
    case_id,
    read_summary,
)

ROOT = Path(__file__).parent.parent

GUIDE = (Path(__file__).parent.parent / "docs" / "nightly.md").read_text()
TEST = "avocado_tests/test_dma.py:Dma.test_from_guest"


def result(verdict: Verdict = Verdict.PASS, cell: str = "edu", test: str = TEST, **fields: Any) -> CaseResult:
    return CaseResult(id=case_id(cell, test), cell=cell, test=test, verdict=verdict, **fields)


def night(*results: CaseResult, planned: int = 1, **fields: Any) -> Summary:
    began = datetime(2026, 11, 29, 2, tzinfo=UTC)
    plan = PlanIdentity(name="ours", file="nightly.yaml", digest="0" * 64)
    cells = (Cell(id="edu", parameters={"device": "edu"}, planned=planned),)
    return Summary(**{"night": "n", "plan": plan, "began": began, "cells": cells, "results": results, **fields})


def test_a_night_is_read_as_it_was_written(tmp_path: Path) -> None:
    machine = Machine(name="m", kernel="6.18", processors=2, memory=8000, python="3.11.7", accelerator="tcg")
    wrong = result(Verdict.FAIL, cause="it read 7", evidence="edu/1", slot="here", seconds=3.5)
    written = night(wrong, slots=(Slot(name="here", machine=machine),), status=Status.FINISHED, remarks=("said",))
    written.write(tmp_path)
    assert read_summary(tmp_path) == written
    assert read_summary(tmp_path / "summary.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]


def test_a_field_of_a_later_version_is_passed_over(tmp_path: Path) -> None:
    path = night(result()).write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weather": "rain"}))
    assert read_summary(tmp_path) == night(result())


@for_each(
    [{"schema_version": 2}, {"began": "2026-11-29T02:00:00"}, {"cells": []}, {"status": "good"}, {"results": [{}]}],
    ids=lambda changed: next(iter(changed)),
)
def test_what_is_no_summary_is_refused_by_its_field(changed: dict[str, Any], tmp_path: Path) -> None:
    path = night(result()).write(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(UserError, match=rf"summary\.json.*(cell edu|{next(iter(changed))})"):
        read_summary(tmp_path)


@for_each([b"", b"{", b"\xff", b"[]"])
def test_a_file_that_is_cut_off_is_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_bytes(content)
    with pytest.raises(UserError, match="is no summary of a night"):
        read_summary(tmp_path)


def test_a_folder_without_one_is_no_night(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no night"):
        read_summary(tmp_path)


def test_a_finished_night_has_a_result_for_every_case() -> None:
    with pytest.raises(ValidationError, match="1 result of 2, and"):
        night(result(), planned=2, status=Status.FINISHED)
    assert night(result(), planned=2, status=Status.ENDED).planned == 2


def test_no_case_has_two_results() -> None:
    with pytest.raises(ValidationError, match="is there twice"):
        night(result(), result(), planned=2)


@for_each([Verdict.FAIL, Verdict.ERROR, Verdict.WEDGED, Verdict.SKIP, Verdict.XFAIL])
def test_what_did_not_pass_says_why(verdict: Verdict) -> None:
    with pytest.raises(ValidationError, match=f"{verdict} without its"):
        result(verdict)


@for_each(["/etc/passwd", "../other/page", "edu/../../page"])
def test_evidence_is_in_the_nights_folder(path: str) -> None:
    with pytest.raises(ValidationError, match="leads out of"):
        result(evidence=path)


def test_a_full_disk_leaves_the_summary_before_it(tmp_path: Path) -> None:
    night(result()).write(tmp_path)
    (tmp_path / "summary.new").symlink_to("/dev/full")
    with pytest.raises(OSError, match=r"summary\.json"):
        night(result(Verdict.FAIL, cause="late")).write(tmp_path)
    assert read_summary(tmp_path) == night(result())


def test_the_guide_names_every_field_and_verdict() -> None:
    for model in (Summary, Cell, CaseResult, Slot, Machine, PlanIdentity, Comparison, Changed, Moved, Flake):
        for field in model.model_fields:
            assert f"`{field}`" in GUIDE, f"{model.__name__}.{field}"
    for verdict in Verdict:
        assert f"| {verdict} |" in GUIDE


def test_what_is_told_of_json_is_what_the_models_say() -> None:
    """A field that came to a model had no place in the reference, and no command that makes a night is run for that."""
    models: dict[str, type[BaseModel]] = {"nightly": Summary, "nightly-compare": Comparison}
    for name, model in models.items():
        told = json.loads((ROOT / f"docs/reference/json/{name}.json").read_text())
        said = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
        assert told == said, name
