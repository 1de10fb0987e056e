"""What befalls a guest, with a socket for its console and events of the test's own making."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from userdev.process import Deadline
from vfio_user.harness import mishaps
from vfio_user.harness.console import Console
from vfio_user.harness.guest import GuestLost, standstill_in
from vfio_user.harness.mishaps import GuestCrash, Kind, Mishap, Mishaps
from vfio_user.harness.qmp import EventLog, QmpTimeout
from vfio_user.harness.troubles import Wait


class Machine:
    """A console at whose other end the test is, and events."""

    def __init__(self, folder: Path) -> None:
        ours, self.serial = socket.socketpair()
        self.console = Console(ours, folder / "console.log")
        self.events = EventLog()
        self.mishaps = Mishaps("guest", self.console, self.events)
        self.heard: queue.SimpleQueue[Mishap] = queue.SimpleQueue()
        self.mishaps.listen(self.heard.put)

    def says(self, line: str) -> None:
        self.serial.sendall(line.encode() + b"\r\n")

    def tells(self, event: str, **data: object) -> None:
        self.events.put({"event": event, "data": data})

    def close(self) -> None:
        self.serial.close()
        self.console.close()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("[   12.345678] Kernel panic - not syncing: Attempted to kill init!", Kind.PANIC),
        ("guest:~# [   12.345678] Kernel panic - not syncing: VFS", Kind.PANIC),  # the shell had begun the line
        ("[   12.345678][    T1] Kernel panic - not syncing: VFS", Kind.PANIC),
        ("[  112.000001] Oops: Oops: 0002 [#1] PREEMPT SMP NOPTI", Kind.OOPS),
        ("[  112.000001] BUG: kernel NULL pointer dereference, address: 0000000000000008", Kind.OOPS),
        ("[  112.000001] kernel BUG at mm/slub.c:553!", Kind.OOPS),
    ],
)
def test_the_kernel_says_it_on_the_console(machine: Machine, line: str, kind: Kind) -> None:
    machine.says(line)
    mishap = machine.heard.get(timeout=60)
    assert mishap.kind is kind
    assert line.endswith(mishap.said)
    with pytest.raises(GuestCrash) as crash:
        machine.mishaps.check()
    assert mishap.said in str(crash.value)
    assert line in crash.value.evidence


@pytest.mark.parametrize(
    "line",
    [
        "Kernel panic - not syncing: is what somebody has typed",
        "[   12.345678] watchdog: BUG: soft lockup - CPU#0 stuck for 26s! [swapper/0:1]",
        "[   12.345678] BUG: workqueue lockup - pool cpus=0 node=0 flags=0x0 nice=0 stuck for 42s!",
        "[   12.345678] INFO: task sh:42 blocked for more than 120 seconds.",
        "[   12.345678] traps: python3[41] general protection fault ip:7f sp:7f error:0",
    ],
)
def test_what_a_busy_host_does_to_a_guest_is_none(machine: Machine, line: str) -> None:
    machine.says(line)
    machine.says("[   99.000000] Oops: the end")
    assert machine.heard.get(timeout=60).said == "Oops: the end"


def test_what_a_kernel_says_of_a_standstill_is_told_where_its_guest_does_not_answer() -> None:
    """By itself it is none of the guest's faults; of one that is silent it is the best that is known."""
    lockup = "BUG: soft lockup - CPU#0 stuck for 56s! [python3:142]"
    console = (
        f"[   93.643794] watchdog: BUG: soft lockup - CPU#0 stuck for 30s!\n[  153.977245] watchdog: {lockup}\r\nx\n"
    )
    assert standstill_in(console) == f"; its kernel says: {lockup}"
    for said in (
        "INFO: task sh:42 blocked for more than 120 seconds.",
        "rcu: INFO: rcu_sched self-detected stall on CPU",
    ):
        assert said in standstill_in(f"[   12.345678] {said}\n")
    for other in ("", lockup, "[    1.000000] EXT4-fs: mounted", "[    1.000000] Oops: 1"):
        assert standstill_in(other) == "", other
    wait = Wait(Deadline(0.0), 1.0)
    assert lockup in str(GuestLost.after(wait, "the agent did not answer", evidence=console))


