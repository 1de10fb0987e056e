"""Whatever reads what others have written: it takes what is its own, and refuses all else with its one error."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.cases import for_each
from tests.fuzzing_readers import Reader, campaign, readers

NAMES = [
    "trace",
    "trace of vhost-user",
    "logs beside a trace",
    "scenario",
    "scenario of vhost-user",
    "register map",
    "recipe",
    "files of a run",
    "record of a page",
    "bundle",
    "journal of a soak",
    "find of a fuzzer",
    "plan of nights",
    "servers of others",
    "weights of a soak",
    "summary of a night",
    "lines for an interposer",
    "an interposer's control socket",
    "a device's control socket",
    "answers of a guest's agent",
    "saved state",
    "saved state with checksums that fit",
]


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Reader]]:
    with readers(tmp_path_factory.mktemp("readers")) as found:
        yield {reader.name: reader for reader in found}


def test_the_stage_has_all_of_them(known: dict[str, Reader]) -> None:
    assert list(known) == NAMES


@for_each(NAMES)
def test_what_is_good_is_read(name: str, known: dict[str, Reader]) -> None:
    for sample in known[name].samples:
        known[name].read(sample)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_nearly_right_is_read_or_refused(known: dict[str, Reader], name: str) -> None:
    outcome = campaign(known[name], 25, seed=11)
    assert not outcome.wrong


def test_a_defect_is_found_and_told_with_its_place() -> None:
    def read(data: bytes) -> None:
        if len(data) != 4:
            raise KeyError(len(data))

    outcome = campaign(Reader("bad", (b"good",), read), 100, seed=1)
    assert len(outcome.wrong) == 10
    assert "test_fuzz_readers.py" in outcome.wrong[0]
