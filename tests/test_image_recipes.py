"""Recipes: what one may say, which it extends, and what is wrong with one that is not sound."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases import for_each_row
from userdev.errors import UserError
from vfio_user.harness.image import overlay, recipe
from vfio_user.harness.image.recipe import ImageRecipe, load_recipe, recipe_names


def test_the_recipes_of_the_package_are_sound() -> None:
    recipes = {name: load_recipe(name) for name in recipe_names()}
    assert {"minimal", "storage"} <= set(recipes)
    assert "fio" in recipes["storage"].packages
    assert set(recipes["minimal"].packages) < set(recipes["storage"].packages), "storage extends minimal"
    assert recipes["storage"].services == recipes["minimal"].services


def test_an_unknown_image_is_answered_with_the_known() -> None:
    with pytest.raises(UserError) as refusal:
        load_recipe("maximal")
    assert "minimal" in refusal.value.hint
    assert "storage" in refusal.value.hint


def test_a_recipe_of_ones_own_can_extend_one_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: minimal\ndescription: mine\npackages: [gdb]\nfiles: [usr/bin/gdb]\nservices: {web: httpd -f}\n"
    )
    mine, minimal = load_recipe(str(path)), load_recipe("minimal")
    assert mine.name == "mine"
    assert mine.packages == (*minimal.packages, "gdb")
    assert set(mine.services) == {*minimal.services, "web"}


def test_what_a_recipe_says_itself_is_said_over_what_it_extends(tmp_path: Path) -> None:
    """A list goes on; a service of the same name, and a text, are one's own."""
    (tmp_path / "first.yaml").write_text(
        "extends: minimal\ndescription: first\nautoload: [uio]\nservices: {web: httpd -f, log: logd}\n"
    )
    (tmp_path / "second.yaml").write_text(
        "extends: first\ndescription: second\nautoload: [nvme]\nservices: {web: nginx}\n"
    )
    first, second = (load_recipe(str(tmp_path / f"{name}.yaml")) for name in ("first", "second"))
    assert second.description == "second"
    assert second.services == {**first.services, "web": "nginx"}
    assert second.autoload == (*first.autoload, "nvme")
    assert second.kernel == first.kernel == load_recipe("minimal").kernel


@for_each_row(
    {
        "unknown field": ("extends: minimal\npackage: [x]\n", "package"),
        "a key's typo": ("extends: minimal\nown_file: {}\n", r"bad\.yaml:2: .*did you mean 'own_files'"),
        "no list": ("extends: minimal\nmodules: nvme\n", "modules"),
        "missing field": ("description: x\n", "suites"),
        "extends itself": ("extends: bad\ndescription: x\n", "extends itself"),
        "extends nothing": ("extends: nothing\ndescription: x\n", "no recipe 'nothing'"),
        "no YAML": ("{", "not YAML"),
        "no table": ("- a\n", "table"),
        "levels": ("[" * 20_000, "levels"),
        "no date": ("extends: minimal\ndescription: 2001-99-99\n", "month"),
        "digits": ("extends: minimal\nname: x\nservices: {a: 9" + "9" * 5000 + "}\n", "digits"),
        "extends a list": ("extends: [minimal]\n", "recipe's name"),
        "extends a path": ("extends: ../minimal\n", "recipe's name"),
        "a number for a field": ("extends: minimal\n1: 2\n", "1"),
        "two lines": ('extends: minimal\nservices: {a: "b\\nc"}\n', "services"),
        "a path for a package": ("extends: minimal\npackages: [../secret]\nfiles: [a]\n", "packages"),
        "packages of which nothing is taken": ("extends: minimal\npackages: [gdb]\n", "without `files`"),
        "a path for a service": ("extends: minimal\nservices: {../a: b}\n", "services"),
        "no file": (
            "extends: minimal\nown_files: {/a: nothing}\n",
            r"bad\.yaml:2: own_files: /a: there is no file 'nothing'",
        ),
        "a list for a file": ("extends: minimal\nown_files: {/a: [b]}\n", r"bad\.yaml:2: own_files"),
        "nowhere in the guest": ("extends: minimal\nown_files: {a: bad.yaml}\n", "begins with /"),
        "a list of files": ("extends: minimal\nown_files: [bad.yaml]\n", "own_files"),
        "a kernel without modules": ("extends: minimal\nown_kernel: {image: bad.yaml}\n", "modules"),
        "a kernel that is a file alone": ("extends: minimal\nown_kernel: bad.yaml\n", "own_kernel"),
    }
)
def test_a_mistake_in_a_recipe_is_named(text: str, named: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=named):
        load_recipe(str(path))


def test_what_lies_beside_a_recipe_is_no_recipe_unless_it_is_nearly_meant(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    (tmp_path / "servers.yaml").touch()
    for parent, is_told in (("minimum", False), ("server", True)):
        path.write_text(f"extends: {parent}\n")
        with pytest.raises(UserError) as refused:
            load_recipe(str(path))
        assert ("servers" in refused.value.hint) is is_told, parent


def test_a_recipe_extends_another_by_its_name_and_not_its_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("extends: mine.yaml\n")
    with pytest.raises(UserError) as refused:
        load_recipe(str(path))
    assert "without .yaml" in refused.value.hint


def test_a_recipe_that_extends_one_with_a_typo_is_told_what_was_meant(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    for parent, meant in (("minimall", "minimal"), ("ours", "our")):
        path.write_text(f"extends: {parent}\n")
        (tmp_path / "our.yaml").write_text("extends: minimal\n")
        with pytest.raises(UserError) as refused:
            load_recipe(str(path))
        assert f"did you mean '{meant}'?" in refused.value.hint


def test_a_recipe_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.yaml"):
        load_recipe(str(tmp_path / "gone.yaml"))


def test_what_a_guest_mounts_a_recipe_knows() -> None:
    mounts = [line.split()[1] for line in (recipe.ROOM / "rootfs/etc/fstab").read_text().splitlines()]
    for mount in mounts:
        assert any(Path(mount).is_relative_to(known) for known in recipe.MOUNTED), mount


@pytest.mark.parametrize("name", recipe_names())
def test_what_a_recipe_starts_is_in_the_image(name: str) -> None:
    made: ImageRecipe = load_recipe(name)
    shipped = {path for path, _ in overlay.overlay_tree(made)}
    ours = (word for command in made.services.values() for word in command.split() if word.startswith("/opt/"))
    assert {path.lstrip("/") for path in ours} <= shipped
