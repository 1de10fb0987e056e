"""Nights on other machines: two slots with an SSH server each, which see nothing of this machine's /tmp."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import PathDistribution
from pathlib import Path
from typing import cast

import psutil
import pytest

from tests.cases import for_each_row
from tests.checkout import ROOT, modules
from tests.night_of_plan import NEVER
from userdev.errors import UserError
from userdev.process import Deadline
from vfio_user.harness.hosts import SshHost
from vfio_user.harness.hosts.namespace import can_make_namespaces
from vfio_user.nightly.place import this_machine
from vfio_user.nightly.plan import SlotText, read_plan
from vfio_user.nightly.slots import Slots, _Found, described
from vfio_user.nightly.summary import CaseResult, Status, Summary, Verdict, read_summary

PLAN = """\
name: slots
images: []
slots:
  a: {{host: 127.0.0.1, port: 2222, folder: /tmp/slot, python: {python}}}
  b: {{host: 127.0.0.1, port: 2222, folder: /tmp/slot-b, python: {python}}}
  c: {{host: 127.0.0.1, port: 2223, folder: /tmp/slot, python: {python}}}
  d: {{host: 127.0.0.1, port: 2222, folder: /tmp/slot-d, python: /usr/bin/false}}
groups:
  all:
    servers: [edu]
    tests: [test_slots.py]
"""
TESTS = """
import os, signal, time
from pathlib import Path

import psutil
from avocado import Test

def end_connection():
    for parent in psutil.Process().parents():
        if parent.name().startswith("sshd"):
            parent.kill()
            time.sleep(60)

class Quick(Test):
    ''':avocado: tags=once'''

    def test_leaves_evidence(self):
        Path(self.outputdir, "kept.txt").write_text(os.environ["VFIO_USER_SLOT"])
        self.whiteboard = '{"qemu": "11.1.4"}'

    def test_is_wrong(self):
        self.fail("it read 7")

    def test_sees_the_package_that_was_put_there(self):
        import vfio_user
        self.assertIn("/package-", vfio_user.__file__)
        self.assertIn("/package-", __file__)

class WhenTheirSlotDies(Test):
    ''':avocado: tags=once'''

    def test_on_a(self):
        if os.environ["VFIO_USER_SLOT"] == "a":
            end_connection()

class ZAnywhere(Test):
    ''':avocado: tags=once'''

    def test_everywhere(self):
        end_connection()
