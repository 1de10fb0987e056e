"""Booted guests in the cache: boot once per image, QEMU and hardware, restore for every test.

A checkpoint's name is the digest of all that a guest could notice, because QEMU accepts a wrong checkpoint silently
more often than not. One that does not load, or whose guest does not answer, is made anew.

It is two files: the guest's memory as it is, which is copied into a file that QEMU maps while QEMU still starts, and
the state of the devices, which QEMU loads. Where QEMU cannot be handed a file, on another host, it loads both from one,
which is made of those two when it is first asked for.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.command_line import MachineConfig, hardware

# Changes with what `save` or the agent's protocol do, so that an older checkpoint is not used.
FORMAT = 6

_KEPT = (
    16  # of the checkpoints, those used last; each is about 140 MB. The guest-driven suite has 8, other cells their own
)
_MEMORY = "memory"
_STATE = "state"
_WHOLE = "whole"
_MANIFEST = "checkpoint.json"


def checkpoint_name(image_identity: str, qemu_digest: str, config: MachineConfig) -> str:
    """The name of the checkpoint of this guest: a hexadecimal digest."""
    host = _host_processor() if config.accelerator == "kvm" else ""
    identity = {
        "format": FORMAT,
        "image": image_identity,
        "qemu": qemu_digest,
        "hardware": hardware(config),
        "host": host,
    }
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:24]


class Checkpoint:
    """One checkpoint of the cache, there or not."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.folder = cache_dir() / "checkpoints" / name
        self.memory = self.folder / _MEMORY
        self.state = self.folder / _STATE

    def is_valid(self) -> bool:
        """Whether it is there and as long as it was when it was made."""
        try:
            manifest = json.loads((self.folder / _MANIFEST).read_text())
            return all(manifest[name] == (self.folder / name).stat().st_size for name in (_MEMORY, _STATE))
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def ensure(self, make: Callable[[Path, Path], None]) -> bool:
        """Have it made by `make`, which writes the files it is given for memory and state; whether that was necessary.

        Two runs at once make it once: the other waits.
        """
        if self.is_valid():
            self._touch()
            return False
        with locked(f"checkpoint-{self.name}"):
            if self.is_valid():
                return False
            with publish(self.folder) as making:
                make(making / _MEMORY, making / _STATE)
                sizes = {name: (making / name).stat().st_size for name in (_MEMORY, _STATE)}
                (making / _MANIFEST).write_text(json.dumps({**sizes, "format": FORMAT}))
        self._prune()
        return True

    def whole(self, make: Callable[[Path], None]) -> Path:
        """The one file that has all of it, written by `make` where it is not there yet."""
        path = self.folder / _WHOLE
        if not path.exists():
            with locked(f"checkpoint-{self.name}"):
                if not path.exists():
                    making = path.with_suffix(".making")
                    making.unlink(missing_ok=True)
                    make(making)
                    making.replace(path)
        return path

    def discard(self, seen: int) -> None:
        """Remove it, unless it is not the one any more that had the stamp `seen`: another run has replaced it."""
        with locked(f"checkpoint-{self.name}"):
            if self.stamp == seen:
                shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def stamp(self) -> int:
        """A number that tells this checkpoint from one made later under the same name; 0 for none."""
        try:
            return (self.folder / _MANIFEST).stat().st_ctime_ns
        except OSError:
            return 0

    def _touch(self) -> None:
        with suppress(OSError):
            self.folder.touch()

    def _prune(self) -> None:
        """Remove all but this one and those used last. A use that is still to come says nothing: the clock was set
        back since, and whatever was used from then on would have to go for it.
        """
        now, others = time.time(), []
        for folder in self.folder.parent.iterdir():
            with suppress(OSError):
                if not folder.name.startswith(".") and folder != self.folder:
                    used = folder.stat().st_mtime
                    others.append((used if used <= now else 0.0, folder))
        for _, folder in sorted(others, reverse=True)[_KEPT - 1 :]:
            shutil.rmtree(folder, ignore_errors=True)


def checkpoints() -> list[Checkpoint]:
    """All of the cache."""
    folder = cache_dir() / "checkpoints"
    return [Checkpoint(path.name) for path in sorted(folder.glob("[!.]*"))]


def _host_processor() -> str:
    """What `-cpu host` shows a guest: a checkpoint does not move to another processor."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return hashlib.sha256(line.encode()).hexdigest()
    return ""


def zero_free_memory() -> None:
    """In the guest: leave zeros in most of the memory that is free, which a checkpoint then need not hold."""
    import mmap
    import os
    from pathlib import Path

    def zero() -> None:
        Path("/proc/self/oom_score_adj").write_text("1000")  # if it is too much after all, none else has to end for it
        sizes = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(sizes["MemFree"].split()[0]) << 10
        taken = mmap.mmap(-1, free - max(8 << 20, free // 50), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        taken.madvise(mmap.MADV_NOHUGEPAGE)  # single pages come from where memory was used and freed
        taken.madvise(23)  # MADV_POPULATE_WRITE

    kept_back = {"min_free_kbytes": "1024", "percpu_pagelist_high_fraction": "100000"}
    usual = {name: Path(f"/proc/sys/vm/{name}").read_text() for name in kept_back}
    for name, text in kept_back.items():
        Path(f"/proc/sys/vm/{name}").write_text(text)
    for _ in range(2):  # what the processor has kept at hand is free for all once the first is freed
        if not (child := os.fork()):
            try:
                zero()
            finally:
                os._exit(0)
        os.waitpid(child, 0)
    for name, text in usual.items():
        Path(f"/proc/sys/vm/{name}").write_text(text)
