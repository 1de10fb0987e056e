"""Known issues of QEMU, shown: what would be right is asked for, and the entry says how that goes wrong.

What was predicted and does not happen is tested here too, and that what QEMU does not survive is not done to it.
known_issues.yaml has the entries, and names the tests; those that need a migration or a disconnection anyway are with
these.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from avocado_tests.odd_edu import COUNT, COUNTED, UNMASKED, WRONG
from userdev.control import ControlError
from userdev.errors import UserError
from vfio_user.avocado_test import GuestTest
from vfio_user.harness import (
    AT_UNPLUG,
    BootedGuest,
    Deadline,
    Device,
    DeviceServer,
    Lab,
    LocalHost,
    Plugged,
    Property,
    QmpError,
    known_issue,
)
from vfio_user.wire import Command
from vfio_user.wire.layouts import DMA_ACCESS

IDENTIFICATION = 0x010000ED
ONES = 0xFFFFFFFF
BURST = 20_000
MAX_DATA = 1 << 20
"""What QEMU says as its max_data_xfer_size."""


def accesses(address: str, numbers: int, first: int, others: list[int]) -> list[int]:
    """In the guest: write so many consecutive numbers to register `first` of BAR 0, then read the others."""
    import mmap
    import os
    from pathlib import Path

    folder = Path(f"/sys/bus/pci/devices/{address}")
    (folder / "enable").write_text("1")
    fd = os.open(folder / "resource0", os.O_RDWR)
    bar = memoryview(mmap.mmap(fd, 4096)).cast("I")
    os.close(fd)
    for number in range(1, numbers + 1):
        bar[first // 4] = number
    return [bar[offset // 4] for offset in others]


def allow_dma(address: str) -> None:
    """In the guest: set the bus master bit."""
    from pathlib import Path

    folder = Path(f"/sys/bus/pci/devices/{address}")
    with (folder / "config").open("r+b") as config:
        config.seek(4)
        config.write(b"\6\0")


class PrivateMemory(LocalHost):
    """Where QEMU's memory is its own: the machines of this project always share it."""

    shares_memory = False  # so that it loads all of a checkpoint by itself

    def command(self, argv: Sequence[str], socket: Path | None = None) -> list[str]:
        private = (
            "import os, sys; a = [word.replace('share=on', 'share=off') for word in sys.argv[1:]]; os.execvp(a[0], a)"
        )
        return [sys.executable, "-c", private, *argv]


def odd_server(capabilities: dict[str, object], *options: str, padding: int = 0) -> Device:
    """An edu whose server has these capabilities in VERSION, and `padding` blanks behind them."""
    text = json.dumps({"capabilities": capabilities}) + " " * padding
    words = [sys.executable, "-m", "avocado_tests.odd_edu", *options]
    return Device(command=f"{shlex.join(words)} {{socket}} {shlex.quote(text)}")


def ask(
    server: DeviceServer,
    command: Command,
    size: int,
    *,
    data: bytes = b"",
    timeout: float = 5,
    fds: Sequence[int] = (),
    force: bool = False,
) -> dict[str, Any]:
    """Send QEMU a DMA request for memory at 0 beside the server's own. Its answer: flags, errno, payload in base64."""
    payload = base64.b64encode(DMA_ACCESS.pack(0, size, tail=data)).decode()
    return dict(
        server.control.call(
            "request",
            name=command.name,
            towards="to-client",
            payload=payload,
            timeout=timeout,
            fds=list(fds),
            force=force,
        )
    )


def decoded(text: str) -> bytes:
    return base64.b64decode(text)


def until_answered(server: DeviceServer) -> None:
    """Wait until the interposer owes the client nothing."""
    deadline = Deadline(10)
    while any(server.control.session_status()["waiting"].values()):
        assert not deadline.passed, "the reply never went on"


def until_faulted(server: DeviceServer) -> None:
    """Wait until the scenario's rule has met its message."""
    deadline = Deadline(10)
    while not server.control.session_status()["counters"]["faults"]:
        assert not deadline.passed, "the access never came"