"""


def started(folder: Path, plan: str, tests: str) -> subprocess.Popen[str]:
    """A night of slots, in this folder."""
    if not can_make_namespaces():
        pytest.skip("who may not make network namespaces has no such slots")
    (folder / "test_slots.py").write_text(tests)
    (folder / "plan.yaml").write_text(plan.format(python=sys.executable, folder=there(folder)))
    return subprocess.Popen(
        [sys.executable, "-m", "tests.night_of_slots", "plan.yaml", str(folder / "nights")],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": modules()},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def there(folder: Path) -> str:
    """A folder of slots that no other test has."""
    return f"/tmp/slots-of-{folder.parent.name}-{folder.name}"


def running_there(folder: Path) -> list[psutil.Process]:
    """What has a folder of these slots on its command line, or was started by such a program."""
    ours = [each for each in psutil.process_iter(["cmdline"]) if there(folder) in " ".join(each.info["cmdline"] or ())]
    return [each for each in ours if each.status() != psutil.STATUS_ZOMBIE]


@pytest.fixture(scope="module")
def nights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("slots")
    running = started(folder, PLAN, TESTS)
    said, _ = running.communicate(timeout=NEVER)
    print(said)
    assert running.returncode == 0, said
    return folder / "nights"


def summary_of(nights: Path) -> Summary:
    (found,) = (path.parent for path in nights.glob("*/summary.json"))
    return read_summary(found)


def results(nights: Path) -> Mapping[str, CaseResult]:
    return {one.test.rpartition(".")[2]: one for one in summary_of(nights).results}


def test_a_slot_is_told_the_version_of_a_checkout_too(tmp_path: Path) -> None:
    """What an editable installation leaves in the checkout has another name, and bundles of slots had no version."""
    folder = tmp_path / "vfio_user.egg-info"
    folder.mkdir()
    (folder / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: vfio-user\nVersion: 1.2.3\n")
    (folder / "entry_points.txt").write_text("[vfio_user.devices]\n")
    there = tmp_path / "there" / "vfio_user-0.dist-info"
    there.mkdir(parents=True)
    for name, content in described(PathDistribution(folder)).items():
        (there / name).write_text(content)
    assert PathDistribution(there).version == "1.2.3"
    assert PathDistribution(there).read_text("entry_points.txt") == "[vfio_user.devices]\n"


whole_nights = [pytest.mark.network, pytest.mark.nightly, pytest.mark.timeout(300)]


class TestANight:
    pytestmark = whole_nights

    def test_every_case_has_one_result_in_one_report(self, nights: Path) -> None:
        night = summary_of(nights)
        assert night.status is Status.FINISHED
        assert len(night.results) == night.planned == 5
        assert {slot.name for slot in night.slots} == {"a", "b"}

    def test_what_a_test_left_there_is_here(self, nights: Path) -> None:
        case = results(nights)["test_leaves_evidence"]
        assert (case.verdict, case.attempts) == (Verdict.PASS, 1)
        (folder,) = (path.parent for path in nights.glob("*/summary.json"))
        assert (folder / case.evidence / "data" / "kept.txt").read_text() == case.slot

    def test_a_failure_there_has_its_cause_here(self, nights: Path) -> None:
        case = results(nights)["test_is_wrong"]
        assert case.verdict is Verdict.FAIL
        assert "it read 7" in case.cause

    def test_the_package_there_is_the_one_that_was_put_there(self, nights: Path) -> None:
        case = results(nights)["test_sees_the_package_that_was_put_there"]
        assert (case.verdict, case.cause) == (Verdict.PASS, "")

    def test_a_test_whose_slot_died_is_run_once_more_elsewhere(self, nights: Path) -> None:
        # where b had it first, a dies with the other test, which is then run on b, too
        found = results(nights)
        assert (found["test_on_a"].verdict, found["test_on_a"].slot) == (Verdict.PASS, "b")
        assert max(found[name].attempts for name in ("test_on_a", "test_everywhere")) == 2

    def test_one_that_dies_with_each_slot_is_wedged(self, nights: Path) -> None:
        case = results(nights)["test_everywhere"]
        assert case.verdict is Verdict.WEDGED
        assert "slot has gone" in case.cause

    def test_slots_that_cannot_be_used_are_named_with_the_reason(self, nights: Path) -> None:
        remarks = summary_of(nights).remarks
        assert [remark.split(":")[0] for remark in remarks] == ["slot c is left out", "slot d is left out"]

    def test_what_is_there_is_not_put_there_again(self, nights: Path) -> None:
        said = json.loads((nights / "said.json").read_text())
        given = {which: [line for line in lines if "was given" in line] for which, lines in said.items()}
        assert (len(given["first"]), len(given["second"])) == (4, 0)


TWO_SLOTS = """\
name: slots
images: []
slots:
  a: {{host: 127.0.0.1, port: 2222, folder: {folder}, python: {python}}}
  b: {{host: 127.0.0.1, port: 2222, folder: {folder}-b, python: {python}}}
groups:
  all:
    servers: [edu]
    tests: [test_slots.py]
"""
FALLS_SILENT = """
import fcntl, os, socket, struct, time
from avocado import Test

SIOCSIFFLAGS = 0x8914

class Silent(Test):
    ''':avocado: tags=once'''

    def test_on_a(self):
        if os.environ["VFIO_USER_SLOT"] == "a":
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
                fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh", b"lo", 0))
            time.sleep(250)
