"""rust-vmm's front-end drives our disk: it checks what is answered more strictly than others do.

`scripts/nightly`: a compiler and 200 MB of packages are fetched for it.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.rust_front_end import rust_front_end
from userdev_servers.blk import Blk
from vhost_user.backend import Server

pytestmark = [pytest.mark.nightly, pytest.mark.timeout(600)]

QUEUES, EACH = 4, 32 << 10
SIZE = 8 << 20


@pytest.fixture(scope="module")
def program() -> Path:
    return rust_front_end()


@pytest.mark.parametrize("memory", ["table", "slots"])
def test_it_finds_what_it_wrote_after_a_stop_and_the_image_has_it(program: Path, tmp_path: Path, memory: str) -> None:
    disk = Blk(image=f"{tmp_path}/image:{SIZE}", queues=QUEUES)
    with Server(disk, f"unix:{tmp_path}/s"):
        for _ in range(2):
            ran = subprocess.run([program, f"{tmp_path}/s", memory], capture_output=True, text=True, timeout=60)
            assert ran.returncode == 0, ran.stderr
            said = dict(line.rsplit(" ", 1) for line in ran.stdout.splitlines())
            assert (said["queues"], said["sectors"]) == (str(QUEUES), str(SIZE // 512))
            assert said["read back"] == str(QUEUES * EACH)
            assert ("slots" in said) == (memory == "slots")
    disk.close()
    written = bytes((at // 512 * 7 + at % 251 + queue) & 0xFF for queue in range(QUEUES) for at in range(EACH))
    assert (tmp_path / "image").read_bytes()[: len(written)] == written