@contextmanager
def longest_silence(guest: BootedGuest) -> Iterator[list[float]]:
    """The longest time in seconds that QMP has taken for an answer meanwhile, once the block has ended."""
    over, took = threading.Event(), [0.0]

    def ask_again_and_again() -> None:
        while not over.wait(0.01):
            began = time.monotonic()
            guest.qmp.command("query-status")
            took[0] = max(took[0], time.monotonic() - began)

    asking = threading.Thread(target=ask_again_and_again)
    asking.start()
    try:
        yield took
    finally:
        over.set()
        asking.join()


def open_files(guest: BootedGuest) -> int:
    """Descriptors that QEMU has."""
    return len(os.listdir(f"/proc/{guest.machine.child.pid}/fd"))  # noqa: PTH208


class KnownIssueTest(GuestTest):
    def read(self, guest: BootedGuest, device: Plugged) -> int:
        """Register 0 of the device as the guest reads it."""
        (value,) = guest.call(accesses, device.address, 0, 0, [0])
        return int(value)

    def works(self, guest: BootedGuest, device: Plugged) -> None:
        value = self.read(guest, device)
        self.assertEqual(value, IDENTIFICATION, f"register 0 reads {value:#x}")

    def refusal(self, lab: Lab, guest: BootedGuest, device: Device | str, server: DeviceServer | None = None) -> str:
        """Plug in what QEMU must refuse; its reason. The server is well, and need not be looked at."""
        server = server or lab.serve(device)
        with self.assertRaises(QmpError) as refused:
            guest.machine.attach(server.device.family.attach("", "refused", server.path, 0, {}))
        return str(refused.exception.description)

    def interposed(
        self, lab: Lab, scenario: str = "", device: str = "edu", **properties: Property
    ) -> tuple[BootedGuest, Plugged, DeviceServer]:
        """A guest with an edu behind an interposer, which breaks the session as the scenario says."""
        server = lab.serve(device, interposed=True, trace=True)
        if scenario:
            server.control.call("faults", scenario=f"rules: [{scenario}]")
        guest = lab.boot()
        wanted = replace(Device.parse(device), properties=properties)
        return guest, guest.plug(wanted, server=server), server


class Avoided(KnownIssueTest):
    """
    :avocado: tags=edu,known-issues
    """

    def test_a_device_that_stays_is_not_unplugged(self) -> None:
        """Where QEMU does not survive it the harness says so, and guest and device go on."""
        with self.lab() as lab:
            guest = lab.boot("edu")
            if known_issue(AT_UNPLUG).affects(lab.qemu.version):
                with self.assertRaisesRegex(UserError, AT_UNPLUG):
                    guest.unplug(guest.device)
            else:
                guest.unplug(guest.device)
                guest.plug("edu")
            self.works(guest, guest.device)


class Data(KnownIssueTest):
    """
    :avocado: tags=edu,known-issues
    """

    def test_memory_that_is_not_shared(self) -> None:
        with self.lab() as lab:
            guest = lab.boot("edu", host=PrivateMemory())
            with self.known_issue("private-memory-stale-dma", guest):
                self.edu(guest, "dma")

    def test_message_dma(self) -> None:
        """The guest's memory is where the server reads and writes it by messages of the specification's layout."""
        with self.lab() as lab:
            guest, device, server = self.interposed(lab)
            guest.call(allow_dma, device.address)
            memory = decoded(server.control.call("memory_read", iova=0, size=64)["data"])
            read = ask(server, Command.DMA_READ, 64)
            self.assertEqual((read["errno"], decoded(read["payload"])), (0, DMA_ACCESS.pack(0, 64, tail=memory)))
            written = ask(server, Command.DMA_WRITE, 64, data=memory)
            self.assertEqual((written["errno"], decoded(written["payload"])), (0, DMA_ACCESS.pack(0, 64)))

    def test_order_of_writes_to_a_server_that_does_not_keep_up(self) -> None:
        """
        :avocado: tags=nightly
        """
        multiple = odd_server({"max_msg_fds": 16, "write_multiple": True}, "--device", "Counting")
        counting = Device.parse("avocado_tests.odd_edu:Counting")
        cases: list[tuple[Device, dict[str, Any]]] = [
            (counting, {}),
            (counting, {"x_no_posted_writes": True}),
            (counting, {"x_send_queued": True}),
            (multiple, {}),
        ]
        with self.lab() as lab:
            guest = lab.boot()
            for device, properties in cases:
                server = lab.serve(device)
                plugged = guest.plug(device, server=server, x_msg_timeout=60_000, **properties)
                server.child.signal(signal.SIGSTOP)
                going_on = threading.Timer(0.3, server.child.signal, [signal.SIGCONT])
                going_on.start()
                seen = guest.call(accesses, plugged.address, BURST, COUNT, [WRONG, COUNTED])
                going_on.join()
                self.assertEqual(seen, [0, BURST], properties)


