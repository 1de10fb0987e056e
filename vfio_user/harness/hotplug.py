"""What the guest does when a device is plugged in or out: functions that are sent to it (see `Guest.call`)."""

from __future__ import annotations

from typing import Any


def wait_for_device(pattern: str, seconds: float) -> dict[str, Any]:
    """Wait until the device that `pattern` matches in /sys/bus/pci/devices can be used.

    That of what is behind a root port is PORT/????:??:??.?. Returns the device's `address` there, its `vendor`,
    `device` and `class` numbers, the `driver` it got, the ids of its PCI `capabilities` and the BARs without an address
    (`homeless`), in the kernel's words; or {"missing": what was there instead}.
    """
    import contextlib
    import ctypes
    import socket
    import time
    from pathlib import Path

    uevents = 15  # NETLINK_KOBJECT_UEVENT: the kernel announces what it adds
    news = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, uevents)
    news.bind((0, 1))
    end = time.monotonic() + seconds

    def resources(function: Path) -> list[int]:
        """The BARs that have a size."""
        lines = (function / "resource").read_text().splitlines()[:6]
        return [index for index, line in enumerate(lines) if int(line.split()[1], 16)]

    def usable(function: Path) -> bool:
        # The kernel announces a device before it has given it addresses; the files of its BARs come last.
        return all((function / f"resource{index}").exists() for index in resources(function))

    def capabilities(function: Path) -> list[int]:
        config = (function / "config").read_bytes()
        found: list[int] = []
        at = config[0x34] & ~3 if config[6] & 0x10 else 0
        while 0 < at < len(config) - 1 and len(found) < 48:  # there is room for so many; a chain may be a circle
            found.append(config[at])
            at = config[at + 1] & ~3
        return found

    def homeless(address: str) -> list[str]:
        """What the kernel said last of each BAR since it found the device, where that was no address."""
        log = ctypes.create_string_buffer(1 << 18)
        size = ctypes.CDLL(None).klogctl(3, log, len(log))  # SYSLOG_ACTION_READ_ALL
        last: dict[str, str] = {}
        for line in log.raw[: max(0, size)].decode(errors="replace").splitlines():
            _, ours, said = line.partition(f" {address}: ")
            if ours and said[:1] == "[" and said[10:].startswith("] type "):  # [1234:11e8]
                last.clear()
            elif ours and said.startswith("BAR "):  # BAR 0 [mem size 0x00100000]: failed to assign
                bar, fate = said[:5], said.partition("]: ")[2]
                size = said.partition("[")[2].partition("]")[0]
                last[bar] = f"{bar} ({size})" * fate.startswith(("can't assign", "failed to assign"))
        return [*filter(None, last.values())]

    def look(function: Path) -> dict[str, Any] | None:
        if not usable(function):
            return None
        driver = function / "driver"
        numbers = {name: int((function / name).read_text(), 16) for name in ("vendor", "device", "class")}
        return {
            "address": function.name,
            "driver": driver.resolve().name if driver.exists() else "",
            "capabilities": capabilities(function),
            "homeless": homeless(function.name),
            **numbers,
        }

    while True:
        found = sorted(Path("/sys/bus/pci/devices").glob(pattern))
        with contextlib.suppress(FileNotFoundError):  # it is still being made, or goes away
            if found and (seen := look(found[0])):
                return seen
        left = end - time.monotonic()
        if left <= 0:
            return {"missing": ", ".join(path.name for path in found) or "no device"}
        news.settimeout(min(left, 0.01 if found else 0.25))
        with contextlib.suppress(OSError):  # in vain, or more news than the socket holds: look again
            news.recv(8192)


def memory_size() -> int:
    """Bytes of memory that the kernel has."""
    import os

    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def wait_for_memory(size: int, seconds: float) -> None:
    """Wait until the kernel has so much memory.

    Raises:
        TimeoutError: it never had.
    """
    import contextlib
    import os
    import socket
    import time

    uevents = 15  # NETLINK_KOBJECT_UEVENT: the kernel announces each block of memory
    end = time.monotonic() + seconds
    with socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, uevents) as news:
        news.bind((0, 1))
        while os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") < size:
            if (left := end - time.monotonic()) <= 0:
                raise TimeoutError(f"the kernel has less than {size >> 20} MiB of memory after {seconds:g} s")
            news.settimeout(min(0.25, left))
            with contextlib.suppress(OSError):  # in vain, or more news than the socket holds: look again
                news.recv(8192)
