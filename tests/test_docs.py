"""What docs/devices.md shows works as it stands there."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.cases import for_each
from tests.vhost_frontend import FrontEnd
from userdev.errors import ProtocolError
from vfio_user.client import Client, EventFd, GuestMemory
from vfio_user.device import PciDevice, device_options, function_of
from vfio_user.server import Server
from vfio_user.wire import Command
from vfio_user.wire.constants import IoFdType, IrqIndex
from vhost_user.device import VhostDevice

ROOT = Path(__file__).parent.parent
VHOST_GUIDE = (ROOT / "docs" / "vhost-user.md").read_text()
GUIDE = (ROOT / "docs" / "devices.md").read_text()


def example(name: str) -> type[PciDevice]:
    """The class of this name in the guide."""
    for block in re.findall(r"```python\n(.*?)```", GUIDE, re.DOTALL):
        if f"class {name}(" in block:
            names: dict[str, type[PciDevice]] = {}
            exec(block, names)
            return names[name]
    raise AssertionError(f"the guide has no {name}")


@contextmanager
def served(device: PciDevice, folder: Path) -> Iterator[Client]:
    with (
        closing(device),
        Server(device, str(folder / "socket")),
        Client.connect(str(folder / "socket")) as client,
    ):
        yield client


def test_the_copier_of_the_guide_copies_and_interrupts(tmp_path: Path) -> None:
    with (
        served(example("Copier")(), tmp_path) as client,
        GuestMemory(1 << 16) as ram,
        EventFd() as interrupt,
    ):
        client.dma_map(0x10000, ram)
        client.enable_irqs(IrqIndex.MSIX, [interrupt])
        ram.view[0x100:0x105] = b"hello"
        client.store(0, 0x00, 8, 0x10100)
        client.store(0, 0x08, 4, 5)
        assert client.map_region(client.region_info(2))[:6] == b"hello\0"
        assert client.load(0, 0x08, 4) == 1
        assert interrupt.wait() == 1


def test_the_option_of_the_guide_is_an_option() -> None:
    (limit,) = device_options(example("Copier"))
    assert (limit.name, limit.type, limit.default) == ("limit", int, 4096)


def test_the_tally_of_the_guide_migrates_in_bytes_of_its_own(tmp_path: Path) -> None:
    source: Any = example("Tally")()
    target: Any = type(source)()
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    with served(source, tmp_path / "here") as here, served(target, tmp_path / "there") as there:
        for value in (7, 7, 9):
            here.store(0, 0, 4, value)
        there.load_state(here.save())
    assert target.seen == {7: 2, 9: 1}
    assert target.digest() == source.digest()


def test_the_sampler_of_the_guide_hears_of_masks_and_has_no_interrupt_for_errors(tmp_path: Path) -> None:
    device: Any = example("Sampler")()
    with served(device, tmp_path) as client, EventFd() as eventfd:
        client.enable_irqs(IrqIndex.MSIX, [eventfd])
        client.mask_irqs(IrqIndex.MSIX, start=1, count=2)
        assert device.wanted == {0, 3}
        client.unmask_irqs(IrqIndex.MSIX, start=1, bools=b"\1\0")
        assert device.wanted == {0, 1, 3}
        assert [client.irq_info(irq).nr_vectors for irq in IrqIndex] == [0, 0, 4, 0, 0]


def test_the_samplers_dma_goes_by_message(tmp_path: Path) -> None:
    device: Any = example("Sampler")()
    with served(device, tmp_path) as client, GuestMemory(1 << 16) as ram:
        client.dma_map(0x10000, ram, offset=0x1000, size=0x1000)
        device.call_soon(lambda: device.defer(lambda: device.dma.write(0x10004, b"hello")))
        assert client.serve_until(lambda: bytes(ram.view[0x1004:0x1009]) == b"hello")
        assert client.service.served == {Command.DMA_WRITE: 1}


def test_the_mailbox_of_the_guide_answers_for_itself(tmp_path: Path) -> None:
    device: Any = example("Mailbox")()
    with served(device, tmp_path) as client:
        assert client.config_read(0x80, 2)[0] == 0x09
        client.config_write(0x84, b"abcd")
        assert (device.letter, client.config_read(0x84, 4)) == (b"abcd", b"dcba")
        version = device.config.find_capability(0x09, after=0x80)
        client.config_write(version + 3, b"9999")
        assert client.config_read(version + 2, 5) == b"\7v1" + (2).to_bytes(2, "little")


def test_the_bell_of_the_guide_is_rung_through_its_shadow(tmp_path: Path) -> None:
    """As KVM would: the value into the shared memory, then the signal."""
    device: Any = example("Bell")()
    with served(device, tmp_path) as client:
        (bell,) = client.io_fds(0)
        assert (bell.type, bell.size) == (IoFdType.IOEVENTFD_SHADOW, 4)
        assert bell.fd is not None
        assert bell.shadow_fd is not None
        os.pwrite(bell.shadow_fd, (0xCAFE).to_bytes(4, "little"), bell.shadow_offset)
        os.eventfd_write(bell.fd, 1)
        assert any(client.load(0, 0, 4) == 0xCAFE for _ in range(10_000))
        for fd in (bell.fd, bell.shadow_fd):
            os.close(fd)


def test_the_plotter_of_the_guide_is_loaded_where_its_pen_can_be() -> None:
    device: Any = example("Plotter")()
    function = function_of(device)
    saved = function.save_state()
    for pen in ([0, 999], [1000, 0], [1], [-1, 0]):
        state = {**saved, "values": {"pen": pen, "colour": 3}}
        if pen == [0, 999]:
            function.load_state(state)
            continue
        with pytest.raises(ProtocolError, match="pen"):
            function.load_state(state)
    assert (device.pen, device.colour) == ([0, 999], 3)


def test_every_section_of_the_protocol_that_is_cited_is_there() -> None:
    """By code, by conformance's rules (which people see), and by the page itself."""
    page = (ROOT / "docs/protocol.md").read_text()
    sections = set(re.findall(r"^#+ (\d+(?:\.\d+)?)\.? ", page, re.MULTILINE))
    cited = {
        section
        for path in (*(ROOT / "vfio_user").rglob("*.py"), *(ROOT / "tests").glob("*.py"))
        for section in re.findall(r"protocol\.md (\d+(?:\.\d+)?)", path.read_text())
    }
    assert len(cited) > 20
    assert cited <= sections


