"""What people write, as a model: the line that a mistake is told with."""

from __future__ import annotations

from pathlib import Path

import pytest

from userdev.errors import UserError
from userdev.written import Written, read_document


class Thing(Written):
    name: str
    parts: list[int] = []


def test_a_mistake_has_its_line_and_what_is_missing_that_of_the_first_of_what_it_is_missing_in(tmp_path: Path) -> None:
    path = tmp_path / "thing.yaml"
    for text, line in {
        "other: 1\n": 1,
        "# a comment\n\nother: 1\n": 3,
        "name: 1\n": 1,
        "# a comment\nname: a\nparts:\n  - 1\n  - b\n": 5,
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=rf"thing\.yaml:{line}: "):
            read_document(Thing, path, "thing")
