"""The PCI-IDIO-16: lines in both directions, interrupts on change, and the host's side by the control socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from userdev.control import ControlClient
from userdev.errors import UserError
from userdev_servers.gpio import Gpio
from vfio_user.client import Client, EventFd
from vfio_user.device import function_of
from vfio_user.server import Server
from vfio_user.testing import read_register, write_register
from vfio_user.wire.constants import IrqIndex, MigrationState

OUT_LOW, IN_LOW, IRQ, FILTERS, OUT_HIGH, IN_HIGH, STATUS = range(7)
PENDING = 4


class Outside:
    """A connection to the control socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._lines = self._socket.makefile("r")

    def ask(self, **request: Any) -> dict[str, Any]:
        return self.ask_raw(json.dumps(request))

    def ask_raw(self, text: str) -> dict[str, Any]:
        """The result, or the answer that there is none."""
        self._socket.sendall(text.encode() + b"\n")
        answer: dict[str, Any] = json.loads(self._lines.readline())
        return answer["result"] if answer["ok"] else answer

    def next(self) -> dict[str, Any]:
        """The next event."""
        event: dict[str, Any] = json.loads(self._lines.readline())["event"]
        return event

    def close(self) -> None:
        self._lines.close()
        self._socket.close()


class Card:
    """A client of the card, with its interrupt line."""

    def __init__(self, path: Path) -> None:
        self.client = Client.connect(f"unix:{path}")
        self.line = EventFd()
        self.client.enable_irqs(IrqIndex.INTX, [self.line])

    def read(self, offset: int) -> int:
        return self.client.load(2, offset, 1)

    def write(self, offset: int, value: int) -> None:
        self.client.store(2, offset, 1, value)

    def interrupts(self) -> int:
        """How often it came since the last look; the line may come again."""
        count = self.line.take()
        self.client.unmask_irqs(IrqIndex.INTX)
        return count

    def close(self) -> None:
        self.client.close()
        self.line.close()


@contextmanager
def served(path: Path, **options: Any) -> Iterator[tuple[Card, Outside]]:
    path.mkdir(exist_ok=True)
    device = Gpio(control=str(path / "control"), **options)
    with Server(device, f"unix:{path / 'gpio.sock'}"):
        card, outside = Card(path / "gpio.sock"), Outside(path / "control")
        yield card, outside
        outside.close()
        card.close()
    device.close()


@pytest.fixture
def both(tmp_path: Path) -> Iterator[tuple[Card, Outside]]:
    with served(tmp_path / "a") as found:
        yield found


def test_outputs_read_back_and_are_told_to_who_watches(both: tuple[Card, Outside]) -> None:
    card, outside = both
    assert outside.ask(command="watch") == {"watching": True}
    card.write(OUT_LOW, 0x81)
    card.write(OUT_HIGH, 0x02)
    card.write(OUT_HIGH, 0x02)
    card.write(OUT_LOW, 0x80)
    assert (card.read(OUT_LOW), card.read(OUT_HIGH)) == (0x80, 0x02)
    told = [outside.next() for _ in range(3)]
    assert told == [
        {"outputs": 0x0081, "changed": 0x0081},
        {"outputs": 0x0281, "changed": 0x0200},
        {"outputs": 0x0280, "changed": 0x0001},
    ]
    assert outside.ask(command="get")["outputs"] == 0x0280


@for_each(range(16))
def test_every_input_is_on_its_own_bit(line: int, both: tuple[Card, Outside]) -> None:
    card, outside = both
    assert outside.ask(command="set", input=line, value=1)["inputs"] == 1 << line
    assert card.read(IN_LOW) | card.read(IN_HIGH) << 8 == 1 << line
    assert outside.ask(command="set", input=line, value=0)["inputs"] == 0
    assert card.read(IN_LOW) | card.read(IN_HIGH) << 8 == 0


