"""What commands print with --json is what docs/reference/json/ says, in real runs. `scripts/docs check` runs it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from jsonschema import Draft202012Validator

from tests.documents.shell import surroundings
from userdev.fuzz import Find
from vfio_user.cli import cli, vhost_user_cli

ROOT = Path(__file__).parent.parent.parent
SCHEMAS = ROOT / "docs/reference/json"
EDU, RNG = (
    f"{program} serve {name} --socket-path {{socket}}"
    for program, name in (("vfio-user", "edu"), ("vhost-user", "rng"))
)

KEPT = "[ -d kept ] || vfio-user run --bundle kept >&2; "
"""A bundle, made once."""

WRITTEN = (
    r"printf 'from avocado import Test\nclass It(Test):\n    def test(self):\n        self.log.info(1)\n' > test_it.py;"
)
"""A test, of no guest: what is printed of it is the same."""

A_FIND = Find("vfio-user", "replies", "a reply is right", "replies: it was not", "it was not", ())
FIND = f"printf %s '{json.dumps(A_FIND.plain())}' > find.json;"

COMMANDS: dict[str, tuple[str, ...]] = {
    "bundle": (f"{KEPT} vfio-user bundle show kept --json",),
    "bundle-diff": (f"{KEPT} vfio-user bundle diff kept kept --json",),
    "control": ("vfio-user control edu.control status --json", "vhost-user control rng.control status --json"),
    "doctor": ("vfio-user doctor --json",),
    "exec": ("vfio-user exec --json -- uname -r", "vfio-user exec --json --timeout 1 -- sleep 60"),
    "fuzz": (
        f"vhost-user fuzz --server-command '{RNG}' --for 2s --output v --json",
        f"vfio-user fuzz --server-command '{EDU}' --for 2s --json",
    ),
    "image": ("vfio-user image build minimal --json",),
    "image-list": ("vfio-user image list --json",),
    "known-issues": ("vfio-user known-issues --json",),
    "migrate": ("vfio-user migrate --hosts local --workload registers --json",),
    "new": ("vfio-user new mine --json",),
    "nightly": (),
    "nightly-compare": (),
    "probe": ("vfio-user probe edu.sock --json",),
    "qemu-list": ("vfio-user qemu list --json",),
    "qemu-which": ("vfio-user qemu which --json",),
    "repro": (f"{KEPT} vfio-user repro kept --json",),
    "run": ("vfio-user run --json",),
    "soak-event": (
        "vfio-user soak --device edu --workload none --hosts local --only-events pause-qemu --until 2 --json",
    ),
    "test-e2e": (f"{WRITTEN} vfio-user test-e2e ./test_it.py --json",),
    "trace-line": ("vfio-user trace show edu.trace --json", "vhost-user trace show rng.trace --json"),
    "trace-stats": ("vfio-user trace stats edu.trace --json", "vhost-user trace stats rng.trace --json"),
    "trace-diff": (
        "vfio-user trace diff edu.trace edu.trace --json",
        "vhost-user trace diff rng.trace rng.trace --json",
    ),
    "vhost-probe": ("vhost-user probe rng.sock --json",),
    "replay": (
        f"vfio-user replay edu.trace --server-command '{EDU} --msix 1' --json",
        f"{FIND} vfio-user replay find.json --server-command '{EDU}' --json",
    ),
    "show": ("vfio-user show edu.trace --json",),
    "minimize": (f"vfio-user minimize edu.trace --server-command '{EDU} --msix 1' --json --for 20s",),
    "qemu-install": ("vfio-user qemu install --json",),
    "reference": ("vfio-user reference --json",),
    "peer": ("vhost-user peer passt --json",),
    "conformance": (
        f"vfio-user conformance --server-command '{EDU}' --only info --json c.json >&2; cat c.json",
        f"vhost-user conformance --server-command '{RNG}' --only config --json v.json >&2; cat v.json",
    ),
}
"""Schema: commands whose output has to be so. A night takes too long: it and its comparison are models' own schemas."""

LINES = ("soak-event", "trace-line")


def run(command: str, folder: Path) -> str:
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=surroundings(), capture_output=True, text=True, timeout=300
    )
    assert done.stdout, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a server of either protocol, and a trace of what a client did with each."""
    made = tmp_path_factory.mktemp("json")
    running = []
    for program, server, name in (("vfio-user", EDU, "edu"), ("vhost-user", RNG, "rng")):
        words = [program, "interpose", "--listen", f"{name}.sock", "--trace", f"{name}.trace"]
        words += ["--control", f"{name}.control"]
        command = [*words, "--server-command", server]
        process = subprocess.Popen(command, cwd=made, env=surroundings(), stdout=subprocess.PIPE, text=True)
        running.append(process)
        assert process.stdout is not None
        assert "listening" in process.stdout.readline()
        run(f"{program} probe {name}.sock", made)
    yield made
    for process in running:
        process.terminate()
        process.communicate()


def validate(name: str, value: Any) -> None:
    validator = Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text()))
    wrong = [f"{list(error.absolute_path)}: {error.message[:200]}" for error in validator.iter_errors(value)]
    assert wrong == []


@pytest.mark.parametrize(("name", "command"), [(name, command) for name in COMMANDS for command in COMMANDS[name]])
def test_what_is_printed_is_what_the_schema_says(folder: Path, name: str, command: str) -> None:
    text = run(command, folder)
    for value in map(json.loads, text.splitlines()) if name in LINES else [json.loads(text)]:
        validate(name, value)


@pytest.mark.parametrize("path", sorted(SCHEMAS.glob("*.json")), ids=lambda path: path.stem)
def test_a_schema_is_one_and_takes_not_everything(path: Path) -> None:
    schema = json.loads(path.read_text())
    Draft202012Validator.check_schema(schema)
    assert list(Draft202012Validator(schema).iter_errors("something else"))
    assert path.stem in COMMANDS


def with_json(command: click.Command, path: tuple[str, ...]) -> Iterator[str]:
    """The command lines that have --json."""
    context = click.Context(command)
    if any("--json" in parameter.opts for parameter in command.params):
        yield " ".join(path)
    if isinstance(command, click.Group) and path[-1] != "serve":
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            yield from with_json(found, (*path, name))


def test_every_command_that_prints_json_has_a_row_and_a_schema() -> None:
    page = (ROOT / "docs/reference/json.md").read_text()
    rows = re.findall(r"^\| (`.*?`) \|.*\[([\w-]+)\]\([\w./-]+\.json\) \|$", page, re.MULTILINE)
    told = {command for cells, _ in rows for command in re.findall(r"`([^`]+?) --json", cells)}
    assert told == {command for group in (cli, vhost_user_cli) for command in with_json(group, (group.name or "",))}
    assert {schema for _, schema in rows} == set(COMMANDS)
