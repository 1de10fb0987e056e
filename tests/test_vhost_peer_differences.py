"""Real back-ends against our conformance suite: what they do otherwise is a table, and nothing else is.

`scripts/test provisioning`: they come from the machine's Debian mirror.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from debian.debian_support import Version

from tests.vhost_peers import BACK_ENDS, NEWER, skip_what_is_refused
from vfio_user.harness.vhost_user_peers import InstalledPeer, install_peer
from vhost_user.frontend.conformance import CATALOGUE

TABLE = yaml.safe_load(Path(__file__).with_name("peer_differences.yaml").read_text())
OUTCOMES = {"differs": "differs", "broken": "fail"}
"""What the suite calls what the table calls so."""

CHANCE = "by-chance"
SECONDS = 300.0

Suites = tuple[str, ...] | None


@dataclass(frozen=True)
class Tried:
    """What a back-end did otherwise: outcome and detail by check."""

    version: str
    found: dict[str, tuple[str, str]]


def tried(name: str, suites: Suites, folder: Path) -> Tried:
    """Run the suite on a back-end, whatever it finds."""
    peer: InstalledPeer = install_peer(name, suites=suites)
    report = folder / f"{name}.json"
    command = [sys.executable, "-m", "vhost_user", "conformance", "--server-command", f"{peer.script} {{socket}}"]
    options = ["--device", TABLE[name]["device"], "--json", str(report)]
    ran = subprocess.run([*command, *options], capture_output=True, text=True, timeout=SECONDS)
    assert report.exists(), ran.stdout + ran.stderr
    checks = json.loads(report.read_text())["checks"]
    assert any(check["outcome"] == "pass" for check in checks), ran.stdout
    found = {
        check["id"]: (check["outcome"], check["detail"]) for check in checks if check["outcome"] in OUTCOMES.values()
    }
    return Tried(peer.version, found)


@pytest.fixture(scope="module")
def trials(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Tried]]]:
    """All of them at once: they wait more than they work."""
    suites: Suites = request.param
    folder = tmp_path_factory.mktemp("conformance")
    with ThreadPoolExecutor(len(BACK_ENDS)) as pool:
        yield {name: pool.submit(tried, name, suites, folder) for name in BACK_ENDS}


@pytest.mark.network
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", BACK_ENDS)
@pytest.mark.parametrize("trials", [None, pytest.param(NEWER, id="newer", marks=pytest.mark.nightly)], indirect=True)
def test_it_differs_as_we_say_that_it_does(trials: dict[str, Future[Tried]], name: str) -> None:
    skip_what_is_refused(name)
    trial = trials[name].result()
    expected = {check: OUTCOMES[kind] for kind, check, since, _ in rows(name) if kind != CHANCE and is_of(trial, since)}
    by_chance = {check for kind, check, _, _ in rows(name) if kind == CHANCE}
    found = {check: outcome for check, (outcome, _) in trial.found.items() if check not in by_chance}
    about = f"{name} {trial.version}, seen with {TABLE[name]['seen']}"
    details = "\n".join(f"{check}: {trial.found[check]}" for check in sorted(found.keys() - expected.keys()))
    assert found == expected, f"{about}\n{details}"


def rows(name: str) -> Iterator[tuple[str, str, str, str]]:
    """(kind, check, first version or nothing, what it does) of a back-end."""
    for kind in (*OUTCOMES, CHANCE):
        for check, does in TABLE[name].get(kind, {}).items():
            since, colon, what = does.partition(": ")
            yield (kind, check, since, what) if colon and since[:1].isdigit() else (kind, check, "", does)


def is_of(trial: Tried, since: str) -> bool:
    """Whether it is no older than the version."""
    return not since or bool(Version(trial.version) >= Version(since))


def test_the_table_is_of_the_back_ends_and_of_checks_that_there_are() -> None:
    assert set(TABLE) == set(BACK_ENDS)
    known = {check.id for check in CATALOGUE}
    assert [check for name in TABLE for _, check, _, _ in rows(name) if check not in known] == []


def test_the_documentation_has_each_of_them() -> None:
    page = (Path(__file__).parent.parent / "docs/vhost-user-peers.md").read_text()
    lines = [line.split("|") for line in page.partition("| check |")[2].splitlines() if line.startswith("| `")]
    said = {(name, check) for _, checks, *_, who, _ in lines for name in quoted(who) for check in quoted(checks)}
    assert {(name, check) for name in TABLE for _, check, *_ in rows(name)} == said


def quoted(text: str) -> list[str]:
    """What is in backticks."""
    return text.split("`")[1::2]