def test_a_change_interrupts_once_enabled_until_it_is_cleared(both: tuple[Card, Outside]) -> None:
    card, outside = both
    outside.ask(command="set", inputs=0x0001)
    assert (card.interrupts(), card.read(STATUS)) == (0, 0)
    card.read(IRQ)
    outside.ask(command="set", inputs=0x8001)
    assert card.line.wait() == 1
    assert card.read(STATUS) & PENDING
    card.client.unmask_irqs(IrqIndex.INTX)
    assert card.line.wait() == 1  # a level: it comes until it is cleared
    card.write(IN_LOW, 0)
    assert card.interrupts() == 0
    assert card.read(STATUS) == 0


def test_what_does_not_change_does_not_interrupt(both: tuple[Card, Outside]) -> None:
    card, outside = both
    outside.ask(command="set", inputs=0x00F0)
    card.read(IRQ)
    outside.ask(command="set", inputs=0x00F0)
    outside.ask(command="set", input=4, value=1)
    assert (card.interrupts(), card.read(STATUS)) == (0, 0)


def test_a_disabled_interrupt_stays_away(both: tuple[Card, Outside]) -> None:
    card, outside = both
    card.read(IRQ)
    card.write(IRQ, 0)
    outside.ask(command="set", inputs=1)
    assert (card.interrupts(), card.read(STATUS)) == (0, 0)
    assert outside.ask(command="get")["interrupt_enabled"] is False


def test_who_watches_learns_that_the_guest_has_seen_a_change(both: tuple[Card, Outside]) -> None:
    card, outside = both
    card.read(IRQ)
    outside.ask(command="watch")
    outside.ask(command="set", inputs=1)
    card.write(IN_LOW, 0)
    assert outside.next() == {"interrupt": "cleared"}


def test_a_reset_drops_outputs_and_keeps_what_is_wired_to_the_inputs(both: tuple[Card, Outside]) -> None:
    card, outside = both
    outside.ask(command="set", inputs=0x1234)
    card.write(OUT_LOW, 0xFF)
    card.read(IRQ)
    card.client.reset()
    assert (card.read(OUT_LOW), card.read(IN_LOW), card.read(IN_HIGH)) == (0, 0x34, 0x12)
    assert outside.ask(command="get")["interrupt_enabled"] is False


@for_each(
    [
        "nonsense",
        "[]",
        '{"command": 7}',
        '{"command": "dance"}',
        '{"command": "set"}',
        '{"command": "set", "inputs": 65536}',
        '{"command": "set", "inputs": "1"}',
        '{"command": "set", "input": 16, "value": 1}',
        '{"command": "set", "input": 16, "value": 0}',
        '{"command": "set", "input": -1, "value": 0}',
        '{"command": "set", "input": 1, "value": 2}',
        '{"command": "set", "input": 3, "value": 1.0}',
        '{"command": "set", "input": true, "value": true}',
        '{"command": "set", "inputs": true}',
        '{"command": "set", "inputs": 1e400}',
    ]
)
def test_a_wrong_request_is_answered_with_an_error(text: str, both: tuple[Card, Outside]) -> None:
    card, outside = both
    assert outside.ask_raw(text)["ok"] is False
    assert outside.ask(command="get")["inputs"] == 0
    assert card.read(IN_LOW) == 0


def test_the_client_of_a_control_socket_raises_what_the_device_says_against_it(
    both: tuple[Card, Outside], tmp_path: Path
) -> None:
    with ControlClient(tmp_path / "a" / "control") as control:
        with pytest.raises(UserError, match="16 bits"):
            control.call("set", inputs=1 << 16)
        assert control.call("set", inputs=0xFFFF)["inputs"] == 0xFFFF
    with pytest.raises(UserError, match="No such file"):
        ControlClient(tmp_path / "nothing")