"""
"""Nothing that is sent to slot a or by it arrives any more, and nobody closes anything."""
WAITS = """
import os, time
from avocado import Test

class Waits(Test):
    ''':avocado: tags=once'''

    def test_first(self):
        pass

    def test_then(self):
        time.sleep(250)

    def test_then_too(self):
        time.sleep(250)

    def test_last(self):
        pass
"""


class TestBadDays:
    pytestmark = whole_nights

    def test_a_slot_that_falls_silent_has_gone_and_its_test_is_run_elsewhere(self, tmp_path: Path) -> None:
        running = started(tmp_path, TWO_SLOTS, FALLS_SILENT)
        said, _ = running.communicate(timeout=NEVER)
        assert running.returncode == 0, said
        (case,) = summary_of(tmp_path / "nights").results
        assert (case.verdict, case.slot, case.attempts) == (Verdict.PASS, "b", 2), said
        assert gone(tmp_path), "the slot heard nothing any more, and ended what ran there"

    @pytest.mark.parametrize("twice", [False, True], ids=["once", "twice"])
    def test_a_night_that_is_ended_says_so_and_nothing_of_it_is_left_there(self, twice: bool, tmp_path: Path) -> None:
        running = started(tmp_path, TWO_SLOTS, WAITS)
        assert within(120.0, lambda: len(list(tmp_path.glob(TAKEN))) == 2), "both slots wait"
        assert len(running_there(tmp_path)) > 1
        if twice:  # who ends it at once has what the night knows by then
            assert running.stdout is not None
            assert any("test_first" in line for line in running.stdout)
        running.send_signal(signal.SIGINT)
        if twice:
            running.send_signal(signal.SIGTERM)
        said, _ = running.communicate(timeout=NEVER)
        assert running.returncode == (3 if twice else 0), said
        night = summary_of(tmp_path / "nights")
        assert (night.status, night.planned) == (Status.ENDED, 4)
        assert [one.test.rpartition(".")[2] for one in night.results] == ["test_first"]
        assert "at once" in night.reason if twice else "test_then" in night.reason
        assert gone(tmp_path)


TAKEN = "nights/*/job-*/test-results/*.test_then*/slot.json"
"""What is written when a slot has begun a test."""


def within(seconds: float, happened: Callable[[], bool]) -> bool:
    """Whether it happens in time; other processes do it, and tell nobody."""
    deadline = Deadline(seconds)
    while not happened() and not deadline.passed:
        time.sleep(0.1)
    return happened()


def gone(folder: Path) -> bool:
    """Whether nothing runs any more on the slots of a night, or soon does not."""
    return within(120.0, lambda: not running_there(folder))


SLOT = "{host: one, folder: /var/lib/slots}"


def refused(folder: Path, slots: str, servers: str = "[edu]") -> str:
    path = folder / "plan.yaml"
    path.write_text(f"name: n\n{slots}\ngroups:\n  one:\n    servers: {servers}\n    tests: [registers]\n")
    with pytest.raises(UserError) as caught:
        read_plan(path)
    return str(caught.value)


@for_each_row(
    [
        ("slots:\n  a: {folder: /x}", 3, "host"),
        ("slots:\n  a: {host: one}", 3, "folder"),
        ("slots:\n  a: {host: one, folder: x}", 3, "folder"),
        ("slots:\n  a:\n    host: one\n    folder: /x\n    prot: 3", 6, "port"),
        ("slots:\n  a:\n    host: one\n    folder: /x\n    port: 70000", 6, "port"),
        ("slots:\n  a:\n    host: one\n    folder: /x\n    identity: nowhere", 6, "nowhere"),
        ("slots:\n  a:\n    host: one\n    folder: /x\n    known_hosts: nowhere", 6, "nowhere"),
        (f"slots:\n  a: {SLOT}\n  b: {SLOT}", 4, "a"),
        (f"slots:\n  a: {SLOT}\nparallel: 2", 4, "slot"),
    ]
)
def test_a_slot_with_a_mistake_is_refused_with_its_line(slots: str, line: int, word: str, tmp_path: Path) -> None:
    said = refused(tmp_path, slots)
    assert f"plan.yaml:{line}:" in said
    assert word in said


def test_two_slots_are_one_only_where_host_port_and_folder_are(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    for other, same in (
        ("{host: one, folder: /x, user: b}", True),
        ("{host: one, folder: /x, port: 22}", True),
        ("{host: one, folder: /x, port: 2222}", False),
        ("{host: one, folder: /y}", False),
        ("{host: two, folder: /x}", False),
    ):
        slots = f"slots:\n  a: {{host: one, folder: /x}}\n  b: {other}"
        if same:
            assert "that is where a is already" in refused(tmp_path, slots), other
        else:
            path.write_text(f"name: n\n{slots}\ngroups:\n  one:\n    servers: [edu]\n    tests: [registers]\n")
            assert [*read_plan(path).text.slots] == ["a", "b"], other


def test_servers_of_others_are_not_for_slots(tmp_path: Path) -> None:
    (tmp_path / "servers.yaml").write_text(
        'servers:\n  theirs: {about: x, protocol: vfio-user, kind: edu, command: "./s {socket}", supports: []}\n'
    )
    said = refused(tmp_path, f"servers: servers.yaml\nslots:\n  a: {SLOT}", "[edu, theirs]")
    assert "theirs" in said
    assert "plan.yaml:7:" in said


def furnished(monkeypatch: pytest.MonkeyPatch, missing: Mapping[str, Mapping[str, str]]) -> Slots:
    """Slots that have every QEMU but those that are missing on each, with the reason."""
    text = SlotText(host="one", folder="/x")

    def ready(self: Slots, name: str, package: object, cache: object, wanted: str, say: object) -> _Found:
        there = {qemu: "11.1.3" for qemu in json.loads(wanted)["qemus"] if qemu not in missing[name]}
        return _Found(this_machine([]), there, missing[name], "6.12")

    monkeypatch.setattr(Slots, "_ready", ready)
    monkeypatch.setattr("vfio_user.nightly.slots._cached", lambda *_: [])
    hosts = {name: SshHost(name, "one", "one") for name in missing}
    return Slots(dict.fromkeys(missing, text), hosts, ROOT, [])


def test_a_slot_whose_qemu_is_too_old_is_left_out_where_another_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = furnished(monkeypatch, {"a": {"next": "is QEMU 9, too old"}, "b": {}}).make_ready({"next": "/q"}, [], print)
    assert [slot.name for slot in found.slots] == ["b"]
    assert "slot a" in found.remarks[0]
    assert "too old" in found.remarks[0]


def test_a_qemu_that_no_slot_has_leaves_none_out(monkeypatch: pytest.MonkeyPatch) -> None:
    gone = {"next": "it is gone"}
    found = furnished(monkeypatch, {"a": gone, "b": gone}).make_ready({"usual": "", "next": "/q"}, [], print)
    assert [slot.name for slot in found.slots] == ["a", "b"]
    assert (dict(found.missing), found.remarks) == (gone, ())


def test_where_no_slot_can_be_used_each_is_told_once_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Slots, name: str, *__: object) -> None:
        raise UserError(f"{name}.example does not answer", hint="is it there?")

    monkeypatch.setattr(Slots, "_ready", refused)
    monkeypatch.setattr(Slots, "_package", lambda *_: {})
    slots = Slots(dict.fromkeys(("a", "b"), cast(SlotText, None)), {}, tmp_path, [])
    said: list[str] = []
    with pytest.raises(UserError, match="of 2 slots none can be used") as refusal:
        slots.make_ready({}, [], said.append)
    told = [*said, *refusal.value.hint.splitlines()]
    assert [line for line in told if "does not answer (is it there?)" in line] == told
    assert len(told) == 2
