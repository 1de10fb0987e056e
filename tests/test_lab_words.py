"""A lab: what goes over what a whole run says, what it keeps hold of, and what it leaves when it ends."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from packaging.version import Version

from tests.cases import for_each_row
from userdev.errors import UserError, VerdictError
from vfio_user.harness.cell import Cell
from vfio_user.harness.guest_spec import name_for
from vfio_user.harness.hosts.host import LOCAL
from vfio_user.harness.lab import Lab


@for_each_row(
    [
        ({}, {}, {"cpus": 1, "memory": 512}),
        ({"cpus": 2, "memory": 1024}, {}, {"cpus": 2, "memory": 1024}),
        ({}, {"cpus": 4}, {"cpus": 4, "memory": 512}),
        ({"cpus": 2, "memory": 1024}, {"cpus": 4}, {"cpus": 4, "memory": 1024}),
        ({"iommu": True}, {"iommu": False}, {"iommu": False}),
    ]
)
def test_hardware_that_a_test_asks_for_goes_over_that_of_the_whole_run(
    of_run: Any, of_test: Any, made: Mapping[str, Any], tmp_path: Path
) -> None:
    lab = Lab(folder=tmp_path, cell=Cell(hardware=of_run))
    vars(lab).update(qemu=SimpleNamespace(version=Version("11.1.0")), accelerator="tcg")
    config = lab.hardware(**of_test)
    assert {name: getattr(config, name) for name in made} == made
    del vars(lab)["qemu"]
    lab.close()


def test_guests_have_a_name_each() -> None:
    """By which their logs and sockets are called: who wants none has one that no other has had."""
    for wanted, known, name in (
        ("", {}, "guest"),
        ("", {"guest": True}, "guest1"),
        ("", {"guest1": True}, "guest"),
        ("", {"guest": False, "guest2": True, "other": True}, "guest1"),
        ("", {"guest.3": True, "guest1": False}, "guest2"),
        ("mine", {"guest": True}, "mine"),
        ("mine", {"mine": False}, "mine"),
    ):
        assert name_for(wanted, known) == name, (wanted, known)
    for wanted, known in (("mine", {"mine": True}), ("mine", {"mine.1": True}), ("a.b", {"a.b": True}), ("a/b", {})):
        with pytest.raises(UserError, match="no guest can be called"):
            name_for(wanted, known)


def test_a_program_that_is_not_there_is_told_first_on_every_host_of_this_machine(
    tmp_path: Path,
) -> None:
    """A namespace's, too: nsenter(1) would be what says so."""
    with Lab(folder=tmp_path) as lab:
        for host in (LOCAL, SimpleNamespace(shares_memory=True)):
            with pytest.raises(UserError, match="cannot start"):
                lab.boot("./nothere {socket}", host=host)


def test_a_server_whose_processes_do_not_end_is_not_let_go_of(tmp_path: Path) -> None:
    def server(*, lives: bool) -> Any:
        return SimpleNamespace(stop=lambda: None, child=SimpleNamespace(group_is_alive=lambda: lives))

    def machine(*, leaves: bool) -> Any:
        return SimpleNamespace(abandon=lambda: None, stop=lambda: None, left_behind=lambda: ["a socket"] * leaves)

    lab = Lab(folder=tmp_path)
    for stays in (False, True):
        one, other = server(lives=stays), machine(leaves=stays)
        lab.servers, lab.machines = [one], [other]
        lab.end(other, [one])
        assert (lab.servers == [one], lab.machines == [other]) == (stays, stays)
    lab.servers, lab.machines = [], []
    lab.close()


@for_each_row([(VerdictError, True), (RuntimeError, True), (KeyboardInterrupt, False)])
def test_what_went_wrong_leaves_a_page_and_an_interruption_leaves_its_logs_and_each_is_told_where(
    kind: type[BaseException], wrong: bool, tmp_path: Path
) -> None:
    with pytest.raises(kind) as raised, Lab(folder=tmp_path):
        raise kind("it")
    assert (tmp_path / "index.html").exists() is wrong
    assert (tmp_path / "error.txt").exists() is wrong
    where = f"page: {tmp_path / 'index.html'}" if wrong else f"logs: {tmp_path}"
    assert raised.value.__notes__[-1] == where
