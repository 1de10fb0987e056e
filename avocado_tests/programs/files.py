"""For guests: trees of files, and what is in them. Each function is sent by itself (see `Guest.call`)."""

from __future__ import annotations


def write_tree(top: str, files: int, seed: int) -> dict[str, str]:
    """Files of all sizes in folders within folders, the same for the same seed; name: checksum."""
    import hashlib
    import os
    import random
    from pathlib import Path

    chance = random.Random(seed)
    found = {}
    for number in range(files):
        path = Path(top, *(f"d{chance.randrange(4)}" for _ in range(number % 5)), f"f{number}")
        path.parent.mkdir(parents=True, exist_ok=True)
        data = chance.randbytes(int(2 ** chance.uniform(0, 18)))
        path.write_bytes(data)
        found[str(path)] = hashlib.sha256(data).hexdigest()
    os.sync()
    return found


def read_tree(top: str) -> dict[str, str]:
    """Name: checksum, as they are read back."""
    import hashlib
    from pathlib import Path

    files = (path for path in Path(top).rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