class Lost(KnownIssueTest):
    """
    :avocado: tags=edu,known-issues
    """

    def test_a_reply_that_comes_too_late(self) -> None:
        """One access fails; those behind it work again."""
        late = "{match: {direction: to-client, command: REGION_READ, region: BAR0, nth: 1}, act: {delay: 1}}"
        with self.lab() as lab:
            guest, device, server = self.interposed(lab, late, x_msg_timeout=500)
            with self.known_issue("late-reply-loses-device", guest):
                self.read(guest, device)
                until_answered(server)
                self.works(guest, device)

    def test_a_header_in_two_pieces(self) -> None:
        """
        :avocado: tags=nightly
        """
        split = (
            "{match: {direction: to-client, command: REGION_READ, region: BAR0, nth: 1},"
            " act: {split-header: {at: 8, seconds: 0.05}}}"
        )
        with self.lab() as lab:
            guest, device, _ = self.interposed(lab, split, x_msg_timeout=500)
            with self.known_issue("split-header-loses-device", guest):
                self.works(guest, device)

    def test_a_request_that_is_too_large(self) -> None:
        """It is refused, and the connection goes on; so it is with a DMA_READ.

        :avocado: tags=nightly
        """
        with self.lab() as lab:
            guest, device, server = self.interposed(lab, x_msg_timeout=500)
            size = MAX_DATA + 4096
            self.assertTrue(ask(server, Command.DMA_READ, size)["errno"])
            self.works(guest, device)
            with self.assertRaises(ControlError) as refused:  # our guard
                ask(server, Command.DMA_WRITE, size, data=bytes(size))
            self.assertEqual(refused.exception.errno, errno.EMSGSIZE)
            self.works(guest, device)
            with self.known_issue("oversized-request-loses-device", guest):
                with suppress(ControlError):  # no reply at all
                    ask(server, Command.DMA_WRITE, size, data=bytes(size), timeout=1, force=True)
                self.works(guest, device)

    def test_unplugging_after_the_server_has_died(self) -> None:
        with self.lab() as lab:
            guest = lab.boot("edu --msix 0")
            server = guest.device.server
            assert server is not None
            server.kill()
            guest.unplug(guest.device)
            self.works(guest, guest.plug("edu --msix 0"))


class Waiting(KnownIssueTest):
    """
    :avocado: tags=edu,known-issues
    """

    def test_a_server_that_goes_during_an_access(self) -> None:
        """QEMU sees the end of the stream: nobody has to wait for a reply any more."""
        gone = (
            "{match: {direction: to-server, command: REGION_READ, region: BAR0, nth: 1}, act: [drop, {close: client}]}"
        )
        with self.lab() as lab:
            guest, device, _ = self.interposed(lab, gone, x_msg_timeout=2000)
            with self.known_issue("server-death-freezes-machine", guest):
                with longest_silence(guest) as silence:
                    self.assertEqual(self.read(guest, device), ONES)
                self.assertLess(silence[0], 1.0, f"QMP was silent for {silence[0]:.1f} s")

    def test_dma_while_a_register_is_read(self) -> None:
        """The reply to a register read is held back for a second; the server does DMA meanwhile.

        :avocado: tags=nightly
        """
        held = "{match: {direction: to-client, command: REGION_READ, region: BAR0, nth: 1}, act: {delay: 1}}"
        with self.lab() as lab:
            guest, device, server = self.interposed(lab, held)
            with self.known_issue("dma-waits-for-register", guest):
                reading = threading.Thread(target=self.read, args=(guest, device))
                reading.start()
                until_faulted(server)
                began = time.monotonic()
                ask(server, Command.DMA_READ, 16)
                took = time.monotonic() - began
                reading.join()
                self.assertLess(took, 0.5, f"DMA was answered only after {took:.1f} s")