def test_the_virtio_device_of_the_guide_is_served_from_its_file(tmp_path: Path) -> None:
    (source,) = (text for text in re.findall(r"```python\n(.*?)```", VHOST_GUIDE, re.DOTALL) if "class Rng(" in text)
    module, path = tmp_path / "mine.py", tmp_path / "s"
    module.write_text(source)
    assert len([line for line in source.splitlines() if line]) <= 16
    command = [sys.executable, "-P", "-m", "vhost_user", "serve", f"{module}:Rng", "--socket-path", str(path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as program:
        assert program.stderr is not None
        assert "Rng is listening" in program.stderr.readline()
        with FrontEnd(f"unix:{path}") as front_end:
            front_end.negotiate()
            front_end.share_memory()
            ring = front_end.queue()
            ring.start()
            one, other = (ring.exchange(64).data for _ in range(2))
        program.terminate()
    assert len(one) == len(other) == 64
    assert one != other
    assert program.returncode == 0


FRAMEWORKS = {"devices.md": PciDevice, "vhost-user.md": VhostDevice}


@for_each(FRAMEWORKS)
def test_every_hook_is_told_with_what_it_is_called_with(page: str) -> None:
    framework = FRAMEWORKS[page]
    hooks = {name: inspect.signature(getattr(framework, name)) for name in dir(framework) if name.startswith("on_")}
    called = {
        f"{name}({', '.join(str(each).replace(chr(39), '') for each in list(signature.parameters.values())[1:])})"
        for name, signature in hooks.items()
    }
    told = re.findall(r"^\| `(on_\w+\(.*?\))` \|", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    assert sorted(told) == sorted(called)


def test_every_variable_of_the_environment_is_told() -> None:
    """Those that people set, and those that programs of ours set for each other."""
    page = (ROOT / "docs/reference/environment.md").read_text()
    told = set(re.findall(r"^\| `(VFIO_USER_\w+)` \|", page, re.MULTILINE))
    rooms = ("userdev", "vfio_user", "vhost_user", "servers", "scripts", "tests", "benchmarks", "avocado_tests", ".ci")
    files = [path for room in rooms for path in (ROOT / room).rglob("*") if path.suffix in (".py", ".sh", "")]
    used = {
        name
        for path in files
        if path.is_file()
        for name in re.findall(
            r"""(?:["' ]|\$\{?)(VFIO_USER_[A-Z_]+)\b(?=["'}=:\]]|$)""", path.read_text(), re.MULTILINE
        )
    }
    assert used - {f"VFIO_USER_{command.name}" for command in Command} == told


CI_SCHEMAS = {
    "# .github/workflows/guests.yml": ["vendor.github-workflows"],
    "# .gitlab-ci.yml": ["vendor.gitlab-ci", "--data-transform", "gitlab-ci"],
}


@for_each(CI_SCHEMAS)
def test_a_ci_file_that_is_shown_keeps_to_its_makers_schema(name: str, tmp_path: Path) -> None:
    import check_jsonschema  # of the extra for linting

    shown = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "docs/how-to/ci.md").read_text(), re.MULTILINE | re.DOTALL)
    (text,) = (each for each in shown if each.startswith(name + "\n"))
    for number, content in enumerate((text, text.replace("script:", "skript:").replace("runs-on:", "run-on:"))):
        (tmp_path / f"{number}.yml").write_text(content)
        options = ["-q", "--builtin-schema", *CI_SCHEMAS[name], str(tmp_path / f"{number}.yml")]
        ran = CliRunner().invoke(check_jsonschema.main, options)
        assert ran.exit_code == number, ran.output


def copied_by_readers() -> Iterator[tuple[str, str]]:
    """Blocks of Python that are run, and what a new project has: (where, text)."""
    for page in sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "how-to").glob("*.md")]):
        for block in re.finditer(r"(<!-- not run: [^\n]+\n+)?```python\n(.*?)```", page.read_text(), re.DOTALL):
            if not block[1]:
                yield f"{page.stem}-{block.start()}", block[2]
    for template in (ROOT / "vfio_user" / "new_project" / "templates").glob("*.py.txt"):
        yield template.name, template.read_text().replace("%%", "")


def test_a_block_of_a_page_has_the_imports_that_it_needs_and_no_others(tmp_path: Path) -> None:
    for where, text in copied_by_readers():
        if not where.endswith(".txt"):
            (tmp_path / f"{where}.py").write_text(text)
    command = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--no-cache",
        "--select",
        "F401,F821",
        str(tmp_path),
    ]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr


def test_what_readers_copy_does_not_write_a_register_byte_by_byte() -> None:
    """`struct.pack_into` fills the place with zeros first: on a BAR those are writes, too."""
    guests = [(where, text) for where, text in copied_by_readers() if "/resource0" in text]
    assert len(guests) >= 3
    assert [where for where, text in guests if "pack_into" in text or "unpack_from" in text] == []
