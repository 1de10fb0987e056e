"""A bundle: what is in it and what was left out, where it may be, and what is said of one that is none."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from click.testing import CliRunner

from tests.bundle_kit import FAILED, RECIPE, make_bundle, make_results
from tests.cases import for_each, for_each_row
from userdev.errors import UserError, VerdictError
from vfio_user.bundle import MANIFEST, Keeping, Outcome, Recipe, Secrets, open_bundle, pack, schema
from vfio_user.bundle.model import Program, without_option
from vfio_user.cli.bundle import command

SCHEMAS = Path(__file__).parent.parent / "docs/reference/json"


def ended(keeping: Keeping, tmp_path: Path, error: BaseException) -> None:
    """A run of which something is kept, and which ends by this error."""
    with suppress(type(error)), keeping as kept:
        kept.folder = make_results(tmp_path / "results")
        raise error


def test_a_bundle_reads_back_wherever_it_was_copied_to(tmp_path: Path) -> None:
    make_bundle(tmp_path / "first")
    shutil.copytree(tmp_path / "first", tmp_path / "elsewhere/copy")
    shutil.rmtree(tmp_path / "first")
    shutil.rmtree(tmp_path / "first-results")
    found = open_bundle(tmp_path / "elsewhere/copy")
    assert found.bundle.outcome == FAILED
    assert found.bundle.recipe.arguments == RECIPE.arguments
    assert (found.folder / "guest-dev0-edu.server.log").read_text() == "Edu is listening\n"


def test_a_command_line_that_is_no_utf8_is_in_its_bundle_as_it_was(tmp_path: Path) -> None:
    server = os.fsdecode(b"./server\xff {socket}")
    make_bundle(tmp_path / "kept", recipe=Recipe(command="run", arguments=("--server", server)))
    assert open_bundle(tmp_path / "kept").arguments == ["--server", server]
    assert json.loads(CliRunner().invoke(command, ["show", str(tmp_path / "kept"), "--json"]).stdout)["recipe"]


def test_the_recipe_has_what_the_run_was_made_with(tmp_path: Path) -> None:
    ended(Keeping(str(tmp_path / "kept"), RECIPE, of="a run"), tmp_path, VerdictError("wrong"))
    recipe = open_bundle(tmp_path / "kept").bundle.recipe
    assert recipe.qemu is not None
    assert (recipe.qemu.version, recipe.qemu.packages) == ("11.1.3", "2" * 64)
    assert len(recipe.qemu.program) == 64
    assert recipe.images == {"minimal": "1" * 64}
    assert recipe.accelerator == "tcg"
    assert [program.name for program in recipe.programs] == ["guest-dev0-edu", "guest"]
    assert recipe.devices == {"guest-dev0-edu": {"command": "./server --verbose {socket}", "protocol": "vfio-user"}}
    assert recipe.versions.keys() == {"vfio-user", "sources", "python", "kernel"}


def test_files_and_seeds_that_the_command_names_are_in_it(tmp_path: Path) -> None:
    scenario, program = tmp_path / "late.yaml", tmp_path / "server"
    scenario.write_text("seed: 7\nrules: []\n")
    program.write_text("#!/bin/sh\n")
    recipe = Recipe(command="run", arguments=("--server", f"{program} {{socket}}", "--faults", "{inputs}/late.yaml"))
    with Keeping(str(tmp_path / "kept"), recipe, of="a run", inputs={"late.yaml": scenario}) as kept:
        kept.folder = make_results(tmp_path / "results")
    found = open_bundle(tmp_path / "kept")
    assert found.bundle.recipe.seeds == {"late.yaml": 7}
    assert list(found.bundle.recipe.files) == [str(program)]
    assert Path(found.arguments[-1]).read_text() == scenario.read_text()


@for_each_row([(VerdictError("wrong"), "FAIL"), (UserError("no"), "ERROR"), (AssertionError("1"), "FAIL")])
def test_what_fails_leaves_a_bundle_and_says_where(raised: Exception, verdict: str, tmp_path: Path) -> None:
    ended(Keeping("auto", RECIPE, of="a run"), tmp_path, raised)
    assert open_bundle(tmp_path / "results/bundle").bundle.outcome.verdict == verdict
    [note] = raised.__notes__
    assert note.startswith(f"bundle: {tmp_path / 'results/bundle'}; ")
    assert "vfio-user repro" in note


@for_each(["", "auto"])
def test_what_does_not_fail_leaves_none_unless_it_was_asked_for(wanted: str, tmp_path: Path) -> None:
    with Keeping(wanted, RECIPE, of="a run") as kept:
        kept.folder = make_results(tmp_path / "results")
    assert not (tmp_path / "results/bundle").exists()


def test_who_is_interrupted_leaves_none(tmp_path: Path) -> None:
    ended(Keeping(str(tmp_path / "kept"), RECIPE, of="a run"), tmp_path, KeyboardInterrupt())
    assert not (tmp_path / "kept").exists()


def test_what_does_not_fit_is_left_out_and_said(tmp_path: Path) -> None:
    most = 256 << 10
    made = make_bundle(tmp_path / "kept", most=most)
    assert sum(path.stat().st_size for path in (tmp_path / "kept").iterdir()) <= most
    assert made.contents.keys() >= {"evidence.json", "error.txt"}
    results = make_results(tmp_path / "large")
    (results / "guest.trace.log").write_text("a line\n" * 50_000)
    (results / "guest-dev0-edu.server.log").write_text("the first cause\n")
    made = pack(results, tmp_path / "bounded", RECIPE, FAILED, of="", secrets=Secrets((), {}), most=most)
    assert list(made.left_out) == ["guest.trace.log", "qemu-system-x86_64"]
    assert "too large" in made.left_out["guest.trace.log"]
    assert sum(path.stat().st_size for path in (tmp_path / "bounded").iterdir()) <= most
    open_bundle(tmp_path / "bounded")


def test_the_least_is_left_out_where_only_bundle_json_has_no_room(tmp_path: Path) -> None:
    whole = make_bundle(tmp_path / "whole")
    size = sum(path.stat().st_size for path in (tmp_path / "whole").iterdir())
    made = make_bundle(tmp_path / "small", most=size - 1)
    assert len(made.contents) == len(whole.contents) - 1
    assert sum(path.stat().st_size for path in (tmp_path / "small").iterdir()) < size


def test_no_more_is_given_up_than_there_is_no_room_for(tmp_path: Path) -> None:
    """What was given up last would not have fitted, with what bundle.json says of it."""
    make_bundle(tmp_path / "whole")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "whole").iterdir() if path.is_file()}
    size = sum(sizes.values())
    for number, most in enumerate(range(size - 1, size - 3000, -500)):
        place = tmp_path / f"small{number}"
        made = make_bundle(place, most=most)
        left = most - sum(path.stat().st_size for path in place.iterdir())
        given_up = [sizes[name] for name, why in made.left_out.items() if why.startswith("too large: it has")]
        assert left >= 0
        assert given_up
        assert left < given_up[-1] + 200


def test_a_bound_without_room_for_the_recipe_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no room for its recipe"):
        make_bundle(tmp_path / "kept", most=100)
    assert not (tmp_path / "kept").exists()


def test_no_bundle_is_put_where_something_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "mine", tmp_path / "file"):
        with pytest.raises(UserError, match="is there already"):
            Keeping(str(place), RECIPE, of="a run")
    assert (tmp_path / "mine/thesis.txt").read_text() == "years of work"


# -- what is none ----------------------------------------------------------------------------------------------------


def told(*words: str) -> str:
    """What the command says of a bundle that it refuses."""
    result = CliRunner().invoke(command, words)
    assert isinstance(result.exception, UserError), result.output
    return f"{result.exception}: {result.exception.hint}"


def cut_manifest(place: Path) -> None:
    text = (place / MANIFEST).read_text()
    (place / MANIFEST).write_text(text[: len(text) // 2])


def cut_file(place: Path) -> None:
    (place / "guest.trace.log").write_text("vfio_user_recv")


def nest_manifest(place: Path) -> None:
    (place / MANIFEST).write_text("[" * 2000)


def name_too_long(place: Path) -> None:
    text = (place / MANIFEST).read_text()
    (place / MANIFEST).write_text(text.replace("guest.qmp.log", 300 * "q"))


def lose_file(place: Path) -> None:
    (place / "guest.qmp.log").unlink()


def change_file(place: Path) -> None:
    path = place / "guest-dev0-edu.server.log"
    path.write_text(path.read_text().upper())


def link_file(place: Path) -> None:
    (place / "guest.qmp.log").rename(place.with_name("guest.qmp.log"))
    (place / "guest.qmp.log").symlink_to(place.with_name("guest.qmp.log"))


def lose_manifest(place: Path) -> None:
    (place / MANIFEST).unlink()


def remove(place: Path) -> None:
    shutil.rmtree(place)


def be_a_file(place: Path) -> None:
    shutil.rmtree(place)
    place.write_text("a file")


def of_format(number: object, place: Path) -> None:
    document = json.loads((place / MANIFEST).read_text())
    (place / MANIFEST).write_text(json.dumps({**document, "format": number}))


@for_each_row(
    [
        (cut_manifest, "is cut off"),
        (nest_manifest, "is cut off"),
        (name_too_long, "File name too long"),
        (cut_file, "guest.trace.log has 14 bytes of"),
        (lose_file, "guest.qmp.log is missing"),
        (change_file, "guest-dev0-edu.server.log was changed"),
        (link_file, "guest.qmp.log is missing"),
        (lose_manifest, "has no bundle.json"),
        (remove, "there is no"),
        (be_a_file, "is no bundle"),
    ]
)
def test_what_is_no_whole_bundle_is_refused_in_a_sentence(
    damage: Callable[[Path], None], says: str, tmp_path: Path
) -> None:
    make_bundle(tmp_path / "kept")
    damage(tmp_path / "kept")
    assert says in told("show", str(tmp_path / "kept"))
    assert says in told("diff", str(tmp_path / "kept"), str(tmp_path / "kept"))


def test_a_newer_format_is_refused_with_what_reads_it(tmp_path: Path) -> None:
    make_bundle(tmp_path / "kept")
    of_format(2, tmp_path / "kept")
    assert "format 2" in told("show", str(tmp_path / "kept"))
    assert "newer vfio-user" in told("show", str(tmp_path / "kept"))


@for_each(["one", None, [], 0.5])
def test_a_format_that_is_none_is_refused(number: object, tmp_path: Path) -> None:
    make_bundle(tmp_path / "kept")
    of_format(number, tmp_path / "kept")
    assert str(tmp_path / "kept") in told("show", str(tmp_path / "kept"))


@for_each(["../outside", "/etc/passwd", "a/../../b", ""])
def test_a_bundle_does_not_lead_out_of_its_folder(name: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "kept")
    document = json.loads((tmp_path / "kept" / MANIFEST).read_text())
    document["contents"][name] = {"size": 0, "sha256": ""}
    (tmp_path / "kept" / MANIFEST).write_text(json.dumps(document))
    assert "no place in a bundle" in told("show", str(tmp_path / "kept"))


def test_a_recipe_is_only_for_commands_that_are_known(tmp_path: Path) -> None:
    make_bundle(tmp_path / "kept")
    document = json.loads((tmp_path / "kept" / MANIFEST).read_text())
    document["recipe"]["command"] = "serve"
    (tmp_path / "kept" / MANIFEST).write_text(json.dumps(document))
    assert "recipe.command" in told("show", str(tmp_path / "kept"))


def test_show_tells_all_that_a_person_wants(tmp_path: Path) -> None:
    recipe = RECIPE.model_copy(update={"programs": (Program(name="guest", command=("qemu", "-S")),)})
    make_bundle(tmp_path / "kept", most=256 << 10, recipe=recipe)
    result = CliRunner().invoke(command, ["show", str(tmp_path / "kept")])
    for part in ("FAIL: guest-dev0-edu was killed", "WRONG  computes: 5! is 121", "left out  qemu-system-x86_64"):
        assert part in result.output
    assert result.output.index("left out") < result.output.index("guest: qemu -S"), "long command lines are the last"


def test_the_schema_that_is_documented_is_the_one_that_is_read() -> None:
    assert json.loads((SCHEMAS / "bundle.json").read_text()) == schema()
    assert json.loads(CliRunner().invoke(command, ["schema"]).output) == schema()


def test_outcome_without_evidence_has_the_errors_words(tmp_path: Path) -> None:
    with Keeping(str(tmp_path / "kept"), RECIPE, of="a run") as kept:
        kept.folder = make_results(tmp_path / "results")
        (kept.folder / "evidence.json").unlink()
        kept.failure = VerdictError("the guest saw edu do wrong")
        kept.looked_at("found", ok=True)
    outcome = open_bundle(tmp_path / "kept").bundle.outcome
    assert outcome == Outcome(verdict="FAIL", cause="the guest saw edu do wrong", saw=outcome.saw)
    assert [seen.what for seen in outcome.saw] == ["found"]


@for_each(
    ['{"token": "s3cretive-value", "mo', "token=s3cretive-value", '{"a": "--token s3cretive-value"}{}', ""],
    ["evidence.json", "error.txt", "guest.qmp.log"],
)
def test_a_file_that_is_cut_off_or_no_json_has_its_secrets_taken_out_all_the_same(
    text: str, name: str, tmp_path: Path
) -> None:
    results = make_results(tmp_path / "results")
    (results / name).write_text(text)
    pack(results, tmp_path / "kept", RECIPE, FAILED, of="", secrets=Secrets((), {}))
    assert all(b"s3cretive" not in path.read_bytes() for path in (tmp_path / "kept").iterdir())


def test_an_option_is_left_out_with_its_value_however_often_it_was_said() -> None:
    for words, left in (
        ("--cpus 2", "--cpus 2"),
        ("--qemu a --cpus 2", "--cpus 2"),
        ("--cpus 2 --qemu a", "--cpus 2"),
        ("--qemu a x --qemu b --qemu c", "x"),
        ("x --qemu", "x"),
    ):
        assert without_option(words.split(), "--qemu") == tuple(left.split()), words
