"""`vfio-user completion`: what a shell needs to complete our command lines, by click's own mechanism."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.shell_completion import FishComplete, get_completion_class

from userdev.errors import UserError
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine

SHELLS = ("bash", "zsh", "fish")


class _Fish(FishComplete):
    """As click has it, whose script ends a description at its first comma."""

    source_template = FishComplete.source_template.replace('string split ","', 'string split -m 1 ","')


@click.command(cls=CommandLine)
@click.argument("shell", type=Choice(SHELLS), required=False)
@click.pass_context
def command(context: click.Context, shell: str | None) -> None:
    """Print a script for SHELL, by default the one that you use, that has it complete this command.

    \b
    For instance, once and for all:
      bash  vfio-user completion bash > ~/.local/share/bash-completion/completions/vfio-user
      zsh   vfio-user completion zsh > ~/.zfunc/_vfio-user    (with fpath+=~/.zfunc before compinit)
      fish  vfio-user completion fish > ~/.config/fish/completions/vfio-user.fish

    Commands, options and their values are completed, and devices, images, QEMUs, known issues and tests by what there
    is. bash has to be 4.4 or later.
    """
    root = context.find_root()
    program = root.info_name or ""
    wanted = shell or Path(os.environ.get("SHELL", "")).name
    made = _Fish if wanted == _Fish.name else get_completion_class(wanted) if wanted in SHELLS else None
    if made is None:
        raise UserError(f"there is no completion for the shell {wanted!r}", hint=f"say which: {', '.join(SHELLS)}")
    variable = f"_{program}_COMPLETE".replace("-", "_").replace(".", "_").upper()
    click.echo(made(root.command, {}, program, variable).source())
