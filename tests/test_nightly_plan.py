"""A plan is read whole, or refused with file, line and what is allowed, before anything starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from userdev.errors import UserError
from vfio_user.nightly.abilities import declared
from vfio_user.nightly.cells import cells_of
from vfio_user.nightly.matrix import draw_plan
from vfio_user.nightly.plan import Plan, read_plan
from vfio_user.nightly.servers import Server, read_servers
from vfio_user.nightly.staging import ReadyServer, ready_servers, staged

PLAN = """\
name: ours
servers: servers.yaml
qemus:
  mine: /opt/qemu
groups:
  first:
    servers: [edu, theirs]
    tests: ["registers:Registers.test_factorial", any_server]
    vary:
      qemu: [usual, mine]
      cpus: [1, 2]
    without:
      - {server: theirs, cpus: 2}
  second:
    servers: [edu]
    tests: [dma]
    vary: {dialect: [current, region-migration], iommu: [off, on]}
"""
SERVERS = """\
servers:
  theirs:
    about: somebody's
    protocol: vfio-user
    kind: edu
    command: "./server {socket}"
    supports: [reset]
    known_issues:
      - {id: slow, what: it is slow, tests: [AnyDevice.test_the_guest_resets_it], symptom: late}
"""


def written(folder: Path, plan: str = PLAN, servers: str = SERVERS) -> Path:
    (folder / "servers.yaml").write_text(servers)
    path = folder / "plan.yaml"
    path.write_text(plan)
    return path


def line_of(text: str, part: str) -> int:
    return text[: text.index(part)].count("\n") + 1


def refusal(folder: Path, plan: str = PLAN, servers: str = SERVERS) -> str:
    with pytest.raises(UserError) as refused:
        read_plan(written(folder, plan, servers))
    return f"{refused.value}\n{refused.value.hint}"


def test_a_plan_is_what_it_says(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    assert plan.qemu("mine") == "/opt/qemu"
    assert plan.qemu("usual") == ""
    assert plan.references["second"] == ("avocado_tests/test_dma.py",)
    assert plan.text.groups["second"].axes()["iommu"] == (False, True)


@for_each_row(
    [
        ("qemus:", "quemus:", "did you mean 'qemus'?"),
        ("    vary:\n", "    varry:\n", "did you mean 'vary'?"),
        ("      cpus:", "      cpu:", "did you mean 'cpus'?"),
        ("servers: [edu, theirs]", "servers: [edu, their]", "did you mean 'theirs'?"),
        ("qemu: [usual, mine]", "qemu: [usual, yours]", "usual"),
        ("cpus: [1, 2]", "cpus: [1, 0]", "greater than or equal to 1"),
        ("cpus: [1, 2]", "cpus: [1, 1]", "a value twice"),
        ("cpus: [1, 2]", "cpus: [yes]", "integer"),
        ("cpus: [1, 2]", "cpus: [1, two]", "'two'"),
        ("dialect: [current, region-migration]", "dialect: [draft-v6]", "'region-migration'"),
        ("tests: [dma]", "tests: [dna]", "there are: "),
        ("tests: [dma]", "tests: [dma, dma]", "twice"),
        ("servers: [edu, theirs]", "servers: [edu, theirs, edu]", "twice"),
        ("{server: theirs, cpus: 2}", "{server: theirs, cpus: 3}", "it has: 1, 2"),
        ("{server: theirs, cpus: 2}", "{server: theirs, colour: 3}", "'colour'"),
        ("servers: servers.yaml", "servers: nothing.yaml", "nothing.yaml"),
        ("name: ours", "name: Our Plan", "pattern"),
        ("servers: [edu]\n", "servers: [nvme, vhost-user-rng]\n", "a dialect is chosen for our vfio-user servers only"),
        ("  mine: /opt/qemu", "  sid: /opt/qemu", "there is already"),
        ("    tests: [dma]", "    tests: []", "groups.second.tests: it has 0, and needs at least 1"),
    ]
)
def test_what_is_wrong_is_told_with_its_line_and_what_is_allowed(
    right: str, wrong: str, allowed: str, tmp_path: Path
) -> None:
    plan = PLAN.replace(right, wrong, 1)
    assert plan != PLAN
    said = refusal(tmp_path, plan)
    assert f"plan.yaml:{line_of(plan, wrong.strip(' '))}:" in said
    assert allowed in said


def test_a_key_that_is_missing_is_told_with_where_it_should_be(tmp_path: Path) -> None:
    plan = PLAN.replace("    tests: [dma]\n", "")
    said = refusal(tmp_path, plan)
    assert f"plan.yaml:{line_of(plan, '  second:')}: groups.second.tests: it is missing" in said


def test_all_mistakes_of_a_plan_are_told_at_once(tmp_path: Path) -> None:
    wrong = {
        "servers: [edu, theirs]": "servers: [edu, their]",
        "qemu: [usual, mine]": "qemu: [usual, yours]",
        "tests: [dma]": "tests: [dna]",
        "{server: theirs, cpus: 2}": "{server: edu, cpus: 3}",
    }
    plan = PLAN
    for right, instead in wrong.items():
        plan = plan.replace(right, instead, 1)
    told = refusal(tmp_path, plan)
    for instead in wrong.values():
        assert f"plan.yaml:{line_of(plan, instead)}: " in told, instead
    many = ", ".join(f"no{number}" for number in range(9))
    assert "and 4 more" in refusal(tmp_path, PLAN.replace("servers: [edu, theirs]", f"servers: [theirs, {many}]", 1))


def test_a_text_of_a_plan_that_is_empty_is_refused_with_its_line(tmp_path: Path) -> None:
    for right, wrong, said in (
        ("servers: [edu, theirs]", "servers: [edu, '']", "servers.1 is empty"),
        ("tests: [dma]", "tests: ['  ']", "tests.0 is empty"),
        ("{server: theirs, cpus: 2}", "{server: '', cpus: 2}", "without.0.server is empty"),
        ("name: ours", "name: ''", "name is empty"),
    ):
        assert right in PLAN, right
        plan = PLAN.replace(right, wrong, 1)
        told = refusal(tmp_path, plan)
        assert f"plan.yaml:{line_of(plan, wrong)}: " in told, wrong
        assert said in told, wrong


def test_a_mistake_in_a_list_has_the_line_of_its_item(tmp_path: Path) -> None:
    plan = PLAN.replace("servers: [edu, theirs]", "servers:\n      - edu\n      - their")
    assert f"plan.yaml:{line_of(plan, 'their')}:" in refusal(tmp_path, plan)


@for_each_row(
    [
        ("{socket}", "there", "{socket}"),
        ("protocol: vfio-user", "protocol: virtio", "'vhost-user'"),
        ("protocol: vfio-user", "protocol: vhost-user", "ability of vhost-user 'reset'"),
        ("supports: [reset]", "supports: [resets]", "did you mean 'reset'?"),
        ("supports: [reset]", "probe: no", "either supports"),
        ("./server {socket}", "{program} {socket}", "there is no prepare"),
        ("./server {socket}", "{hier}/server {socket}", "did you mean '{here}'?"),
        ("./server {socket}", "'./server {socket}", "No closing quotation"),
        ("symptom: late", "symptom: '('", "no pattern"),
        *((("symptom: late", f"symptom: {all_}", "each failure")) for all_ in (".", r"'\S+'", "'(late)?'", "'[a-z]'")),
        ("symptom: late", "symptom: ''", "known_issues.0.symptom is empty: say what it is, or leave it out"),
        ("what: it is slow", "what: ' '", "what is empty"),
        ("AnyDevice.test_the_guest_resets_it", "''", "tests.0 is empty"),
        ("kind: edu", 'kind: ""', "kind is empty"),
        ("    about:", "    abuot:", "did you mean 'about'?"),
        ("kind: edu", "kind: edoo", "did you mean 'edu'?"),
        ("kind: edu", "kind: Edu", "did you mean 'edu'?"),
        ("  theirs:", "  edu:", "one of ours"),
        (
            "symptom: late}",
            "symptom: late}\n      - {id: slow, what: again, tests: [A.test_a], symptom: late}",
            "twice",
        ),
    ]
)
def test_what_is_wrong_with_a_server_is_told_with_its_line(right: str, wrong: str, said: str, tmp_path: Path) -> None:
    text = SERVERS.replace(right, wrong, 1)
    told = refusal(tmp_path, servers=text)
    assert "servers.yaml:" in told
    assert said in told


def test_a_kind_is_any_word_that_is_not_one_of_ours_misspelt() -> None:
    taken = {"vfio-user": ["edu", "nvme", "gpio-sample", "mine", "blk"], "vhost-user": ["blk", "rng", "sound", "edu"]}
    refused = {"vfio-user": {"ednu": "edu", "gpoi": "gpio"}, "vhost-user": {"block": "blk", "vhost-user-blk": "blk"}}
    for protocol in ("vfio-user", "vhost-user"):
        said: dict[str, Any] = {"about": "a", "protocol": protocol, "command": "./s {socket}", "supports": ()}
        said["properties"] = {"driver": "vhost-user-blk-pci"}
        for kind in taken[protocol]:
            assert Server.model_validate({**said, "kind": kind}).kind == kind
        for kind, meant in refused[protocol].items():
            with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
                Server.model_validate({**said, "kind": kind})


def test_a_command_may_have_braces_that_are_no_placeholders(tmp_path: Path) -> None:
    for command in (
        "{here}/server --on {host} --keep {scratch} {socket}",
        """sh -c 'exec "${SERVER}" {socket} | awk "{print}"'""",
        """./server --json {"a":1} {socket}""",
    ):
        plan = read_plan(written(tmp_path, servers=SERVERS.replace('"./server {socket}"', f"|-\n      {command}")))
        assert plan.servers["theirs"].command == command


@for_each_row([*((text, ":1: a plan is a table: ") for text in ("", "- a\n- b\n", "name")), ("a: [", ":")])
def test_what_is_no_plan_at_all_is_refused_with_a_line(text: str, words: str, tmp_path: Path) -> None:
    assert f"plan.yaml{words}" in refusal(tmp_path, text)


@for_each(["name: theirs", "groups: {third: {servers: [edu], tests: [dma]}}"])
def test_a_key_that_is_there_twice_is_refused(again: str, tmp_path: Path) -> None:
    """YAML takes the last one, in silence."""
    said = refusal(tmp_path, f"{PLAN}{again}\n")
    assert f"plan.yaml:{PLAN.count(chr(10)) + 1}:" in said
    assert "twice" in said


def test_the_digest_tells_plans_apart(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    assert plan.digest("a") == read_plan(written(tmp_path)).digest("a") != plan.digest("b")
    assert plan.digest("a") != read_plan(written(tmp_path, servers=f"{SERVERS}# more\n")).digest("a")


def cells(plan: Plan) -> set[str]:
    return {cell.id for found in cells_of(plan, draw_plan(plan)).values() for cell in found}


def test_cells_are_named_after_what_is_not_as_usual(tmp_path: Path) -> None:
    text = PLAN.replace("  second:", "    combine: all\n  second:")
    found = cells(read_plan(written(tmp_path, text)))
    assert {"edu", "edu+cpus=2", "edu+qemu=mine+cpus=2", "theirs+qemu=mine"} <= found
    assert "theirs+cpus=2" not in found


def test_a_case_that_two_groups_have_is_one(tmp_path: Path) -> None:
    text = PLAN.replace("tests: [dma]", 'tests: ["registers:Registers.test_factorial"]')
    plan = read_plan(written(tmp_path, text))
    cases = [case.id for found in staged(plan, draw_plan(plan)).cases().values() for case in found]
    assert len(cases) == len(set(cases))
    assert "edu/avocado_tests/test_registers.py:Registers.test_factorial" in cases


def test_a_server_whose_program_is_not_there_is_not_to_be_had(tmp_path: Path) -> None:
    for program, is_there in {"{here}/mine": False, "no-such-server": False, "/bin/sh": True, "./server": True}.items():
        plan = read_plan(written(tmp_path, servers=SERVERS.replace("./server", program)))
        missing = ready_servers(staged(plan, draw_plan(plan)), lambda _: None)["theirs"].missing
        assert ("cannot start" not in missing) is is_there, (program, missing)


def test_a_case_that_a_server_cannot_do_is_skipped_with_the_reason(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    stage = staged(plan, draw_plan(plan))
    server = plan.servers["theirs"]
    ready = {"theirs": ReadyServer("./server {socket}", declared(server))}
    cases = [
        case for case in type(stage)(plan, stage.cells, stage.tests, ready).cases()["first"] if "theirs" in case.id
    ]
    skipped = {case.test.rpartition(".")[2]: case.skipped for case in cases if case.skipped}
    assert skipped.keys() == {"test_it_goes_to_another_host_and_back"}
    assert "migration: its entry does not name it" in skipped["test_it_goes_to_another_host_and_back"]


def test_tests_of_another_protocol_or_kind_are_no_cases(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    tests = {case.test for case in staged(plan, draw_plan(plan)).cases()["first"]}
    assert not any("AnyDisk" in test for test in tests)
    assert any("AnyDevice" in test for test in tests)


def staged_names(plan: Path) -> list[str]:
    read = read_plan(plan)
    return [case.id for found in staged(read, draw_plan(read)).cases().values() for case in found]


MINE = "from avocado import Test\nclass Mine(Test):\n    def test_a(self):\n        pass\n"


def test_a_case_is_called_the_same_wherever_checkout_plan_and_tests_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file as from its package's folder, else as from the plan's, else by its name alone."""
    for name, package in (("plans", ""), ("plans/more", ""), ("elsewhere", ""), ("other/mine", "__init__.py")):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / f"test_{name[-4:]}.py").write_text(MINE)
        if package:
            (tmp_path / name / package).touch()
    files = ("test_lans.py", "more/test_more.py", "../elsewhere/test_here.py", "../other/mine/test_mine.py")
    tests = [file if file.startswith("test") else str(tmp_path / "plans" / file) for file in files]
    plan = tmp_path / "plans" / "plan.yaml"
    plan.write_text(f"name: mine\ngroups:\n  all: {{servers: [edu], tests: {tests}}}\n")
    names = ["test_lans.py", "more/test_more.py", "test_here.py", "mine/test_mine.py"]
    for here in (tmp_path, plan.parent, Path("/")):
        monkeypatch.chdir(here)
        assert staged_names(plan) == [f"edu/{name}:Mine.test_a" for name in names], here


