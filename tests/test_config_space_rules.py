"""What drivers of guests need of config space: each rule, and a server that breaks it and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cases import for_each
from tests.config_space_faults import BROKEN
from tests.conformance_target import Fault, InProcess, Proceed, Reply, failed, with_fault
from tests.everything_device import Everything
from vfio_user.client import Client
from vfio_user.client.conformance import Outcome
from vfio_user.client.description import describe
from vfio_user.device import Bar, IntX, PciDevice, PciExpress, PciIds
from vfio_user.server.session import Session
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire.layouts import DEVICE_INFO


class Quiet(PciDevice):
    """A device without interrupts."""

    ids = PciIds(0x1AF4, 0x10F6, class_code=0x00FF00)
    bars = (Bar(0, size=0x1000),)


class Ports(PciDevice):
    """An endpoint that has nothing but ports."""

    ids = PciIds(0x1AF4, 0x10F7, class_code=0x00FF00)
    bars = (Bar(0, size=64, io=True),)
    capabilities = (PciExpress(),)
    interrupts = IntX()


GROUPS = ("config", "region_info")


@for_each(BROKEN)
def test_what_a_driver_would_stumble_over_is_one_finding(name: str, tmp_path: Path) -> None:
    broken = BROKEN[name]
    with InProcess(tmp_path, Everything, session=with_fault(broken.fault)) as target:
        found = failed(target.results(*GROUPS))
    assert set(found) - {"region_info/descriptor-maps"} == set(broken.found), found


@for_each([name for name, broken in BROKEN.items() if broken.warning])
def test_probe_warns_of_it_without_touching_the_device(name: str, tmp_path: Path) -> None:
    broken = BROKEN[name]
    assert not any(broken.warning in problem for problem in problems(tmp_path, Everything))
    found = problems(tmp_path, Everything, broken.fault)
    assert [problem for problem in found if broken.warning in problem], found


class HasOneInterruptType(Fault):
    """It says that there is nothing but INTx."""

    def command(self, session: Session, command: Command, message: Message, proceed: Proceed) -> Reply:
        payload, fds = proceed(command, message)
        if command is Command.GET_INFO:
            payload = DEVICE_INFO.pack(*DEVICE_INFO.unpack(payload)[:3], 1)
        return payload, fds


def test_probe_warns_of_vectors_whose_interrupt_type_there_is_not(tmp_path: Path) -> None:
    found = problems(tmp_path, Everything, HasOneInterruptType())
    for capability in ("MSI", "MSI-X"):
        assert any(problem.startswith(f"{capability} has") for problem in found), found


def problems(folder: Path, device: Callable[[], PciDevice], fault: Fault | None = None) -> list[str]:
    """What `probe` says is wrong with a device."""
    session = with_fault(fault) if fault is not None else Session
    with (
        InProcess(folder, device, session=session) as target,
        Client(target.connect(), dialect=CURRENT, timeout=5) as client,
    ):
        client.negotiate(minor=0)
        return describe(client).problems


@for_each([Everything, Quiet, Ports])
def test_a_device_that_is_right_keeps_all_the_rules(device: Callable[[], PciDevice], tmp_path: Path) -> None:
    with InProcess(tmp_path, device) as target:
        results = target.results("config")
    assert {result.outcome for result in results} <= {Outcome.PASS, Outcome.SKIP}, results


def test_an_endpoint_of_ports_alone_is_warned_of(tmp_path: Path) -> None:
    assert [problem for problem in problems(tmp_path, Ports) if "memory BARs" in problem]
