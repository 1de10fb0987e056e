"""Mistakes in a device class are refused when it, or the device, is made: with the class, the name and the line."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

from tests.cases import for_each, for_each_row
from userdev.declare.class_check import framework_names
from userdev.errors import DeclarationError
from vfio_user import (
    PciDevice,
    PciIds,
    stored_register,
)
from vfio_user.client import Client
from vfio_user.server import Server
from vfio_user.wire.constants import MigrationState

HEAD = """\
import functools
from enum import Enum
from typing import Annotated, Any
from vfio_user import *
from vfio_user import PciDevice, PciIds, memory, register, state, stored_register

class Base(PciDevice):
    ids = PciIds(1, 2)

    @register(bar=0, offset=0, width=4)
    def ring(self, value: int) -> None:
        pass

class D(Base):
"""
FIRST = HEAD.count("\n") + 1
"""The line of the body's first."""


def make(body: str, path: Path) -> None:
    """Run a module whose class D has this body."""
    file = path / "nic.py"
    file.write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    "))
    exec(compile(file.read_text(), file, "exec"), {"__name__": "nic"})


AUTHORS_HALF = (
    *("config", "close", "digest", "identity", "storages", "dma", "interrupts", "rom", "ids", "bars", "defer"),
    *("call_soon", "bus_master", "on_reset", "save_extra", "_function", "_source"),
)
"""What an author uses, overrides or says."""

FREE_NAMES = (
    *("reset", "resume", "start", "stop", "status", "link", "name", "plan", "attach", "detach", "regions", "irqs"),
    *("readers", "writers", "fits", "migration", "stopped", "may_run", "hold_still", "save_state", "load_state"),
    *("check_state", "digests", "memories", "function", "region_read", "client_gone", "constructed", "_layout"),
)
"""What a register may be called, though something of a device's session, reset, migration or end is called so too."""


def test_a_register_may_be_called_as_what_serves_the_device(tmp_path: Path) -> None:
    body: dict[str, Any] = {
        name: stored_register(bar=0, offset=4 * place, width=4) for place, name in enumerate(FREE_NAMES)
    }
    named = type("Named", (PciDevice,), {"ids": PciIds(1, 2), **body})
    devices: list[Any] = [named(), named()]
    states: list[bytes] = []
    for device in devices:
        with Server(device, str(tmp_path / "socket")) as server, Client.connect(str(server.listener.address)) as client:
            if states:
                client.load_state(states[0])
                client.set_migration_state(MigrationState.RUNNING)
                assert [client.load(0, 4 * place, 4) for place in range(len(FREE_NAMES))] == [5] * len(FREE_NAMES)
            client.reset()
            for place in range(len(FREE_NAMES)):
                client.store(0, 4 * place, 4, 5)
            states.append(client.save())
        assert {getattr(device, name) for name in FREE_NAMES} == {5}
        device.close()
    assert states[0] == states[1]


DECLARED = {
    "register": "@register(bar=0, offset=4, width=4)\ndef {}(self) -> int: return 0",
    "stored register": "\n{}: int = stored_register(bar=0, offset=4, width=4)",
    "state": "\n{}: int = state(0)",
    "memory": "\n{}: memoryview = memory(64)",
}


@for_each(DECLARED, AUTHORS_HALF)
def test_nothing_declared_takes_a_name_of_the_frameworks(kind: str, name: str, tmp_path: Path) -> None:
    with pytest.raises(DeclarationError) as refused:
        make(DECLARED[kind].format(name), tmp_path)
    assert f"D.{name} " in str(refused.value)
    assert "nic.py:" in str(refused.value)


def test_every_name_of_a_device_is_known_to_be_the_frameworks() -> None:
    class Plain(PciDevice):
        ids = PciIds(1, 2)

    names = {name for name in vars(Plain()) if not name.startswith("__")}
    assert names <= framework_names(PciDevice)