class Version(KnownIssueTest):
    """
    :avocado: tags=edu,known-issues
    """

    def test_a_long_reply(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.lab() as lab:
            guest = lab.boot()
            with self.known_issue("version-reply-long", guest):
                self.works(guest, guest.plug(odd_server({"max_msg_fds": 16}, padding=300)))

    def test_a_server_that_takes_many_descriptors(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.lab() as lab:
            guest = lab.boot()
            self.works(guest, guest.plug(odd_server({"max_msg_fds": 16})))
            with self.known_issue("version-max-msg-fds", guest):
                self.works(guest, guest.plug(odd_server({"max_msg_fds": 17})))

    def test_what_is_refused(self) -> None:
        """Whatever is wrong with the reply, device_add says so, and QEMU goes on."""
        refused = {
            "corrupt version reply": odd_server({}, "--no-nul"),
            "incompatible server version": odd_server({}, "--minor", "1"),
            "": odd_server({"max_data_xfer_size": 0}),
        }
        with self.lab() as lab:
            guest = lab.boot()
            for reason, device in refused.items():
                self.assertIn(reason, self.refusal(lab, guest, device))
            self.works(guest, guest.plug("edu"))

    def test_an_unknown_capability(self) -> None:
        with self.lab() as lab:
            guest = lab.boot()
            for name in ("frobnicate", "twin_socket"):
                self.works(guest, guest.plug(odd_server({name: True})))
            self.assertEqual(guest.machine.child.log.read_text().count("spurious capabilities"), 2)


class Small(KnownIssueTest):
    """
    :avocado: tags=edu,known-issues
    """

    def test_descriptors_with_a_request_of_the_server(self) -> None:
        """
        :avocado: tags=nightly
        """
        with self.lab() as lab:
            guest, device, server = self.interposed(lab)
            with self.known_issue("request-descriptors-leak", guest):
                before = open_files(guest)
                with open("/dev/null") as null:
                    for _ in range(20):
                        ask(server, Command.DMA_READ, 16, fds=[null.fileno()])
                self.works(guest, device)
                more = open_files(guest) - before
                self.assertLess(more, 20, f"{more} descriptors more than before")

    def test_intx_that_cannot_be_masked(self) -> None:
        """
        :avocado: tags=nightly
        """
        alone = (
            "{match: {direction: to-client, command: GET_IRQ_INFO, nth: 1}, act: {corrupt: {field: flags, value: 1}}}"
        )
        with self.lab() as lab:
            guest, device, server = self.interposed(lab, alone, "avocado_tests.odd_edu:Unmasked")
            with self.known_issue("intx-unmasked-unasked", guest):
                self.edu(guest, "--interrupts", "intx", "irq", device=device)
                unmasked = server.control.call("region_read", region="BAR0", offset=UNMASKED, size=4)["data"]
                self.assertFalse(any(decoded(unmasked)), "INTx is not MASKABLE, and was unmasked")

    def test_more_vectors_than_a_message_has_descriptors(self) -> None:
        with self.lab() as lab:
            guest = lab.boot("edu --msix 20", iommu=True)
            done = self.edu(guest, "--interrupts", "msix", "irq")
            self.assertEqual(len(done.seen["counts"]), 20)

    def test_get_info_that_is_refused(self) -> None:
        """
        :avocado: tags=nightly
        """
        refused = "{match: {direction: to-server, command: GET_INFO}, act: {reply: EINVAL}}"
        with self.lab() as lab:
            server = lab.serve("edu", interposed=True)
            server.control.call("faults", scenario=f"rules: [{refused}]")
            guest = lab.boot()
            with self.known_issue("error-reply-message", guest):
                self.assertIn("Invalid argument", self.refusal(lab, guest, "edu", server))
