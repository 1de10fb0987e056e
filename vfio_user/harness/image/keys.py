"""The SSH keys of the cache: one pair for the client, one for the guests, made once and never committed.

They are the only secret and the only random part of an image, so they travel in an archive of their own and an image's
digest leaves them out.
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.image.tree import Directory, File, Tree

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_TYPE = "ssh-ed25519"


@dataclass(frozen=True)
class Keys:
    """The keys of client and guest. Public keys are lines as in authorized_keys."""

    client: Path  # the private key, in OpenSSH's form
    client_public: str
    host_public: str
    host_private: bytes  # in dropbear's form

    def tree(self) -> Tree:
        """The files by which a guest knows itself and whom it lets in."""
        tree = Tree()
        tree.add("root", Directory(0o700))
        tree.add("root/.ssh", Directory(0o700))
        tree.add("root/.ssh/authorized_keys", File(0o600, f"{self.client_public}\n".encode()))
        tree.add("etc/dropbear/dropbear_ed25519_host_key", File(0o600, self.host_private))
        return tree


def ensure_keys() -> Keys:
    """The cache's keys, made when they are missing."""
    folder = cache_dir() / "images" / "keys"
    if not folder.exists():
        with locked("image-keys"):
            if not folder.exists():
                _make(folder)
    return Keys(
        client=folder / "client",
        client_public=(folder / "client.pub").read_text().strip(),
        host_public=(folder / "host.pub").read_text().strip(),
        host_private=(folder / "host").read_bytes(),
    )


def _make(folder: Path) -> None:
    from cryptography.hazmat.primitives import serialization  # keys are made once
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    client, host = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    openssh = client.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    files = {
        "client": openssh,
        "client.pub": _public_line(client, "vfio-user"),
        "host": _dropbear_private(host),
        "host.pub": _public_line(host, "guest"),
    }
    with publish(folder) as making:
        for name, data in files.items():
            (making / name).write_bytes(data)
            (making / name).chmod(0o600)


def _public_line(key: Ed25519PrivateKey, comment: str) -> bytes:
    blob = _ssh_string(_TYPE.encode()) + _ssh_string(_raw_public(key))
    return f"{_TYPE} {base64.b64encode(blob).decode()} {comment}\n".encode()


def _dropbear_private(key: Ed25519PrivateKey) -> bytes:
    """Dropbear's own form of an ed25519 key: its type, then seed and public half as one string (src/ed25519.c)."""
    from cryptography.hazmat.primitives import serialization

    seed = key.private_bytes(serialization.Encoding.Raw, serialization.PrivateFormat.Raw, serialization.NoEncryption())
    return _ssh_string(_TYPE.encode()) + _ssh_string(seed + _raw_public(key))


def _raw_public(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)


def _ssh_string(data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + data
