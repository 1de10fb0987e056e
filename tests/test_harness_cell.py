"""A cell of a matrix: what a whole run says of its guests, behind what each test says itself."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from packaging.version import Version

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from vfio_user.harness import Cell, Device, HardwareOptions, Lab, Qemu
from vfio_user.harness.cell import parse_servers
from vfio_user.harness.family import VFIO_USER, VHOST_USER
from vfio_user.harness.interposition import Interposition

SERVER = "./server {socket}"


def test_processes_that_are_started_have_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    cell = Cell("7.2", True, {"cpus": 2, "iommu": False}, {"edu": SERVER})
    assert Cell.of_environment() == Cell()
    for name, value in cell.exported().items():
        monkeypatch.setenv(name, value)
    assert Cell.of_environment() == cell


@for_each_row(
    [
        ({}, {}, (1, 512, False)),
        ({"cpus": 2, "memory": 256, "iommu": True}, {}, (2, 256, True)),
        ({"cpus": 2, "memory": 256}, {"cpus": 1}, (1, 256, False)),
        ({"iommu": True}, {"iommu": False}, (1, 512, False)),
    ]
)
def test_a_test_has_the_last_word_on_its_hardware(
    of_cell: HardwareOptions, of_test: HardwareOptions, wanted: tuple[int, int, bool], tmp_path: Path
) -> None:
    lab = Lab(folder=tmp_path, cell=Cell(hardware=of_cell))
    vars(lab).update(qemu=Qemu((), Version("11.1.3"), "", "option", ""), accelerator="tcg")  # none need be there
    with lab:
        made = lab.hardware(**of_test)
    assert (made.cpus, made.memory, made.iommu) == wanted


@for_each([None, Interposition(keep_alive=True)])
def test_dma_is_captured_before_every_server_whose_protocol_has_messages_for_it(said: Interposition | None) -> None:
    cell = Cell(capture_dma=True)
    made = cell.interposed(said, VFIO_USER)
    assert made == Interposition(keep_alive=said is not None, capture_dma=True)
    assert cell.interposed(said, VHOST_USER) == said
    assert Cell().interposed(said, VFIO_USER) == said


@for_each_row(
    [
        ("edu", SERVER),
        ("edu [x-msg-timeout=500]", SERVER),
        ("edu --vectors 2", ""),  # the options are those of our server
        ("nvme", ""),
        ("qemu:edu", ""),
        ("./other {socket}", "./other {socket}"),
    ]
)
def test_a_device_has_the_server_of_its_cell_where_its_test_says_no_other(text: str, wanted: str) -> None:
    device = Device.parse(text)
    found = Cell(servers={"edu": SERVER}).server_of(device)
    assert found.command == wanted
    assert (found.properties, found.family) == (device.properties, device.family)
    assert found.register_names == device.register_names, "it is the same device, whoever serves it"


def test_a_server_of_its_cell_has_the_properties_that_are_behind_its_command_unless_a_test_says_others() -> None:
    cell = Cell(servers={"edu": f"{SERVER} [x-msg-timeout=500,ats=on]"})
    found = cell.server_of(Device.parse("edu [ats=off]"))
    assert found.command == SERVER
    assert found.properties == {"x-msg-timeout": 500, "ats": False}


@for_each_row(
    [
        ("edu", {"edu": SERVER}, "edu", {SERVER}),
        ("edu", {"edu": f"{SERVER} [ats=on]"}, "edu [ats=off]", {f"{SERVER} [ats=on]"}),
        ("edu", {"edu": SERVER}, "edu --vectors 2", {"edu"}),
        ("edu", {"edu": SERVER}, "nvme", set()),
        ("edu", {"edu": SERVER}, "./other {socket}", set()),
        ("edu", {}, "edu", {"edu"}),
        ("edu", {}, "tests.mine:MyEdu", set()),
        (f"{SERVER} [driver=vhost-user-blk-pci]", {}, f"{SERVER} [driver=vhost-user-blk-pci]", {"theirs"}),
        (f"{SERVER} [driver=vhost-user-blk-pci]", {}, "vhost-user-blk", set()),
    ]
)
def test_a_lab_knows_which_servers_of_its_cell_it_has_tried(
    device: str, servers: dict[str, str], booted: str, tried: set[str]
) -> None:
    cell = Cell(device=device, servers=servers)
    assert cell.tried_by(cell.server_of(Device.parse(booted))) == ({device} if tried == {"theirs"} else tried)


def test_servers_are_given_by_device() -> None:
    assert parse_servers([f"edu={SERVER}", "nvme=s --a=b {socket}"]) == {"edu": SERVER, "nvme": "s --a=b {socket}"}


@for_each(["edu", "edu=./server", "=./server {socket}", f"nothing={SERVER}", f"edu --a 1={SERVER}"])
def test_what_names_no_server_of_a_device_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_servers([text])


@for_each(["boot", "run", "migrate", "soak", "test_e2e"])
def test_every_command_that_boots_a_guest_takes_the_same_words(command: str) -> None:
    options = importlib.import_module(f"vfio_user.cli.{command}").command.params
    found = {word for option in options for word in (*option.opts, *option.secondary_opts)}
    assert {"--qemu", "--memory", "--cpus", "--iommu", "--no-iommu"} <= found


@for_each(["edu", "vhost-user-rng"])
def test_a_scenario_that_is_wrong_is_told_before_anything_starts(device: str, tmp_path: Path) -> None:
    scenario = tmp_path / "faults.yaml"
    scenario.write_text("rules:\n- act: {signal: {name: SIGSTOP}}\n")
    with Lab(folder=tmp_path / "results", interpose=scenario) as lab:
        with pytest.raises(UserError, match=r"faults\.yaml:2: .*signal"):
            lab.boot(device)
        assert "qemu" not in vars(lab)