WRONG: dict[str, tuple[int, str, str]] = {
    "a reader with a value": (3, "reader of copy", """
        @register(bar=0, offset=4, width=4)
        def copy(self, value: int) -> None: pass
        @copy.reader
        def _(self, value: int) -> int: return 1
    """),
    "a writer without a value": (3, "writer of copy", """
        @register(bar=0, offset=4, width=4)
        def copy(self) -> int: return 1
        @copy.writer
        def _(self) -> None: pass
    """),
    "a reader of an array without index": (3, "reader of copy", """
        @register(bar=0, offset=4, width=4, count=2)
        def copy(self, index: int, value: int) -> None: pass
        @copy.reader
        def _(self) -> int: return 1
    """),
    "a register that takes two values": (1, "writer of copy", """
        @register(bar=0, offset=4, width=4)
        def copy(self, one: int, two: int) -> None: pass
    """),
    "a register that takes nothing": (1, "writer of copy", """
        @register(bar=0, offset=4, width=4)
        def copy() -> None: pass
    """),
    "a register without a name": (1, "name of its own", """
        @register(bar=0, offset=4, width=4)
        def _(self, value: int) -> None: pass
    """),
    "a register of a coroutine function": (1, "D.copy: is a coroutine function", """
        @register(bar=0, offset=4, width=4)
        async def copy(self, value: int) -> None: pass
    """),
    "a reader that yields": (3, "D._: is a generator", """
        @register(bar=0, offset=4, width=4)
        def copy(self, value: int) -> None: pass
        @copy.reader
        def _(self) -> int: yield 1
    """),
    "a register of a static method": (1, "D.copy: is a staticmethod", """
        @register(bar=0, offset=4, width=4)
        @staticmethod
        def copy(value: int) -> None: pass
    """),
    "a hook that is a coroutine function": (2, "D.on_reset is a coroutine function", """

        async def on_reset(self, kind: ResetKind) -> None: pass
    """),
    "a static hook that yields": (1, "D.on_resume is an asynchronous generator", """
        @staticmethod
        async def on_resume(*_: object) -> None: yield
    """),
    "a second reader": (3, "has a reader already, the function that takes .self", """
        @register(bar=0, offset=4, width=4)
        def copy(self) -> int: return 1
        @copy.reader
        def _(self) -> int: return 2
    """),
    "a second writer": (3, "has a writer already", """
        @register(bar=0, offset=4, width=4)
        def copy(self, value: int) -> None: pass
        @copy.writer
        def _(self, value: int) -> None: pass
    """),
    "a reader for a register of the base": (1, "belongs to Base", """
        @Base.ring.reader
        def _(self) -> int: return 1
    """),
    "two registers of one name": (1, "D.copy is declared, and is not", """
        @register(bar=0, offset=4, width=4)
        def copy(self) -> int: return 1
        @register(bar=0, offset=8, width=4)
        def copy(self) -> int: return 1
    """),
    "two states of one name": (1, "D has a declaration that something else of its name replaces", """
        total: int = state(0)
        total: int = state(1)
    """),
    "a register under another name than its function's": (2, "D.handler is declared, and is not", """
        def handler(self) -> int: return 1
        copy = register(bar=0, offset=4, width=4)(handler)
        del handler
    """),
    "state with two names": (1, "second name of one", """
        one = other = state(0)
    """),
    "interrupts under another name": (1, "D.interupts is MsiX.*nobody would look at", """
        interupts = MsiX(vectors=1)
    """),
    "several interrupts under another name": (1, "D.irqs is .*nobody would look at", """
        irqs = (IntX(), MsiX(vectors=1))
    """),
    "BARs under another name": (1, "D.bar is .*nobody would look at", """
        bar = (Bar(0, size=4096),)
    """),
    "a hook like none that exists": (1, r"D.on_xyzzy is no hook, and nobody would call it \(", """
        def on_xyzzy(self) -> None: pass
    """),
    "a hook that does not exist": (2, "D.on_dma_mapped is no hook.*: on_dma_map is one", """

        def on_dma_mapped(self, region: object) -> None: pass
    """),
    "a hook with other arguments": (2, r"D.on_reset takes \(self\).* on_reset\(self, kind", """

        def on_reset(self) -> None: pass
    """),
    "a method that replaces another": (2, r"D.close takes \(self, channel.*has close\(self\)", """

        def close(self, channel: int) -> None: pass
    """),
    "a value in a method's place": (1, "D.digest takes the place", """
        digest = 5
    """),
    "a property in a method's place": (2, "D.close takes the place", """
        @property
        def close(self) -> int: return 0
    """),
    "an attribute that the instance hides": (1, "D.config is in the class", """
        config = {"speed": 10}
    """),
    "a method that the instance hides": (2, "D.dma is in the class", """

        def dma(self) -> None: pass
    """),
    "an option without Annotated": (2, r"D.limit is a keyword argument.*Annotated\[int, .*\] = 3", """

        def __init__(self, *, limit: int = 3) -> None: super().__init__()
    """),
    "an option without default": (2, r"D.limit is an option without a default.*Annotated\[int, .*\] = 0", """

        def __init__(self, *, limit: Annotated[int, "how many"]) -> None: super().__init__()
    """),
    "an option that no text makes": (2, r"D.limit is an option of type list.*Annotated\[str, .*\] = ''", """

        def __init__(self, *, limit: Annotated[list[int], "how many"] = ()) -> None: super().__init__()
    """),
    "a default that cannot be saved": (2, "D.seen has a default that could not be saved: it is set", """

        seen: Any = state(set())
    """),
    "a default with a member that cannot be saved": (2, r"D.seen has a default.*it\['a'\] is object", """

        seen: Any = state({"a": object()})
    """),
    "a default that does not fit its register": (2, "D.seen has a default.*of 16 bits", """

        seen: int = stored_register(bar=0, offset=4, width=2, default=1 << 16)
    """),
    "memory that a client cannot map": (2, "D.ram makes no sense: .*whole pages", """

        ram: memoryview = memory(256, bar=0, mmap=True)
    """),
    "memory without a byte": (2, "D.ram makes no sense: .*a byte at least", """

        ram: memoryview = memory(0)
    """),
    "memory before the start": (2, "D.ram makes no sense: .*a byte at least", """

        ram: memoryview = memory(16, bar=0, offset=-1)
    """),
    "memory of some text": (2, "D.ram makes no sense: .*a byte at least", """

        ram: memoryview = memory("64 KiB")
    """),
    "a register of 3 bytes": (2, "D.speed makes no sense: .*not 3", """

        @register(bar=0, offset=4, width=3)
        def speed(self) -> int: return 1
    """),
    "a stored register of no width": (2, "D.speed makes no sense: .*not None", """

        speed: int = stored_register(bar=0, offset=4, width=None)
    """),
    "registers over each other": (2, "D.lanes makes no sense: .*stride 2", """

        @register(bar=0, offset=4, width=4, count=2, stride=2)
        def lanes(self, index: int) -> int: return 1
    """),
    "a register in no BAR": (2, "D.speed makes no sense: .*BAR '0'", """

        speed: int = stored_register(bar="0", offset=4, width=4)
    """),
    "state of no bits": (2, "D.total makes no sense: bits", """

        total: int = state(0, bits=0)
    """),
    "numbers nowhere in lists": (2, "D.total makes no sense: depth", """

        total: list[int] = state([], bits=1, depth="list")
    """),
    "a check of a value alone": (2, "D.total makes no sense: check is called with the device", """

        total: int = state(0, check=lambda value: value < 5)
    """),
    "a register without parentheses": (2, "D.speed.*@register.*parentheses", """

        @register
        def speed(self) -> int: return 1
    """),
    "a register by position": (2, "register .*by position", """

        @register(0, 4, 4)
        def speed(self) -> int: return 1
    """),
    "a stored register by position": (2, "stored_register .*by position", """

        speed: int = stored_register(0, 4, 4)
    """),
    **{
        f"a {kind} above a register": (3, f"D.speed .*@{kind.removeprefix('functools.')}", f"""

        @{kind}
        @register(bar=0, offset=4, width=4)
        def speed(self) -> int: return 1
    """)
        for kind in ("property", "staticmethod", "classmethod", "functools.cached_property")
    },
    "a property that is to be a register": (2, "property", """

        @register(bar=0, offset=4, width=4)
        @property
        def speed(self) -> int: return 1
    """),
    **{
        f"{word!r} of {what} that is neither True nor False": (line, f"D.copy .*{word}.*'no'", f"""
        {body}
    """)
        for what, word, line, body in (
            ("state", "keep", 1, 'copy: int = state(0, keep="no")'),
            ("a stored register", "keep", 1, 'copy: int = stored_register(bar=0, offset=4, width=4, keep="no")'),
            ("memory", "keep", 1, 'copy: memoryview = memory(16, keep="no")'),
            ("memory", "mmap", 1, 'copy: memoryview = memory(4096, bar=1, mmap="no")'),
            ("a register", "merge", 1, '@register(bar=0, offset=4, width=4, merge="no")\n        def copy(self): ...'),
        )
    },
    "state by the name of what declares it": (2, "D.state.*hides state", """
        state: int = state(0)
        more: int = state(1)
    """),
    "memory by the name of what declares it": (2, "D.memory.*hides memory", """
        memory: memoryview = memory(16)
        more: memoryview = memory(16)
    """),
    "a register by the name of what declares it": (3, "D.register.*hides register", """
        @register(bar=0, offset=4, width=4)
        def register(self) -> int: return 1
        @register(bar=0, offset=8, width=4)
        def more(self) -> int: return 1
    """),
    "a register of the base that is called": (1, "D.ring, declared at .*, is no function", """
        rings = Base.ring()
    """),
    "the other half of a register, which is not said": (3, "D.copy.*@copy.reader", """
        @register(bar=0, offset=4, width=4)
        def copy(self, value: int) -> None: pass
        @copy
        def _(self) -> int: return 1
    """),
    "a property that is to complete one": (5, "property", """

        @register(bar=0, offset=4, width=4)
        def speed(self, value: int) -> None: pass

        @speed.reader
        @property
        def _(self) -> int: return 1
    """),
}  # fmt: skip