def test_two_files_that_would_be_called_the_same_are_refused(tmp_path: Path) -> None:
    for name in ("plans", "a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "test_it.py").write_text(MINE)
    plan = tmp_path / "plans" / "plan.yaml"
    tests = [f"{tmp_path}/{name}/test_it.py" for name in ("a", "b")]
    plan.write_text(f"name: mine\ngroups:\n  all: {{servers: [edu], tests: {tests}}}\n")
    with pytest.raises(UserError, match=r"both be called test_it.py"):
        staged_names(plan)


def stage_refusal(path: Path) -> str:
    with pytest.raises(UserError) as refused:
        staged_names(path)
    return f"{refused.value}\n{refused.value.hint}"


@for_each_row(
    [
        (
            "[AnyDevice.test_the_guest_resets_it]",
            "[AnyDevice.test_the_guest_reset_it]",
            "servers",
            "test_the_guest_resets",
        ),
        ("[AnyDevice.test_the_guest_resets_it]", "[dma:Dma.test_phys]", "servers", "test_physical_memory"),
        ("[AnyDevice.test_the_guest_resets_it]", "[dmaa:Dma.test_phys]", "servers", "did you mean 'dma'?"),
        ("Registers.test_factorial", "Registers.test_factorail", "plan", "did you mean 'Registers.test_factorial'?"),
        ("tests: [dma]", "tests: ['dma:Dmaa']", "plan", "did you mean 'Dma'?"),
    ]
)
def test_a_test_that_there_is_not_is_told_with_its_line_and_what_was_meant(
    right: str, wrong: str, file: str, meant: str, tmp_path: Path
) -> None:
    """Nothing of such a known issue would ever be expected, and nobody would notice."""
    plan, servers = PLAN.replace(right, wrong), SERVERS.replace(right, wrong)
    said = stage_refusal(written(tmp_path, plan, servers))
    text = servers if file == "servers" else plan
    assert f"{file}.yaml:{line_of(text, wrong)}: " in said
    assert meant in said


def test_a_test_that_only_another_plan_runs_is_named_with_its_file(tmp_path: Path) -> None:
    (tmp_path / "test_mine.py").write_text(MINE)
    issue = SERVERS.replace("AnyDevice.test_the_guest_resets_it", "test_mine.py:Mine.test_a")
    assert staged_names(written(tmp_path, servers=issue))
    [known] = read_servers(tmp_path / "servers.yaml").value.servers["theirs"].known_issues
    assert known.is_of("test_mine.py:Mine.test_a")
    assert not known.is_of("test_other.py:Mine.test_a")


def test_a_server_that_does_what_ours_does_is_in_its_place(tmp_path: Path) -> None:
    plan = read_plan(written(tmp_path))
    found = {cell.values["server"]: cell for cell in cells_of(plan, draw_plan(plan))["first"]}
    assert found["theirs"].guest_cell("", "./server {socket}").servers == {"edu": "./server {socket}"}
    assert found["edu"].guest_cell("", "edu").servers == {}
    theirs = found["theirs"].server
    for otherwise in ({"protocol": "vhost-user"}, {"kind": "mine"}):
        cell = replace(found["theirs"], server=theirs.model_copy(update=otherwise))
        assert cell.guest_cell("", "./server {socket}").servers == {}, otherwise


def test_the_plan_that_is_shipped_is_one_and_its_lock_file_has_its_combinations() -> None:
    plan = read_plan(Path(__file__).parent.parent / "nightly.yaml")
    assert not draw_plan(plan).is_new
    assert read_servers(plan.servers_folder / "servers.yaml").value.servers.keys() <= plan.servers.keys()
