"""Wireshark for terminals, of Debian's, unpacked with all that it needs: what our dissectors are tried with."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.user_namespaces import in_root
from vfio_user.harness.debian import DebianArchive


@dataclass(frozen=True)
class Wireshark:
    """The folder that it is in."""

    root: Path

    @classmethod
    def unpacked(cls, root: Path) -> Self:
        """Fetch it and unpack it there."""
        archive = DebianArchive(["bookworm"])
        archive.unpack(archive.fetch(["tshark"]), root)
        return cls(root)

    def fields(self, dissector: Path, packets: Path, wanted: str, *names: str) -> list[list[str]]:
        """The fields of these names, of each packet that the display filter lets through."""
        shutil.copy(dissector, self.root / "dissector.lua")
        shutil.copy(packets, self.root / "packets")
        # Its own root: the program's configuration is at absolute paths, through links among them.
        command = [*in_root(self.root), "tshark", "-X", "lua_script:/dissector.lua"]
        command += ["-r", "/packets", "-T", "fields", "-Y", wanted]
        for name in names:
            command += ["-e", name]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "Lua" not in done.stderr
        return [line.split("\t") for line in done.stdout.splitlines()]
