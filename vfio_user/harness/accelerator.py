"""KVM or TCG: asked of a guest, because /dev/kvm alone proves nothing.

On some virtual machines the device is there, firmware runs, and a kernel dies with "KVM internal error: emulation
failure", because the host's KVM interprets a guest's privileged code and its interpreter knows few instructions. So the
probe is a guest that enters 64-bit mode and there executes an instruction that every such processor has and no
interpreter of KVM's knows.
"""

from __future__ import annotations

import os
import select
import tempfile
import time
from pathlib import Path

from userdev.errors import about
from userdev.process import Child, Deadline
from vfio_user.harness.cache import cache_dir
from vfio_user.harness.qemu import Qemu
from vfio_user.harness.timeouts import Accelerator

KVM = Path("/dev/kvm")
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROBE_SECONDS = 10.0  # seconds; a good one answers in 0.1, a bad one mostly says so at once
_SILENT_SECONDS = 600.0  # until one that did not answer is tried again
FAILURE = b"internal error"

# A multiboot kernel, loaded at and entered 0x20 bytes into 0x100000 in 32-bit protected mode
# (Multiboot 0.6.96, 3.1.1 and 3.2). Page tables go to 0x200000, where memory is still zero.
_PROBE = bytes.fromhex(
    "02b0ad1b 00000100 fe4f51e4"  # magic, flags: addresses follow, checksum
    "00001000 00001000 00000000 00000000 20001000"  # header, load, end of file, no bss, entry
    "c705 00002000 03102000"  # movl $0x201003, 0x200000      PML4[0]
    "c705 00102000 03202000"  # movl $0x202003, 0x201000      PDPT[0]
    "c705 00202000 83000000"  # movl $0x83, 0x202000          PD[0]: 2 MiB at 0
    "b8 00002000 0f22d8"  # mov $0x200000, %eax; mov %eax, %cr3
    "b8 20020000 0f22e0"  # mov $0x220, %eax; mov %eax, %cr4  OSFXSR, PAE
    "b9 800000c0 b8 00010000 31d2 0f30"  # EFER: LME
    "b8 13000080 0f22c0"  # mov $0x80000013, %eax; mov %eax, %cr0
    "0f0115 98001000"  # lgdt 0x100098
    "ea 72001000 0800"  # ljmp $8, $0x100072: 64-bit mode from here
    "b8 15000000 660f6ec0"  # mov $21, %eax; movd %eax, %xmm0
    "660ffec0 660f7ec0"  # paddd %xmm0, %xmm0; movd %xmm0, %eax
    "e6f4 f4 ebfd"  # out %al, $0xf4; then halt for good
    "0000000000000000 ffff0000009aaf00"  # GDT: null, 64-bit code
    "0f00 88001000"  # its limit and address
)
# isa-debug-exit ends QEMU with status 2 * value + 1
_EXIT = ("-device", "isa-debug-exit,iobase=0xf4,iosize=1")
_SUCCESS = 2 * 42 + 1


def probe_accelerator(qemu: Qemu) -> Accelerator:
    """Say "kvm" when a guest of this QEMU really runs under KVM, else "tcg"; tried once per QEMU and boot.

    A probe that did not answer is tried again after ten minutes: the host may have been busy, and TCG takes
    ten times as long for a night.
    """
    if not os.access(KVM, os.R_OK | os.W_OK):
        return "tcg"
    remembered = cache_dir() / "accelerator" / qemu.digest[:16]
    boot_id = BOOT_ID.read_text().strip()
    match _remembered(remembered):
        case [boot, "kvm"] if boot == boot_id:
            return "kvm"
        case [boot, "tcg"] if boot == boot_id:
            return "tcg"
        case [boot, "silent", now] if boot == boot_id and time.monotonic() < float(now) + _SILENT_SECONDS:
            return "tcg"
    runs = guest_runs(qemu, "kvm")
    verdict = f"silent {time.monotonic()}" if runs is None else "kvm" if runs else "tcg"
    with about(remembered):
        remembered.parent.mkdir(exist_ok=True)
        remembered.write_text(f"{boot_id} {verdict}")
    return "kvm" if runs else "tcg"


def guest_runs(qemu: Qemu, accelerator: Accelerator, *, limit: float = PROBE_SECONDS) -> bool | None:
    """Whether the probe computes under this accelerator what a processor would; None: no answer in `limit` seconds."""
    with tempfile.TemporaryDirectory(prefix="vfio-user-probe-") as folder:
        kernel, words = Path(folder, "probe"), Path(folder, "words")
        kernel.write_bytes(_PROBE)
        os.mkfifo(words)
        machine = ("-machine", "pc", "-accel", accelerator, "-m", "16", "-nodefaults", "-no-user-config")
        argv = [*qemu.argv, *machine, "-display", "none", "-no-reboot", *_EXIT, "-kernel", str(kernel)]
        listening = os.open(words, os.O_RDONLY | os.O_NONBLOCK)
        try:
            child = Child("accelerator probe", argv, log=words)
            try:
                has_answered = _listen(listening, Deadline(limit))
            finally:
                code = child.stop(grace=0)
        finally:
            os.close(listening)
    return code == _SUCCESS if has_answered else None


def _listen(words: int, deadline: Deadline) -> bool:
    """Whether QEMU ended, or said that the guest failed (when it goes on, stopped), before the deadline."""
    said = b""
    poller = select.poll()
    poller.register(words, select.POLLIN)
    while poller.poll(deadline.remaining * 1000):
        chunk = os.read(words, 65536)
        said += chunk
        if not chunk or FAILURE in said:
            return True
    return False


def _remembered(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