def test_lines_and_a_waiting_interrupt_move_to_the_other_host(tmp_path: Path) -> None:
    with served(tmp_path / "a") as (source, outside), served(tmp_path / "b") as (target, other):
        source.read(IRQ)
        source.write(OUT_HIGH, 0x5A)
        outside.ask(command="set", inputs=0x0F0F)
        target.client.load_state(source.client.save())
        target.client.set_migration_state(MigrationState.RUNNING)
        assert other.ask(command="get") == outside.ask(command="get")
        assert (target.read(OUT_HIGH), target.read(IN_HIGH), target.read(STATUS) & PENDING) == (0x5A, 0x0F, PENDING)
        assert target.line.wait() == 1
        target.write(IN_LOW, 0)
        assert target.interrupts() == 0


def test_a_card_that_is_about_to_move_tells_its_lines_and_lets_nobody_set_them(tmp_path: Path) -> None:
    """What is set then would stay behind, and interrupt a guest that stands still."""
    with served(tmp_path / "a") as (card, outside):
        card.client.set_migration_state(MigrationState.STOP)
        assert "stopped" in outside.ask(command="set", inputs=0x0F0F)["error"]["what"]
        assert outside.ask(command="get")["inputs"] == 0
        card.client.set_migration_state(MigrationState.RUNNING)
        assert outside.ask(command="set", inputs=0x0F0F)["inputs"] == 0x0F0F


def test_the_inputs_at_the_start_are_16_bits(tmp_path: Path) -> None:
    with served(tmp_path / "a", inputs=0x8001) as (card, _):
        assert (card.read(IN_LOW), card.read(IN_HIGH)) == (0x01, 0x80)
    with pytest.raises(UserError, match="0x10000"):
        Gpio(inputs=0x10000)


@for_each_row([(True, 8), (False, 4096)])
def test_bar_2_is_in_the_space_asked_for(io: bool, size: int, tmp_path: Path) -> None:
    with served(tmp_path / "a", io=io) as (card, _):
        assert card.client.region_info(2).size == size
        assert card.client.config_read(0x18, 1)[0] & 1 == io


@pytest.mark.parametrize("line", [0, 15])
@pytest.mark.parametrize("value", [0, 1])
def test_an_input_interrupts_in_whichever_way_it_changes(both: tuple[Card, Outside], line: int, value: int) -> None:
    card, outside = both
    outside.ask(command="set", inputs=0xFFFF * (1 - value))
    card.read(IRQ)
    outside.ask(command="set", input=line, value=value)
    assert card.read(STATUS) & PENDING
    assert card.line.wait() == 1


def test_an_interrupt_that_is_disabled_while_it_waits_comes_no_more(both: tuple[Card, Outside]) -> None:
    card, outside = both
    card.read(IRQ)
    outside.ask(command="set", inputs=1)
    assert card.line.wait() == 1
    card.write(IRQ, 0)
    assert card.interrupts() == 0
    assert card.interrupts() == 0


def test_who_watches_is_told_of_an_interrupt_that_was_cleared_and_of_none_that_did_not_wait(
    both: tuple[Card, Outside],
) -> None:
    card, outside = both
    outside.ask(command="watch")
    card.write(IN_LOW, 0)
    card.write(OUT_LOW, 1)
    assert outside.next() == {"outputs": 1, "changed": 1}


def test_filters_are_on_and_off_as_the_guest_has_them_and_off_after_a_reset() -> None:
    device = Gpio()
    for read, on in ((True, 1), (False, 0), (True, 1)):
        if read:
            read_register(device, 2, FILTERS, 1)
        else:
            write_register(device, 2, FILTERS, 1, 0)
        assert device.filters == on
    function_of(device).client_reset()
    assert device.filters == 0


@for_each([0, 0xFFFF])
def test_all_inputs_may_be_set_or_none(inputs: int, tmp_path: Path) -> None:
    with served(tmp_path / "a", inputs=inputs) as (card, outside):
        assert card.read(IN_LOW) | card.read(IN_HIGH) << 8 == inputs
        assert outside.ask(command="set", inputs=inputs ^ 0xFFFF)["inputs"] == inputs ^ 0xFFFF
