"""What README.md shows works as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

from vfio_user.client import Client, EventFd
from vfio_user.device import PciDevice
from vfio_user.server import Server
from vfio_user.wire import DIALECTS
from vfio_user.wire.constants import IrqIndex

README = (Path(__file__).parent.parent / "README.md").read_text()


def example() -> str:
    found = re.search(r"```python\n(.*?)```", README, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_example_is_a_whole_device_in_at_most_25_lines(tmp_path: Path) -> None:
    assert len(example().splitlines()) <= 25
    names: dict[str, type[PciDevice]] = {}
    exec(example(), names)
    device = names["Doorbell"]()
    with (
        Server(device, str(tmp_path / "socket")),
        Client.connect(str(tmp_path / "socket")) as client,
        EventFd() as interrupt,
    ):
        client.enable_irqs(IrqIndex.MSIX, [interrupt])
        client.store(0, 0, 4, 40)
        client.store(0, 0, 4, 2)
        assert client.load(0, 0, 4) == 42
        assert interrupt.wait() == 2
        client.reset()
        assert client.load(0, 0, 4) == 0


def test_every_command_that_the_readme_names_exists() -> None:
    from vfio_user.cli import COMMANDS

    rows = re.findall(r"^\| (`vfio-user.*?) \|", README, re.MULTILINE)
    named = {word for row in rows for word in re.findall(r"`(?!vhost-user)(?:vfio-user )?([a-z0-9-]+)", row)}
    assert named
    assert named <= set(COMMANDS)


def test_the_readme_has_every_dialect() -> None:
    assert set(re.findall(r"^\| `([a-z][a-z0-9-]+)` \|", README, re.MULTILINE)) == set(DIALECTS)
