"""Temporary folders that a killed owner leaves, and who clears them."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from userdev.interposer.server_process import ServerProcess
from userdev.process import OwnedFolder
from userdev.relay.loop import Loop


def _left_by_a_killed_owner(base: Path) -> Path:
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(tell, os.fsencode(OwnedFolder("vfu-", base).path))
        signal.pause()
    left = Path(os.fsdecode(os.read(told, 4096)))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(told)
    os.close(tell)
    return left


def test_what_a_killed_owner_leaves_is_removed_by_the_next(tmp_path: Path) -> None:
    left = _left_by_a_killed_owner(tmp_path)
    (left / "server").touch()
    cleared: list[Path] = []
    with OwnedFolder("vfu-", tmp_path, lambda folder: cleared.append(folder / "server")) as mine:
        assert cleared == [left / "server"]
        assert list(tmp_path.iterdir()) == [mine.path]
    assert not mine.path.exists()
    mine.close()


def test_nothing_is_removed_that_is_not_surely_a_dead_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unmarked, file, other_prefix = tmp_path / "vfu-unmarked", tmp_path / "vfu-file", tmp_path / "other"
    unmarked.mkdir()
    file.touch()
    _left_by_a_killed_owner(tmp_path).rename(other_prefix)
    with OwnedFolder("vfu-", tmp_path) as living:
        other_users = _left_by_a_killed_owner(tmp_path)
        with monkeypatch.context() as patched:
            uid = os.getuid()
            patched.setattr(os, "getuid", lambda: uid + 1)
            with OwnedFolder("vfu-", tmp_path) as mine:
                kept = {unmarked, file, other_prefix, living.path, other_users, mine.path}
                assert set(tmp_path.iterdir()) == kept


def test_the_folder_of_a_killed_interposers_server_is_removed_by_the_next_interposer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    left = _left_by_a_killed_owner(tmp_path)
    loop = Loop()
    process = ServerProcess(loop, "sleep 60 {socket}")
    try:
        assert not left.exists()
        assert Path(process.path).parent in tmp_path.iterdir()
    finally:
        process.close()
        loop.close()
    assert list(tmp_path.iterdir()) == []