@for_each_row(WRONG.values(), ids=WRONG)
def test_a_mistake_is_refused_when_the_class_is_made(line: int, words: str, body: str, tmp_path: Path) -> None:
    """Its line is told: `line` of the body, 0 for the class itself."""
    with pytest.raises(DeclarationError) as refused:
        make(body.removeprefix("\n"), tmp_path)
    assert all(refused.value.__notes__)
    assert re.search(f"(?s){words}", " ".join([str(refused.value), *refused.value.__notes__]))
    assert str(refused.value).endswith(f"({tmp_path / 'nic.py'}:{FIRST + line - 1})")


RIGHT = {
    "functions of its own": """
        def begin(self) -> None: pass
        def _on_timer(self) -> None: pass
    """,
    "what replaces a function and takes the same": """
        def identity(self) -> dict[str, Any]: return {**super().identity(), "speed": 1}
        def close(self, *more: int) -> None: super().close()
        def on_reset(self, kind: object, why: str = "") -> None: pass
    """,
    "what replaces a function and is none": """
        @classmethod
        def digest(cls) -> bytes: return b""
        close = functools.partialmethod(Base.close)
    """,
    "a register of the base again": """
        @register(bar=0, offset=0, width=4)
        def ring(self) -> int: return 1
    """,
    "a reader with the register's name": """
        @register(bar=0, offset=4, width=4)
        def copy(self, value: int) -> None: pass
        @copy.reader
        def copy(self) -> int: return 1
    """,
    "registers made in a loop": """
        for _number in range(4):
            locals()[f"lane{_number}"] = stored_register(bar=0, offset=0x10 + 4 * _number, width=4)
    """,
    "arguments that are no options, before the star": """
        def __init__(self, clock: object = None, *, limit: Annotated[int, "how many"] = 3) -> None: super().__init__()
    """,
    "an annotation that is not there yet": """
        def __init__(self, *, limit: "Limit" = 3) -> None: super().__init__()
    """,
}


@for_each(RIGHT.values(), ids=RIGHT)
def test_what_works_is_not_refused(body: str, tmp_path: Path) -> None:
    make(body, tmp_path)
