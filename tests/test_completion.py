"""What a shell completes, and the scripts by which it asks."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import get_completion_class

from tests.cases import for_each_row
from tests.test_command_line import ROOTS, Say
from tests.test_command_line import say as say  # a command in this process

SHELLS = ("bash", "zsh", "fish")


def completed(monkeypatch: pytest.MonkeyPatch, shell: str, *words: str, program: str = "vfio-user") -> list[str]:
    """What there is for the last of these words, as a shell's script asks for it."""
    monkeypatch.setenv("COMP_WORDS", shlex.join([program, *words]))
    # fish gives the word that is being typed, the others its number
    monkeypatch.setenv("COMP_CWORD", words[-1] if shell == "fish" else str(len(words)))
    made = get_completion_class(shell)
    assert made is not None
    return re.split("[,\t\n]", made(ROOTS[program], {}, program, "_VFIO_USER_COMPLETE").complete())


@for_each_row(
    [
        (shell, *row)
        for shell in SHELLS
        for row in [
            (["mig"], "migrate"),
            (["boot", "--root"], "--root-bus"),
            (["boot", "--device", "vhost-user-b"], "vhost-user-blk"),
            (["run", "--image", "sto"], "storage"),
            (["exec", "min"], "minimal"),
            (["migrate", "--to-qemu", "for"], "forky"),
            (["qemu", "install", "def"], "default"),
            (["serve", "gp"], "gpio"),
            (["serve", "edu", "--dia"], "--dialect"),
            (["test-e2e", "interru"], "interrupts"),
            (["known-issues", "eject-tw"], "eject-twice"),
            (["run", "--hel"], "--help"),
        ]
    ]
)
def test_a_shell_completes_what_there_is(
    shell: str, words: list[str], wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wanted in completed(monkeypatch, shell, *words)


@for_each_row(
    [
        ("vfio-user", "conformance", {"edu", "nvme"}, {"vhost-user-blk"}),
        ("vfio-user", "probe", {"edu", "nvme"}, {"vhost-user-blk"}),
        ("vfio-user", "run", {"edu", "vhost-user-blk"}, {"gpio"}),
        ("vhost-user", "conformance", {"net", "blk", "rng", "vsock", "fs"}, {"edu", "vhost-user-blk"}),
        ("vhost-user", "probe", {"vhost-user-blk"}, {"edu"}),
    ]
)
def test_no_device_is_completed_that_the_command_refuses(
    program: str, name: str, offered: set[str], refused: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = set(completed(monkeypatch, "bash", name, "--device", "", program=program))
    assert offered <= words
    assert not refused & words


def test_no_module_is_imported_to_complete_a_commands_name() -> None:
    shown = "import sys; sys.argv[0] = 'vfio-user'; from vfio_user.cli import cli; import click.shell_completion as s\n"
    shown += "print([item.value for item in s.ShellComplete(cli, {}, 'vfio-user', 'X').get_completions([], 'mi')])\n"
    shown += "print([name for name in sys.modules if name.startswith(('vfio_user.harness', 'vfio_user.cli.m'))])"
    done = subprocess.run([sys.executable, "-c", shown], capture_output=True, text=True, check=True)
    assert done.stdout == "['migrate', 'minimize']\n[]\n"


def test_bash_itself_completes(tmp_path: Path) -> None:
    """By the script that is printed, in a real bash, with the program on its PATH."""
    bash = shutil.which("bash")
    assert bash is not None
    for program in ROOTS:
        module = program.replace("-", "_")
        entry = tmp_path / program
        # as an installed one, which is not told a module's name
        entry.write_text(f"#!{sys.executable} -P\nfrom {module}.__main__ import main\nmain()\n")
        entry.chmod(0o755)
    asked = """
        source <(vfio-user completion bash)
        COMP_WORDS=(vfio-user boot --device nv); COMP_CWORD=3
        _vfio_user_completion vfio-user nv --device
        echo "${COMPREPLY[@]}"
    """
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run([bash, "--norc", "-c", asked], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout == "nvme\n", done.stderr


@pytest.mark.parametrize("program", ROOTS)
def test_every_shell_has_a_script(say: Say, program: str) -> None:
    scripts = {shell: say("completion", shell, program=program).stdout for shell in SHELLS}
    assert all(scripts.values())
    assert len(set(scripts.values())) == len(SHELLS)


def test_the_shell_is_the_one_in_use_where_none_is_named(say: Say, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", "/usr/bin/fish")
    assert say("completion").stdout == say("completion", "fish").stdout
    monkeypatch.setenv("SHELL", "/bin/tcsh")
    done = say("completion")
    assert done.status == 2
    assert "tcsh" in done.stderr
