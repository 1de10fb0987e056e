#!/usr/bin/env python3
"""Send a table of commands, good and malformed, to an NVMe controller, with no driver in between.

Prints one JSON object, as edu.py does. `seen` has what the controller answered: the status of each command by its name,
fields of what it is, and a digest of what the disk holds in the end. `wrong` says if memory that no command was given
has changed, or the controller works no more. The same program runs on any controller, so that two can be compared. It
overwrites the first MiB of namespace 1, which has to be zeros before.

    nvme_commands --slot 01:00.0

Numbers: NVM Express Base Specification 1.4.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack
from hashlib import sha256
from struct import Struct, pack, unpack_from

from guest_pci import DeviceError, DmaMemory, PciFunction
from guest_vfio import Device, open_device

PAGE = 4096
CAP, CC, CSTS, AQA, ASQ, ACQ, DOORBELLS = 0x00, 0x14, 0x1C, 0x24, 0x28, 0x30, 0x1000
ENABLE = 0x00460001
READY, FATAL = 1, 2
ENTRIES = 32
PATIENCE = 10.0  # seconds for a command; a guest under TCG is slow

DELETE_SQ, CREATE_SQ, GET_LOG_PAGE, DELETE_CQ, CREATE_CQ, IDENTIFY = 0, 1, 2, 4, 5, 6
ABORT, SET_FEATURES, GET_FEATURES, FORMAT_NVM = 8, 9, 10, 0x80
FLUSH, WRITE, READ, COMPARE, WRITE_ZEROES, DATASET_MANAGEMENT = 0, 1, 2, 5, 8, 9
ALL_NAMESPACES = 0xFFFFFFFF
SGL = 0x40
BEHIND = 4096
"""A block behind those that `disk_digest` covers: what a controller takes from nowhere differs."""

_COMMAND = Struct("<BBHIQQQQ6I")
_COMPLETION = Struct("<IIHHHH")

Fields = dict[str, int]


class Queue:
    """A submission and a completion queue of one number, looked at without interrupts."""

    def __init__(self, controller: Controller, number: int) -> None:
        self.number = number
        self.sq = controller.memory(ENTRIES * 64)
        self.cq = controller.memory(ENTRIES * 16)
        self._controller = controller
        self._tail = self._head = 0
        self._phase = 1
        self._cid = 0

    def do(self, opcode: int, **fields: int) -> tuple[int, int]:
        """Status (code type and code) and result of a command."""
        self._cid = self._cid + 1 & 0xFFFF
        names = ("flags", "nsid", "mptr", "prp1", "prp2", "cdw10", "cdw11", "cdw12", "cdw13", "cdw14", "cdw15")
        flags, nsid, *rest = (fields.get(name, 0) for name in names)
        entry = _COMMAND.pack(opcode, flags, self._cid, nsid, 0, *rest)
        self.sq.bytes[64 * self._tail : 64 * self._tail + 64] = entry
        self._tail = (self._tail + 1) % ENTRIES
        self._controller.bar.write(DOORBELLS + 8 * self.number, self._tail)
        return self._wait()

    def _wait(self) -> tuple[int, int]:
        end = time.monotonic() + PATIENCE
        while True:
            if self.cq.bytes[16 * self._head + 14] & 1 == self._phase:  # the rest is there once this is
                break
            if time.monotonic() > end:
                raise DeviceError("a command was not completed")
            time.sleep(0.0005)
        result, _, _, _, cid, field = _COMPLETION.unpack_from(self.cq.bytes, 16 * self._head)
        self._head = (self._head + 1) % ENTRIES
        self._phase ^= not self._head
        self._controller.bar.write(DOORBELLS + 8 * self.number + 4, self._head)
        if cid != self._cid:
            raise DeviceError(f"command {cid} was completed, not {self._cid}")
        return field >> 1 & 0x7FF, result


class Controller:
    """A controller, enabled, with an admin and one I/O queue."""

    def __init__(self, device: Device) -> None:
        self.bar = device.bar(0)
        self._device = device
        self.bar.write(CC, 0)
        self._until(0)
        self.admin = Queue(self, 0)
        self.bar.write(AQA, (ENTRIES - 1) * 0x10001)
        self._write_address(ASQ, self.admin.sq.address)
        self._write_address(ACQ, self.admin.cq.address)
        self.bar.write(CC, ENABLE)
        self._until(READY)
        self.io = Queue(self, 1)
        for opcode, memory, more in ((CREATE_CQ, self.io.cq, 1), (CREATE_SQ, self.io.sq, 1 << 16 | 1)):
            status, _ = self.admin.do(opcode, prp1=memory.address, cdw10=(ENTRIES - 1) << 16 | 1, cdw11=more)
            if status:
                raise DeviceError(f"the I/O queue could not be created: status {status:#x}")

    def memory(self, size: int) -> DmaMemory:
        return self._device.dma_memory(size)

    def _write_address(self, offset: int, value: int) -> None:
        self.bar.write(offset, value & 0xFFFFFFFF)
        self.bar.write(offset + 4, value >> 32)

    def _until(self, ready: int) -> None:
        end = time.monotonic() + PATIENCE
        while (found := self.bar.read(CSTS)) & (READY | FATAL) != ready:
            if time.monotonic() > end:
                raise DeviceError(f"the controller's status is {found:#x}, not {ready:#x}")
            time.sleep(0.001)

    @property
    def works(self) -> bool:
        return self.bar.read(CSTS) & (READY | FATAL) == READY


def sgl(address: int, size: int, kind: int = 0) -> Fields:
    return {"flags": SGL, "prp1": address, "prp2": size | kind << 56}


def admin_commands(buffer: int, nowhere: int) -> dict[str, tuple[int, Fields]]:
    """Name: opcode and fields. `buffer` are 16 pages; at `nowhere` the guest has given no memory."""
    queue = (ENTRIES - 1) << 16
    return {
        "identify controller": (IDENTIFY, {"prp1": buffer, "cdw10": 1}),
        "identify namespace": (IDENTIFY, {"prp1": buffer, "nsid": 1}),
        "identify namespace list": (IDENTIFY, {"prp1": buffer, "cdw10": 2}),
        "identify to two odd halves": (IDENTIFY, {"prp1": buffer + 0x800, "prp2": buffer + PAGE, "cdw10": 1}),
        "identify namespace 0": (IDENTIFY, {"prp1": buffer}),
        "identify namespace 300": (IDENTIFY, {"prp1": buffer, "nsid": 300}),
        "identify nothing known": (IDENTIFY, {"prp1": buffer, "cdw10": 0xFE}),
        "identify to nowhere": (IDENTIFY, {"prp1": nowhere, "cdw10": 1}),
        "identify with a second page that is none": (
            IDENTIFY,
            {"prp1": buffer + 0x800, "prp2": buffer + PAGE + 8, "cdw10": 1},
        ),
        "unknown opcode": (0x7E, {}),
        "SMART log": (GET_LOG_PAGE, {"prp1": buffer, "nsid": ALL_NAMESPACES, "cdw10": 127 << 16 | 2}),
        "error log": (GET_LOG_PAGE, {"prp1": buffer, "nsid": ALL_NAMESPACES, "cdw10": 15 << 16 | 1}),
        "firmware log": (GET_LOG_PAGE, {"prp1": buffer, "nsid": ALL_NAMESPACES, "cdw10": 127 << 16 | 3}),
        "unknown log": (GET_LOG_PAGE, {"prp1": buffer, "nsid": ALL_NAMESPACES, "cdw10": 127 << 16 | 0xEE}),
        "behind the SMART log": (
            GET_LOG_PAGE,
            {"prp1": buffer, "nsid": ALL_NAMESPACES, "cdw10": 127 << 16 | 2, "cdw12": 4096},
        ),
        "get number of queues": (GET_FEATURES, {"cdw10": 7}),
        "get write cache": (GET_FEATURES, {"cdw10": 6}),
        "get unknown feature": (GET_FEATURES, {"cdw10": 0x7F}),
        "set write cache": (SET_FEATURES, {"cdw10": 6, "cdw11": 1}),
        "set unknown feature": (SET_FEATURES, {"cdw10": 0x7F}),
        "save write cache": (SET_FEATURES, {"cdw10": 1 << 31 | 6, "cdw11": 1}),
        "set number of queues too late": (SET_FEATURES, {"cdw10": 7, "cdw11": 0x10001}),
        "set no queues": (SET_FEATURES, {"cdw10": 7, "cdw11": 0xFFFFFFFF}),
        "create CQ 0": (CREATE_CQ, {"prp1": buffer, "cdw10": queue, "cdw11": 1}),
        "create CQ in use": (CREATE_CQ, {"prp1": buffer, "cdw10": queue | 1, "cdw11": 1}),
        "create CQ 65535": (CREATE_CQ, {"prp1": buffer, "cdw10": queue | 0xFFFF, "cdw11": 1}),
        "create CQ of one entry": (CREATE_CQ, {"prp1": buffer, "cdw10": 2, "cdw11": 1}),
        "create CQ of 65536 entries": (CREATE_CQ, {"prp1": buffer, "cdw10": 0xFFFF0002, "cdw11": 1}),
        "create CQ at an odd address": (CREATE_CQ, {"prp1": buffer + 16, "cdw10": queue | 2, "cdw11": 1}),
        "create CQ in pieces": (CREATE_CQ, {"prp1": buffer, "cdw10": queue | 2}),
        "create CQ with vector 2000": (CREATE_CQ, {"prp1": buffer, "cdw10": queue | 2, "cdw11": 2000 << 16 | 3}),
        "create SQ 0": (CREATE_SQ, {"prp1": buffer, "cdw10": queue, "cdw11": 1 << 16 | 1}),
        "create SQ in use": (CREATE_SQ, {"prp1": buffer, "cdw10": queue | 1, "cdw11": 1 << 16 | 1}),
        "create SQ without CQ": (CREATE_SQ, {"prp1": buffer, "cdw10": queue | 2, "cdw11": 3 << 16 | 1}),
        "create SQ on the admin CQ": (CREATE_SQ, {"prp1": buffer, "cdw10": queue | 2, "cdw11": 1}),
        "create SQ of one entry": (CREATE_SQ, {"prp1": buffer, "cdw10": 2, "cdw11": 1 << 16 | 1}),
        "create SQ at an odd address": (CREATE_SQ, {"prp1": buffer + 64, "cdw10": queue | 2, "cdw11": 1 << 16 | 1}),
        "create SQ in pieces": (CREATE_SQ, {"prp1": buffer, "cdw10": queue | 2, "cdw11": 1 << 16}),
        "delete SQ 0": (DELETE_SQ, {"cdw10": 0}),
        "delete SQ that there is not": (DELETE_SQ, {"cdw10": 2}),
        "delete CQ 0": (DELETE_CQ, {"cdw10": 0}),
        "delete CQ that there is not": (DELETE_CQ, {"cdw10": 2}),
        "delete CQ in use": (DELETE_CQ, {"cdw10": 1}),
        "abort what is not there": (ABORT, {"cdw10": 0x7777 << 16 | 1}),
        "format to what there is not": (FORMAT_NVM, {"nsid": 1, "cdw10": 15}),
        "format namespace 300": (FORMAT_NVM, {"nsid": 300}),
    }


def io_commands(buffer: int, nowhere: int, lists: int, blocks: int) -> dict[str, tuple[int, Fields]]:
    """The same for the I/O queue. At `lists` are pages with PRP lists and segments, as `fill_lists` leaves them."""
    last = {"cdw10": blocks - 1, "cdw11": 0}
    return {
        "write": (WRITE, {"nsid": 1, "prp1": buffer, "cdw12": 7}),
        "read": (READ, {"nsid": 1, "prp1": buffer, "cdw12": 7}),
        "read the last block": (READ, {"nsid": 1, "prp1": buffer, **last}),
        "read across two pages": (READ, {"nsid": 1, "prp1": buffer + 512, "prp2": buffer + PAGE, "cdw12": 7}),
        "read by a list": (READ, {"nsid": 1, "prp1": buffer, "prp2": lists, "cdw12": 31}),
        "read by a descriptor": (READ, {"nsid": 1, "cdw12": 7, **sgl(buffer, 4096)}),
        "read by a segment": (READ, {"nsid": 1, "cdw12": 7, **sgl(lists + PAGE, 32, 0x30)}),
        "flush": (FLUSH, {"nsid": 1}),
        "flush all": (FLUSH, {"nsid": ALL_NAMESPACES}),
        "compare equal": (COMPARE, {"nsid": 1, "prp1": buffer, "cdw12": 7}),
        "write zeroes": (WRITE_ZEROES, {"nsid": 1, "cdw10": 64, "cdw12": 7}),
        "write with FUA": (WRITE, {"nsid": 1, "prp1": buffer, "cdw12": 1 << 30 | 7}),
        "compare unequal": (COMPARE, {"nsid": 1, "prp1": buffer, "cdw10": 64, "cdw12": 7}),
        "deallocate": (DATASET_MANAGEMENT, {"nsid": 1, "prp1": lists + 2 * PAGE, "cdw11": 4}),
        "unknown opcode": (0x7F, {"nsid": 1}),
        "namespace 0": (READ, {"prp1": buffer}),
        "namespace 300": (READ, {"nsid": 300, "prp1": buffer}),
        "all namespaces": (READ, {"nsid": ALL_NAMESPACES, "prp1": buffer}),
        "behind the end": (READ, {"nsid": 1, "prp1": buffer, "cdw10": blocks}),
        "across the end": (WRITE, {"nsid": 1, "prp1": buffer, "cdw10": blocks - 1, "cdw12": 1}),
        "far behind the end": (WRITE, {"nsid": 1, "prp1": buffer, "cdw10": 0xFFFFFFFF, "cdw11": 0xFFFFFFFF}),
        "zeroes across the end": (WRITE_ZEROES, {"nsid": 1, "cdw10": blocks - 1, "cdw12": 1}),
        "compare behind the end": (COMPARE, {"nsid": 1, "prp1": buffer, "cdw10": blocks}),
        "more than a transfer": (READ, {"nsid": 1, "prp1": buffer, "prp2": lists, "cdw12": 0xFFFF}),
        "read to nowhere": (READ, {"nsid": 1, "prp1": nowhere}),
        "write from nowhere": (WRITE, {"nsid": 1, "prp1": nowhere, "cdw10": BEHIND}),
        "read to nowhere in the second page": (READ, {"nsid": 1, "prp1": buffer, "prp2": nowhere, "cdw12": 15}),
        "a list that is nowhere": (READ, {"nsid": 1, "prp1": buffer, "prp2": nowhere, "cdw12": 127}),
        "a list of nowhere": (READ, {"nsid": 1, "prp1": buffer, "prp2": lists + 3 * PAGE, "cdw12": 31}),
        "a second page that is none": (READ, {"nsid": 1, "prp1": buffer, "prp2": buffer + PAGE + 512, "cdw12": 15}),
        "a list of odd pages": (READ, {"nsid": 1, "prp1": buffer, "prp2": lists + 4 * PAGE, "cdw12": 31}),
        "a descriptor that is too short": (READ, {"nsid": 1, "cdw12": 7, **sgl(buffer, 2048)}),
        "a descriptor of nowhere": (READ, {"nsid": 1, "cdw12": 7, **sgl(nowhere, 4096)}),
        "an unknown descriptor": (READ, {"nsid": 1, "cdw12": 7, **sgl(buffer, 4096, 0x70)}),
        "a segment of nowhere": (READ, {"nsid": 1, "cdw12": 7, **sgl(nowhere, 32, 0x30)}),
        "a segment of half a descriptor": (READ, {"nsid": 1, "cdw12": 7, **sgl(lists + PAGE, 8, 0x30)}),
        "an unknown pointer": (READ, {"nsid": 1, "prp1": buffer, "cdw12": 7, "flags": 0xC0}),
        "fused": (READ, {"nsid": 1, "prp1": buffer, "cdw12": 7, "flags": 1}),
        "ranges from nowhere": (DATASET_MANAGEMENT, {"nsid": 1, "prp1": nowhere, "cdw11": 4}),
        "read after all that": (READ, {"nsid": 1, "prp1": buffer, "cdw12": 7}),
    }


def fill_lists(lists: DmaMemory, buffer: int, nowhere: int) -> None:
    """Pages: a good PRP list, a good segment, a range, a list with a page that is nowhere, one with odd addresses."""
    pages = [buffer + place * PAGE for place in range(1, 4)]
    contents = [
        pack("<3Q", *pages),
        pack("<QI3xB", buffer, 2048, 0) + pack("<QI3xB", buffer + 8192, 2048, 0),
        pack("<IIQ", 0, 8, 128),
        pack("<3Q", pages[0], nowhere, pages[2]),
        pack("<3Q", pages[0], pages[1] + 512, pages[2]),
    ]
    for place, content in enumerate(contents):
        lists.bytes[place * PAGE : place * PAGE + len(content)] = content


IDENTIFY_CONTROLLER = {  # field: offset and layout
    "controller type": (111, "<B"),
    "abort limit": (258, "<B"),
    "SQ entry size": (512, "<B"),
    "CQ entry size": (513, "<B"),
    "namespaces": (516, "<I"),
    "optional commands": (520, "<H"),
    "write cache": (525, "<B"),
    "scatter gather lists": (536, "<I"),
    "version": (80, "<I"),
    "transfer size": (77, "<B"),
    "optional admin commands": (256, "<H"),
    "firmware slots": (260, "<B"),
}
IDENTIFY_NAMESPACE = {
    "size": (0, "<Q"),
    "capacity": (8, "<Q"),
    "metadata": (27, "<B"),
    "protection": (28, "<B"),
    "shared": (30, "<B"),
    "features": (24, "<B"),
    "block format": (128, "<I"),
}


def identities(controller: Controller, buffer: DmaMemory) -> dict[str, dict[str, int]]:
    """What the controller and its namespace say that they are."""
    found = {}
    for name, fields, more in (
        ("controller", IDENTIFY_CONTROLLER, {"cdw10": 1}),
        ("namespace", IDENTIFY_NAMESPACE, {"nsid": 1}),
    ):
        controller.admin.do(IDENTIFY, prp1=buffer.address, **more)
        found[name] = {field: unpack_from(layout, buffer.bytes, at)[0] for field, (at, layout) in fields.items()}
    return found


def disk_digest(controller: Controller, buffer: DmaMemory) -> str:
    """Of the first MiB, as it is read back."""
    digest = sha256()
    for block in range(0, 2048, 8):
        buffer.bytes[:PAGE] = b"\xee" * PAGE
        status, _ = controller.io.do(READ, nsid=1, prp1=buffer.address, cdw10=block, cdw12=7)
        digest.update(b"%d" % status + bytes(buffer.bytes[:PAGE]))
    return digest.hexdigest()


def run(device: Device) -> tuple[dict[str, object], list[str]]:
    """What is seen, and what is wrong: a controller that does not work any more, memory that was overwritten."""
    controller = Controller(device)
    guard_before = controller.memory(PAGE)
    buffer = controller.memory(16 * PAGE)
    lists = controller.memory(5 * PAGE)
    guard_behind = controller.memory(PAGE)
    for guard in (guard_before, guard_behind):
        guard.bytes[:] = b"\xa5" * PAGE
    nowhere = guard_behind.address + (64 << 20)
    fill_lists(lists, buffer.address, nowhere)
    controller.admin.do(IDENTIFY, prp1=buffer.address, nsid=1)
    (blocks,) = unpack_from("<Q", buffer.bytes)
    identity = identities(controller, buffer)
    buffer.bytes[:] = bytes(range(256)) * (16 * PAGE // 256)
    statuses: dict[str, dict[str, str]] = {"admin": {}, "io": {}}
    for name, (opcode, fields) in io_commands(buffer.address, nowhere, lists.address, blocks).items():
        statuses["io"][name] = f"{controller.io.do(opcode, **fields)[0]:#x}"
    for name, (opcode, fields) in admin_commands(buffer.address, nowhere).items():
        statuses["admin"][name] = f"{controller.admin.do(opcode, **fields)[0]:#x}"
    wrong = []
    if not controller.works:
        wrong.append("the controller has stopped working")
    if any(bytes(guard.bytes) != b"\xa5" * PAGE for guard in (guard_before, guard_behind)):
        wrong.append("memory that no command was given has changed")
    return {"statuses": statuses, "identity": identity, "data": disk_digest(controller, buffer)}, wrong


def main() -> int:
    summary, _, more = (__doc__ or "").partition("\n\n")
    parser = argparse.ArgumentParser(
        prog="nvme_commands", description=summary, epilog=more, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slot", required=True, help="where the controller is, 0000:01:00.0")
    parser.add_argument("--access", choices=["auto", "vfio", "uio"], default="auto", help="the way to the device")
    options = parser.parse_args()
    report: dict[str, object] = {"command": "commands", "ok": False}
    started = time.monotonic()
    with ExitStack() as stack:
        try:
            function = PciFunction(options.slot)
            device: Device = open_device(function, options.access)
            stack.enter_context(device)
            report["device"] = {"slot": function.slot, "access": device.access, "ids": function.ids}
            seen, wrong = run(device)
            report |= {"ok": not wrong, "seen": seen, "wrong": wrong}
        except (DeviceError, OSError) as error:
            report["error"] = str(error)
    report["seconds"] = round(time.monotonic() - started, 3)
    print(json.dumps(report))
    return 0 if report["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
