"""`vhost-user peer`: real vhost-user programs, to try ours on."""

from __future__ import annotations

import click

from vfio_user.harness.vhost_user_peers import PEERS, install_peer


@click.command(epilog="\b\n" + "\n".join(f"{name:20} {peer.about}" for name, peer in PEERS.items()))
@click.argument("program", type=click.Choice(list(PEERS)))
@click.option("--version", "wants_version", is_flag=True, help="Print upstream's version in place of the path.")
def command(program: str, wants_version: bool) -> None:
    """Print the path of a script that starts a real vhost-user program, unpacked from Debian when it is not there yet.

    It takes the path of a socket. What the program needs beside, such as a disk, is made in SOCKET.d.

    \b
    For instance
      $(vhost-user peer qemu-storage-daemon) /tmp/blk.sock
      $(vhost-user peer dpdk-virtio-user) /tmp/net.sock --forward-mode=txonly
    """
    peer = install_peer(program, progress=lambda message: click.echo(message, err=True))
    click.echo(peer.version if wants_version else peer.script)
