"""`vfio-user serve` and an author's mistakes: each is told in words, with the file and the line, and what to do."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cases import for_each, for_each_row
from vfio_user.cli import main

HEAD = """\
from typing import Annotated
from vfio_user import Bar, ExtraRegion, MsiX, PciDevice, PciIds, PciExpress, VendorSpecific
from vfio_user import memory, register, state, stored_register

IDS = PciIds(1, 2)
"""
GOOD = (
    HEAD
    + '''
class Nic(PciDevice):
    """A card."""

    ids = IDS
'''
)

Serve = Callable[..., str]


@contextmanager
def serving(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Serve]:
    """Serve a device of this folder, which has to be refused; what is said."""
    monkeypatch.chdir(folder)
    monkeypatch.delenv("VFIO_USER_TRACEBACK", raising=False)
    before, modules = list(sys.path), set(sys.modules)

    def run(name: str, *options: str, status: int = 2) -> str:
        words = ["vfio-user", "serve", name, *(options or ("--socket-path", str(folder / "socket")))]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        assert ended.value.code == status, said
        return said.err if status else said.out

    yield run
    sys.path[:] = before
    for added in set(sys.modules) - modules:
        if str(getattr(sys.modules[added], "__file__", None) or "").startswith(str(folder)):
            del sys.modules[added]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Serve]:
    """The same of a test's folder."""
    with serving(tmp_path, monkeypatch, capsys) as run:
        yield run


MISTAKES: dict[str, tuple[int, str, str]] = {
    "a BAR that is no power of two": (0, "BAR 0: size 0xbb8", "    bars = (Bar(0, size=3000),)"),
    "no ids": (0, "nowhere who it is: ids = PciIds", "    del ids"),
    "an overlap": (0, "one and other overlap at 0x2 of BAR 0", """
        one: int = stored_register(bar=0, offset=0, width=4)
        other: int = stored_register(bar=0, offset=2, width=4)
    """),
    "a BAR of 64 bits at the end": (0, "64-bit BAR needs the next", "    bars = (Bar(5, 4096, bits=64),)"),
    "mappable memory that is no page": (1, "whole pages", "    ram: memoryview = memory(256, bar=0, mmap=True)"),
    "bars that are none": (0, "D.bars is 5, and no tuple: write bars", "    bars = 5"),
    "a capability without its tuple": (0, "D.capabilities is PciExpress.*no tuple", "    capabilities = PciExpress()"),
    "a capability twice": (0, "is there twice: PciExpress", "    capabilities = (PciExpress(), PciExpress())"),
    "a register beyond its BAR": (0, "far reaches to 0x1004", """
        bars = (Bar(0, size=4096),)
        far: int = stored_register(bar=0, offset=4096, width=4)
    """),
    "a region that there is not": (0, "region that there is not", "    ram: memoryview = memory(16, bar=9)"),
    "regions with a gap": (0, "without gaps", "    extra_regions = (ExtraRegion(10, 4096),)"),
    "a register of 3 bytes": (1, "not 3", "    r: int = stored_register(bar=0, offset=0, width=3)"),
    "too many vectors": (1, "2048", "    interrupts = MsiX(4096)"),
    "no BAR for the vectors": (0, "no BAR is free", """
        bars = tuple(Bar(index, 4096) for index in range(6))
        interrupts = MsiX(1)
    """),
    "ids that do not fit": (1, "0x11170 does not fit", "    ids = PciIds(70000, 2)"),
    "capabilities that do not fit": (0, "VendorSpecific.*does not fit", """
        capabilities = tuple(VendorSpecific(bytes(60)) for _ in range(4))
    """),
    "a register with the name of all devices'": (2, "D.digest is declared", """

        digest: int = stored_register(bar=0, offset=0, width=4)
    """),
    "a reader with a value": (3, "reader of r", """
        @register(bar=0, offset=0, width=4)
        def r(self, value: int) -> None: pass
        @r.reader
        def _(self, value: int) -> int: return 0
    """),
    "a mistake in the body": (1, "NameError: name 'nothing'", "    total: int = state(nothing)"),
    "a constructor that fails": (3, "ZeroDivisionError", """
        def __init__(self) -> None:
            super().__init__()
            self.ratio = 1 / 0
    """),
    "a constructor that fails in Python's library": (3, "JSONDecodeError", """
        def __init__(self) -> None:
            super().__init__()
            __import__("json").loads("{")
    """),
    "a constructor that ends the program": (2, "SystemExit", """
        def __init__(self) -> None:
            raise SystemExit("bye")
    """),
    "a constructor that forgets its base's": (0, "does not call super", """
        def __init__(self) -> None:
            self.ratio = 1
    """),
    "state that cannot be saved": (1, "D.seen", "    seen: object = state(set())"),
    "an option without Annotated": (1, "D.limit", """
        def __init__(self, *, limit: int = 1) -> None: super().__init__()
    """),
    "an option whose annotation cannot be read": (1, "D.__init__ cannot be read: name 'Limit'", """
        def __init__(self, *, limit: "Annotated[Limit, 'how many']" = 1) -> None: super().__init__()
    """),
    "an option of serve's own": (0, "fd", """
        def __init__(self, *, fd: Annotated[int, "which"] = 1) -> None: super().__init__()
    """),
    "an option whose type refuses its text": (0, "limit", """
        def __init__(self, *, limit: Annotated[int, "which"] = 1) -> None: super().__init__()
    """),
}  # fmt: skip


