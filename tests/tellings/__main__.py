"""Write all that is kept anew: `python -m tests.tellings [ROOM ...]`."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.tellings import KEPT, as_kept, plain
from tests.tellings.rooms import ROOMS, told_in

for name in sys.argv[1:] or ROOMS:
    with tempfile.TemporaryDirectory() as folder:
        (KEPT / f"{name}.json").write_text(as_kept(plain(told_in(name, Path(folder)))) + "\n")
