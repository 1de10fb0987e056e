"""`vhost-user peer`: real vhost-user programs, to try ours on."""

from __future__ import annotations

import json

import click

from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._progress import Waiting, quiet_option
from vfio_user.harness.vhost_user_peers import PEERS, install_peer


@click.command(cls=CommandLine, epilog="\b\n" + "\n".join(f"{name:20} {peer.about}" for name, peer in PEERS.items()))
@click.argument("program", type=Choice(list(PEERS)))
@click.option("--version", "wants_version", is_flag=True, help="Print upstream's version in place of the path.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: program, path, version.")
@quiet_option()
def command(program: str, wants_version: bool, as_json: bool, quiet: bool) -> None:
    """Print the path of a script that starts a real vhost-user program, unpacked from Debian when it is not there yet.

    It takes the path of a socket. What the program needs beside, such as a disk, is made in SOCKET.d.

    \b
    For instance
      $(vhost-user peer qemu-storage-daemon) /tmp/blk.sock
      $(vhost-user peer dpdk-virtio-user) /tmp/net.sock --forward-mode=txonly
    """
    with Waiting(quiet=quiet) as waiting:
        peer = install_peer(program, progress=waiting.tell)
    if as_json:
        click.echo(json.dumps({"program": program, "path": str(peer.script), "version": peer.version}, indent=2))
        return
    click.echo(peer.version if wants_version else peer.script)