@for_each_row(MISTAKES)
def test_a_mistake_in_a_class_is_told_to_its_author(
    line: int,
    words: str,
    body: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = body.removeprefix("\n") if "\n" in body else body
    text = f"{HEAD}class D(PciDevice):\n    ids = IDS\n{textwrap.indent(textwrap.dedent(body), '    ')}\n"
    (tmp_path / "nic.py").write_text(text)
    with serving(tmp_path, monkeypatch, capsys) as serve:
        said = serve("nic:D", *(("--limit", "x", "--socket-path", "s") if "text" in words or words == "limit" else ()))
    assert_told(said, words)
    if words not in ("fd", "limit"):
        assert f"{tmp_path / 'nic.py'}:" in said
    assert "ValueError" not in said  # what is ours to say needs no type of Python's
    if line:
        assert f"nic.py:{HEAD.count(chr(10)) + 2 + line}" in said


def assert_told(said: str, words: str) -> None:
    import re

    assert said.startswith("error: ")
    assert re.search(words, said), said
    assert "defect of vfio-user" not in said
    assert "Traceback" not in said


MODULES: dict[str, tuple[str, str]] = {
    "a syntax error": (GOOD + "class Other(:\n", r"nic\.py:11(.|\n)*class Other\(:"),
    "an import of nothing": (GOOD + "import nothing_of_that_name\n", r"nothing_of_that_name.*nic\.py:11"),
    "an import of nothing from something": (GOOD + "from json import nothing\n", r"nothing.*nic\.py:11"),
    "a failure": (GOOD + "1 / 0\n", r"ZeroDivisionError.*nic\.py:11"),
    "a failure further down": (GOOD + "def f():\n    return [][0]\nf()\n", r"IndexError.*nic\.py:12, in f"),
    "the end of the program": (GOOD + "import sys\nsys.exit(3)\n", r"SystemExit\(3\).*nic\.py:12(.|\n)*__main__"),
    "bytes that are no text": (GOOD + "x = '\udcff'\n", r"nic\.py"),
    "a byte of zero": (GOOD + "x = '\0'\n", r"'.*nic.*:Nic' cannot be loaded: [^(]*null bytes(?!.*None)"),
    "an import of a file with a byte of zero": (GOOD + "import nul\n", r"null bytes.*nic\.py:11"),
    "a class of another name": (GOOD.replace("Nic", "Card"), r"no 'Nic'(.|\n)*its devices are: Card"),
    "something that is no device": (HEAD + "Nic = 5\n", r"no device(.|\n)*none"),
    "a device of another protocol": (
        "from vhost_user.device import VhostDevice\nclass Nic(VhostDevice, abstract=True): ...\n",
        r"vhost-user serve .*vhost-user:",
    ),
    "what every device is": (HEAD + "Nic = PciDevice\n", r"no device"),
}


@for_each(MODULES, ["nic:Nic", "./nic.py:Nic", "{folder}/nic.py:Nic"])
def test_a_mistake_in_a_module_is_told_to_its_author(
    mistake: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text, words = MODULES[mistake]
    (tmp_path / "nul.py").write_bytes(b"\0")
    (tmp_path / "nic.py").write_bytes(text.encode(errors="surrogateescape"))
    with serving(tmp_path, monkeypatch, capsys) as serve:
        assert_told(serve(name.format(folder=tmp_path)), words)


NAMES = {
    "nobody": r"no vfio-user device 'nobody'(.|\n)*edu",
    "vfio-user-nobody": r"no vfio-user device 'vfio-user-nobody'",
    "nobody:Nic": r"no module 'nobody'",
    "nic.deeper:Nic": r"nic\.deeper|no module",
    "./nobody.py:Nic": r"no such file",
    "./nic:Nic": r"ends in \.py",
    "not-a-name:Nic": r"no module's name",
    ":Nic": r"no module's name",
    "nic:": r"has no ''",
    "nic:No.Such": r"has no 'No\.Such'",
}


@for_each_row(NAMES.items())
def test_a_name_that_means_nothing_is_told(
    name: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "nic.py").write_text(GOOD)
    with serving(tmp_path, monkeypatch, capsys) as serve:
        assert_told(serve(name), words)


@pytest.mark.parametrize("content", ["{", "[]", "\udcff"])
def test_a_description_that_is_none_is_told(content: str, tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "nic.py").write_text(GOOD)
    (tmp_path / "nic.json").write_bytes(content.encode(errors="surrogateescape"))
    assert_told(serve("nic:Nic", "--print-capabilities"), r"nic\.json")


def test_a_description_is_beside_the_module(tmp_path: Path, serve: Serve) -> None:
    (tmp_path / "nic.py").write_text(GOOD)
    assert json.loads(serve("nic:Nic", "--print-capabilities", status=0))["description"] == "A card."
    (tmp_path / "nic.json").write_text('{"type": "pci"}')
    assert json.loads(serve("nic:Nic", "--print-capabilities", status=0)) == {"type": "pci"}


@pytest.mark.parametrize("program", ["vfio-user", "python"])
@pytest.mark.parametrize("name", ["mymodule:Nic", "./mymodule.py:Nic", "{folder}/mymodule.py:Nic", "json.py:Nic"])
@pytest.mark.usefixtures("plain_starts")
def test_a_device_is_found_in_the_current_folder_with_the_modules_beside_it(
    name: str, program: str, tmp_path: Path
) -> None:
    """Whichever way the command is started; a file may have the name of a module that is there already."""
    folder = tmp_path if name != "json.py:Nic" else tmp_path / "apart"  # python -m puts this folder before all others
    folder.mkdir(exist_ok=True)
    text = "import beside_it\n" + GOOD
    for file in ("mymodule.py", "json.py"):
        (folder / file).write_text(text)
    (folder / "beside_it.py").write_text("")
    argv = {
        "vfio-user": [str(Path(sys.executable).parent / "vfio-user")],
        "python": [sys.executable, "-m", "vfio_user"],
    }
    name = name.format(folder=tmp_path).replace("json.py", "apart/json.py")
    if name != "apart/json.py:Nic":
        (folder / "json.py").unlink()
    words = [*argv[program], "serve", name, "--print-capabilities"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["description"] == "A card."
