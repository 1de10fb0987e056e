"""What the tests of NVMe controllers share: a guest whose in-tree driver has them, and fio."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from userdev.control import ControlClient
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import BootedGuest, BootOptions, GuestFailure, Job, Lab, LocalHost, Plugged

MIB = 1 << 20
IO_TIMEOUT = 2
"""Seconds that the guest's driver gives a command in tests that lose some; the kernel's default is 30."""


@dataclass
class Bench:
    """A guest with one NVMe controller of ours. `folder` has its images, `disk0.img` and so on."""

    lab: Lab
    guest: BootedGuest
    folder: Path
    device: str

    @property
    def image(self) -> Path:
        """That of namespace 1."""
        return self.folder / "disk0.img"

    @property
    def control(self) -> ControlClient:
        """A new connection to the controller's control socket."""
        return ControlClient(self.folder / "control")

    def block(self, nsid: int = 1, *, size: int | None = None) -> str:
        return block_device(self.guest, nsid, size=size)


def block_device(guest: BootedGuest, nsid: int = 1, *, plugged: Plugged | None = None, size: int | None = None) -> str:
    """The guest's name for a namespace, /dev/nvme0n1, once it is there (and has so many bytes)."""
    address = (plugged or guest.device).address
    found: str = guest.call(_wait_for_namespace, address, nsid, size, 10 * guest.patience, timeout=15)
    return found


def character_device(guest: BootedGuest, plugged: Plugged | None = None) -> str:
    """The guest's name for a controller: /dev/nvme0."""
    return "/dev/" + guest.succeed(f"ls {(plugged or guest.device).sysfs}/nvme").strip()


def set_io_timeout(guest: BootedGuest, seconds: int = IO_TIMEOUT) -> None:
    """What the driver waits for commands, from the next controller on."""
    for name in ("io_timeout", "admin_timeout"):
        guest.succeed(f"echo {seconds} > /sys/module/nvme_core/parameters/{name}")


class NvmeTest(GuestTest):
    """A test of the NVMe controller with the driver of the guest's kernel."""

    @contextmanager
    def bench(
        self,
        *sizes: str,
        options: str = "",
        server: str = "",
        faults: str = "",
        io_timeout: int = 0,
        **boot: Unpack[BootOptions],
    ) -> Iterator[Bench]:
        """A guest with a controller that has namespaces of these sizes (`64M`, `8M:ro`), or one of 64 MiB.

        `server` is another command line, in which {nvme} is the controller with its options, and {folder} that of the
        images, where `faults` are written to a file of this name. `boot` is for `Lab.boot`.
        """
        with tempfile.TemporaryDirectory(prefix="vfu-") as scratch, self.lab() as lab:
            folder = Path(scratch)
            images = ",".join(f"{folder}/disk{index}.img:{size}" for index, size in enumerate(sizes or ("64M",)))
            for index, size in enumerate(sizes):
                if size.endswith(":ro"):  # which makes no file
                    make_image(folder / f"disk{index}.img", int(size.removesuffix("M:ro")) * MIB)
            (folder / "faults").write_text(faults)
            control = "" if boot.get("migratable") else f"--control {folder}/control"  # each server's own
            device = f"nvme --image {images} {control} {options}"
            guest = lab.boot(image="storage", **boot)
            self.load_driver(guest, io_timeout)
            plugged = server.replace("{nvme}", device).replace("{folder}", scratch) or device
            guest.plug(
                plugged,
                server=lab.serve(plugged, interposed=boot.get("migratable", False), host=boot.get("host", LocalHost())),
            )
            bench = Bench(lab, guest, folder, device)
            bench.block()
            yield bench

    def load_driver(self, guest: BootedGuest, io_timeout: int = 0) -> None:
        guest.succeed("modprobe nvme", "modprobe ext4")
        if io_timeout:
            set_io_timeout(guest, io_timeout)

    def start_load(self, bench: Bench, *, runtime: int, **options: object) -> Job:
        """Begin a fio job that writes and verifies over and over for so many seconds; it is under way on return."""
        always = {"verify": "crc32c", "verify_fatal": 1, "time_based": 1, "runtime": runtime}
        disk = bench.block()
        job = bench.guest.start(fio_command(disk, **always, **options), 90)
        written = f"/sys/block/{Path(disk).name}/stat"
        bench.guest.wait_until_succeeds(f"test $(awk '{{print $7}}' {written}) -gt 2000", interval=0.02)
        return job

    def fio(self, guest: BootedGuest, target: str, *, timeout: float = 60.0, **options: object) -> Mapping[str, Any]:
        """Run one fio job on a device, with direct I/O; its figures. What it finds wrong fails the test."""
        result = guest.run(fio_command(target, **options), timeout)
        try:
            report = json.loads(result.stdout[result.stdout.index("{") :])
            jobs = report["jobs"]
        except (ValueError, KeyError) as error:
            raise GuestFailure("fio gave no report", evidence=f"{result.describe()}\n{guest.evidence()}") from error
        if not result.ok or any(job["error"] for job in jobs):
            raise GuestFailure("fio found an error", evidence=f"{result.stderr}\n{guest.evidence()}", result=result)
        self.log.info("%s: %s", fio_line(options), {way: jobs[0][way]["total_ios"] for way in ("read", "write")})
        figures: Mapping[str, Any] = jobs[0]
        return figures


def fio_command(target: str, **options: object) -> list[str]:
    defaults: dict[str, object] = {
        "name": "job",
        "filename": target,
        "direct": 1,
        "ioengine": "libaio",
        "group_reporting": 1,
        "thread": 1,
        "output-format": "json",
    }
    return ["fio", *fio_line(defaults | options).split()]


def fio_line(options: Mapping[str, object]) -> str:
    return " ".join(
        f"--{name.replace('_', '-') if name == 'output_format' else name}={options[name]}" for name in options
    )


def make_image(path: Path, size: int) -> None:
    """Blocks that begin with their own number, as `expect_numbered` wants them."""
    with path.open("wb") as file:
        for number in range(size // 4096):
            file.write(number.to_bytes(8, "little").ljust(4096, b"\xa5"))


def _wait_for_namespace(address: str, nsid: int, size: int | None, seconds: float) -> str:
    import sys

    sys.path.append("/opt/vfio-user")
    from disk_work import namespace

    return str(namespace(address, nsid, size, seconds))