def test_pvpanics_event_is_a_panic_and_the_console_has_the_words(machine: Machine) -> None:
    machine.tells("GUEST_PANICKED", action="run")
    assert machine.heard.get(timeout=60).kind is Kind.PANIC
    threading.Timer(0.05, machine.says, ["[    1.000000] Kernel panic - not syncing: late words"]).start()
    with pytest.raises(GuestCrash, match="late words"):
        machine.mishaps.check()


def test_a_reset_is_one_only_where_a_guest_is_up_and_nobody_wants_it(machine: Machine) -> None:
    machine.tells("RESET", guest=True, reason="guest-reset")  # a firmware's
    machine.mishaps.begin()
    machine.mishaps.check()
    machine.mishaps.expect_reset()
    machine.tells("RESET", guest=True, reason="guest-reset")
    machine.mishaps.check()
    machine.mishaps.begin()
    machine.tells("RESET", guest=True, reason="guest-reset")
    for _ in range(2):
        with pytest.raises(GuestCrash, match="guest-reset"):
            machine.mishaps.check()
    machine.mishaps.begin()
    machine.mishaps.check()


def test_only_the_guests_own_power_off_is_one(machine: Machine) -> None:
    machine.mishaps.begin()
    machine.tells("SHUTDOWN", guest=False, reason="host-qmp-quit")
    machine.mishaps.check()
    machine.tells("SHUTDOWN", guest=True, reason="guest-shutdown")
    with pytest.raises(GuestCrash, match="guest-shutdown"):
        machine.mishaps.check()


def test_the_end_of_the_agent_is_told_each_time_and_is_none_while_a_reset_is_wanted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mishaps, "_POWER_OFF_SECONDS", 0.0)

    def end(identity: str = "agent", open: bool = False) -> None:
        machine.tells("VSERPORT_CHANGE", id=identity, open=open)

    end()  # before a guest is up
    machine.mishaps.begin()
    end("a port of the user's")
    end(open=True)
    for _ in range(2):
        end()
        assert machine.heard.get(timeout=60).kind is Kind.AGENT_ENDED
        machine.mishaps.check()  # the guest goes on, and SSH answers
    machine.mishaps.expect_reset()
    end()
    machine.tells("GUEST_PANICKED", action="run")
    assert machine.heard.get(timeout=60).kind is Kind.PANIC
    assert machine.mishaps.untold() is not None


def test_a_machine_that_goes_off_before_its_guest_is_up_has_befallen_nobody(machine: Machine) -> None:
    machine.tells("SHUTDOWN", guest=True, reason="guest-shutdown")
    machine.mishaps.begin()
    machine.mishaps.check()


def test_what_silences_a_guest_is_told_before_an_oops_that_came_first(machine: Machine) -> None:
    for line in ("Oops: one", "Kernel panic - not syncing: two"):
        machine.says(f"[    1.000000] {line}")
        machine.heard.get(timeout=60)
    for _ in range(2):
        with pytest.raises(GuestCrash, match="two"):
            machine.mishaps.check()
    assert machine.mishaps.untold() is not None, "of the oops nobody was told"


def test_an_oops_that_was_told_of_is_over_once_the_guest_is_up_again_and_the_next_is_another(machine: Machine) -> None:
    for said in ("one", "two"):
        machine.says(f"[    1.000000] Oops: {said}")
        machine.heard.get(timeout=60)
        with pytest.raises(GuestCrash, match=said):
            machine.mishaps.check()
        machine.mishaps.begin()
        machine.mishaps.check()


def test_an_oops_is_told_once_and_a_panic_for_ever(machine: Machine) -> None:
    machine.says("[    1.000000] Oops: one")
    machine.heard.get(timeout=60)
    assert machine.mishaps.untold() is not None
    with pytest.raises(GuestCrash):
        machine.mishaps.check()
    machine.mishaps.check()
    assert machine.mishaps.untold() is None
    machine.says("[    1.000000] Kernel panic - not syncing: two")
    machine.heard.get(timeout=60)
    for _ in range(2):
        with pytest.raises(GuestCrash, match="two"):
            machine.mishaps.check()
    assert machine.mishaps.untold() is None


def test_it_goes_along_to_another_machine(machine: Machine, tmp_path: Path) -> None:
    machine.mishaps.begin()
    machine.tells("GUEST_PANICKED")
    (tmp_path / "other").mkdir()
    other = Machine(tmp_path / "other")
    other.mishaps.inherit(machine.mishaps)
    other.tells("RESET", guest=True, reason="guest-reset")
    assert Kind.RESET in other.mishaps, "the guest is up there too"
    with pytest.raises(GuestCrash, match="panicked"):
        other.mishaps.check()
    other.close()


