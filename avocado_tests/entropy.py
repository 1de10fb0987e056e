"""What a guest of the tests does with an entropy source that was plugged in."""

from __future__ import annotations

RAMP = bytes(range(256))
"""What a server of the tests gives, again and again: any BLOCK bytes of it count up, wherever the kernel has begun."""

BLOCK = 16


def is_ramp(data: bytes) -> bool:
    """Whether all of it was given by such a server."""
    blocks = [data[at : at + BLOCK] for at in range(0, len(data), BLOCK)]
    return all(block in RAMP + RAMP for block in blocks)


def read_hwrng(size: int, seconds: float) -> bytes:
    """In the guest: bytes of the entropy source that was plugged in, which is not the machine's own."""
    import time
    from pathlib import Path

    folder = Path("/sys/class/misc/hw_random")
    end = time.monotonic() + seconds

    def sources() -> list[str]:  # beside them is "none"
        return [name for name in (folder / "rng_available").read_text().split() if name.startswith("virtio_rng.")]

    while len(sources()) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    (folder / "rng_current").write_text(max(sources(), key=lambda name: int(name.rpartition(".")[2])))
    with open("/dev/hwrng", "rb", buffering=0) as device:
        device.read(256)  # what the machine's own had given before
        data = b""
        while len(data) < size:
            data += device.read(size - len(data))
    return data
