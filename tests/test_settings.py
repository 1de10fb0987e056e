"""The settings of the unit tests go by names that are there, and by all of them."""

from __future__ import annotations

import re
from pathlib import Path

from tests.conftest import ON_DISK

HERE = Path(__file__).parent
OPENS_IMAGES = re.compile(r"^(?:from|import) (?:userdev_servers\.(?:block\.backing|blk|nvme)|tests\.nvme_kit)\b", re.M)


def test_whoever_opens_images_has_a_folder_on_a_disk() -> None:
    modules = {path.stem.removeprefix("test_"): path.read_text() for path in HERE.rglob("test_*.py")}
    for begin in ON_DISK:
        assert any(name.startswith(begin) for name in modules), f"no module is called test_{begin}..."
    opening = {name for name, text in modules.items() if OPENS_IMAGES.search(text) and "tmp_path" in text}
    assert opening, "they are looked for by what they import"
    in_memory = sorted(name for name in opening if not name.startswith(ON_DISK))
    assert not in_memory, "name them in ON_DISK of conftest.py: in memory another way of servers is tried"