def test_what_was_told_of_in_one_machine_is_not_told_again_in_the_next(machine: Machine, tmp_path: Path) -> None:
    machine.mishaps.begin()
    machine.says("[    1.000000] Oops: one")
    machine.heard.get(timeout=60)
    (tmp_path / "other").mkdir()
    other = Machine(tmp_path / "other")
    for inherits, told in ((False, True), (True, False)):
        if inherits:
            with pytest.raises(GuestCrash):
                machine.mishaps.check()
        other.mishaps.inherit(machine.mishaps)
        assert (other.mishaps.untold() is not None) is told
    other.mishaps.check()
    other.close()


def test_a_reset_that_nobody_was_told_of_is_over_once_the_guest_is_up_again_and_a_panic_is_not(
    machine: Machine,
) -> None:
    machine.mishaps.begin()
    machine.tells("RESET", guest=True, reason="guest-reset")
    machine.mishaps.begin()
    machine.mishaps.check()
    machine.tells("GUEST_PANICKED")
    machine.mishaps.begin()
    with pytest.raises(GuestCrash, match="panicked"):
        machine.mishaps.check()


def test_who_waits_for_an_event_is_told_at_once(machine: Machine) -> None:
    threading.Timer(0.05, machine.says, ["[    1.000000] Kernel panic - not syncing: now"]).start()
    with pytest.raises(GuestCrash, match="now"):
        machine.events.take("DEVICE_DELETED", {}, Deadline(60), unless=machine.mishaps.check)


def test_who_sees_it_on_the_console_is_not_earlier_than_those_who_tell(machine: Machine) -> None:
    """A lab that ended between the two had a good verdict."""
    before: queue.SimpleQueue[int] = queue.SimpleQueue()
    machine.console.listen(lambda _: before.put(machine.console.position))
    machine.says("[  112.000001] Oops: Oops: 0002 [#1]")
    machine.console.wait_for("Oops.*\n")
    assert before.get(timeout=10) == 0
    assert machine.mishaps.untold() is not None


# A device that is unplugged while its guest is reset: QEMU lets it go at the reset, if the guest has not before

DELETED = ("DEVICE_DELETED", {"device": "dev0"})
ANOTHER = ("DEVICE_DELETED", {"device": "dev1"})
RESET = ("RESET", {"reason": "host-qmp-system-reset"})
ORDERS = {"deleted, then reset": (ANOTHER, DELETED, RESET), "reset, then deleted": (RESET, ANOTHER, DELETED)}


def tell_both(machine: Machine, order: str) -> None:
    for event, data in ORDERS[order]:
        machine.tells(event, **data)


def await_deletion(machine: Machine) -> None:
    found = machine.events.take("DEVICE_DELETED", {"device": "dev0"}, Deadline(5), unless=machine.mishaps.check)
    assert found["data"] == {"device": "dev0"}


@pytest.mark.parametrize("late", [False, True], ids=["before the wait", "in the wait"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_reset_that_was_asked_for_is_no_reason_not_to_see_a_device_go(
    machine: Machine, order: str, late: bool
) -> None:
    machine.mishaps.begin()
    machine.mishaps.expect_reset()
    tell = threading.Thread(target=tell_both, args=(machine, order))
    if late:
        threading.Timer(0.02, tell.start).start()
    else:
        tell.run()
    await_deletion(machine)
    machine.mishaps.begin()
    machine.mishaps.check()


@pytest.mark.parametrize("order", ORDERS)
def test_a_reset_that_nobody_asked_for_is_told_to_who_waits_for_a_device_to_go_and_its_end_is_kept(
    machine: Machine, order: str
) -> None:
    """What the guest does about the device is not known then; that it has gone is, once the guest is up again."""
    machine.mishaps.begin()
    tell_both(machine, order)
    for _ in range(2):
        with pytest.raises(GuestCrash, match="reset"):
            await_deletion(machine)
    machine.mishaps.begin()
    await_deletion(machine)
    with pytest.raises(QmpTimeout):
        machine.events.take("DEVICE_DELETED", {"device": "dev0"}, Deadline(0.01), unless=machine.mishaps.check)
