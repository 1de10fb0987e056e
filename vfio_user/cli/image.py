"""`vfio-user image`: build and list guest images."""

from __future__ import annotations

import json

import click
from rich.table import Table

from vfio_user.cli._command import Group
from vfio_user.cli._completion import complete_images
from vfio_user.cli._console import drawing_console
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.harness.image import GuestImage, ImageStatus, build_image, list_images


@click.group(cls=Group)
def command() -> None:
    """Build and list guest images."""


@command.command()
@click.argument("name", shell_complete=complete_images)
@click.option("--json", "as_json", is_flag=True, help="Print the image as one JSON object.")
@quiet_option()
def build(name: str, as_json: bool, quiet: bool) -> None:
    """Build the image NAME from the newest packages of Debian's archive; NAME may be a recipe's file, .yaml.

    Nothing is built when there is one already of these packages, this recipe and these programs.
    """
    with Waiting(quiet=quiet) as waiting:
        image = build_image(name, progress=waiting.tell)
    fields = _fields(image)
    if as_json:
        click.echo(json.dumps(fields, indent=2))
        return
    for field, value in fields.items():
        click.echo(f"{field:10} {value}")


@command.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print the images as a JSON array.")
def list_(as_json: bool) -> None:
    """List the images that there are recipes for, and whether they are built."""
    images = list_images()
    if as_json:
        click.echo(json.dumps([_status_fields(status) for status in images], indent=2))
        return
    table = Table("image", "built", "MB", "what is in it", box=None, pad_edge=False)
    for status in images:
        built = status.image.digest[:12] if status.image else "no"
        table.add_row(status.name, built, f"{status.size / 1e6:.0f}" if status.image else "", status.description)
    drawing_console().print(table)


def _fields(image: GuestImage) -> dict[str, str]:
    return {
        "name": image.name,
        "digest": image.digest,
        "kernel": str(image.kernel),
        "bzimage": str(image.bzimage),
        "initramfs": str(image.initramfs),
        "ssh_key": str(image.ssh_key),
        "host_key": image.host_key,
    }


def _status_fields(status: ImageStatus) -> dict[str, object]:
    image = _fields(status.image) if status.image else None
    return {"name": status.name, "description": status.description, "size": status.size, "image": image}
