"""The cache: one maker at a time, and nothing half made."""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import filelock
import pytest

from userdev.errors import UserError
from vfio_user.harness import cache


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_the_environment_chooses_the_folder(own_cache: Path) -> None:
    assert cache.cache_dir() == own_cache
    assert own_cache.is_dir()


def test_without_it_the_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(cache.ENVIRONMENT)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_dir() == tmp_path / "xdg" / "vfio-user"


def test_a_cache_that_cannot_be_made_is_the_users_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(cache.ENVIRONMENT, str(tmp_path / "file" / "cache"))
    with pytest.raises(UserError) as raised:
        cache.cache_dir()
    assert cache.ENVIRONMENT in raised.value.hint


def test_a_read_only_cache_is_the_users_error(own_cache: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    own_cache.mkdir(mode=0o500)
    with pytest.raises(UserError):
        cache.cache_dir()


def test_who_holds_a_lock_is_told_while_it_is_held_and_no_longer(own_cache: Path) -> None:
    holder = own_cache / "locks" / "it.holder"
    for fails in (False, True):
        with contextlib.suppress(LookupError), cache.locked("it"):
            assert f"process {os.getpid()} " in holder.read_text()
            if fails:
                raise LookupError
        assert not holder.exists(), fails


def test_published_work_appears_whole(own_cache: Path) -> None:
    destination = own_cache / "qemu" / "default"
    with cache.publish(destination) as making:
        (making / "one").write_text("1")
        assert not destination.exists()
        (making / "two").write_text("2")
    assert sorted(path.name for path in destination.iterdir()) == ["one", "two"]
    assert list(destination.parent.iterdir()) == [destination]


def test_failed_work_leaves_nothing_and_the_old_untouched(own_cache: Path) -> None:
    destination = own_cache / "image"
    with cache.publish(destination) as making:
        (making / "version").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        _interrupted(destination)
    assert (destination / "version").read_text() == "old"
    assert list(own_cache.iterdir()) == [destination]


def _interrupted(destination: Path) -> None:
    with cache.publish(destination) as making:
        (making / "version").write_text("new")
        raise KeyboardInterrupt


def test_new_work_replaces_the_old(own_cache: Path) -> None:
    for version in ("old", "new"):
        with cache.publish(own_cache / "image") as making:
            (making / version).touch()
    assert [path.name for path in (own_cache / "image").iterdir()] == ["new"]
    assert [path.name for path in own_cache.iterdir()] == ["image"]


@pytest.mark.parametrize("reason", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_the_users_error(own_cache: Path, reason: int) -> None:
    with pytest.raises(UserError) as raised, cache.publish(own_cache / "image"):
        raise OSError(reason, os.strerror(reason))
    assert cache.ENVIRONMENT in raised.value.hint
    assert list(own_cache.iterdir()) == []


def test_where_nothing_can_be_made_any_more_it_is_told_what_to_do(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk, or in a cache whose folders are another user's."""
    for reason in (errno.ENOSPC, errno.EACCES, errno.EROFS):

        def refuse(*_: object, reason: int = reason, **__: object) -> None:
            raise OSError(reason, os.strerror(reason))

        for module, function, use in (
            (tempfile, "mkdtemp", cache.publish(own_cache / "image")),
            (filelock.FileLock, "acquire", cache.locked("it")),
        ):
            with monkeypatch.context() as full:
                full.setattr(module, function, refuse)
                with pytest.raises(UserError) as raised, use:
                    pass
            assert cache.ENVIRONMENT in raised.value.hint, (reason, function)
        with cache.locked("it"), cache.publish(own_cache / "image"):
            pass


def test_the_old_stays_where_the_new_cannot_take_its_place(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    destination, rename = own_cache / "image", Path.rename
    with cache.publish(destination) as making:
        (making / "version").write_text("old")

    def refusing(self: Path, target: Path) -> Path:
        if (self / "new").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refusing)
    with pytest.raises(UserError), cache.publish(destination) as making:
        (making / "new").touch()
    assert (destination / "version").read_text() == "old"


@pytest.mark.parametrize(("age", "stays"), [(60.0, True), (-60.0, False)])
def test_what_a_killed_run_left_is_removed_once_it_is_old(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch, age: float, stays: bool
) -> None:
    leftover = own_cache / ".image.abc.part"
    leftover.mkdir(parents=True)
    os.utime(leftover, (0, 0))  # as unpacking an archive into it may do
    monkeypatch.setattr(cache, "LEFTOVER_SECONDS", age)
    with cache.publish(own_cache / "image"):
        pass
    assert leftover.exists() is stays


HOLDER = """
import sys
from vfio_user.harness.cache import locked
with locked("qemu"):
    print("held", flush=True)
    sys.stdin.read()
"""
WAITER = """
from vfio_user.harness.cache import locked
with locked("qemu"):
    print("held", flush=True)
"""


def _python(program: str) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", program], stdin=pipe, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.parametrize("end", ["releases", "is killed"])
def test_a_second_process_says_for_whom_it_waits_and_gets_the_lock_when_the_first(end: str) -> None:
    with _python(HOLDER) as holder:
        assert holder.stdin
        assert holder.stdout
        assert holder.stdout.readline() == "held\n"
        with _python(WAITER) as waiter:
            assert waiter.stderr
            assert waiter.stdout
            assert str(holder.pid) in waiter.stderr.readline()
            holder.kill() if end == "is killed" else holder.stdin.close()
            assert waiter.stdout.readline() == "held\n"
