"""A new server in an old one's place: it is taken only if what the client knows of the regions is still so."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from tests.interposer_bench import Bench, request
from userdev.relay.loop import Task
from userdev.transport import close_all
from vfio_user.interposer.errors import IncompatibleServer
from vfio_user.interposer.restore import restore
from vfio_user.testing import memory_file
from vfio_user.wire import CURRENT, Command, Message
from vfio_user.wire import layouts as at
from vfio_user.wire.constants import RegionFlags
from vfio_user.wire.region_info import RegionDescription, encode_region_info

SIZE = 0x3000
INDEX = 1
KNOWN = RegionDescription(INDEX, SIZE, RegionFlags.READ | RegionFlags.WRITE | RegionFlags.MMAP, sparse=((0, 0x1000),))
WHOLE = replace(KNOWN, sparse=None)
"""Without capabilities: one answer has all of it."""
Region = Callable[[Message], Message]


def region(told: RegionDescription, fd: int | None) -> Region:
    """A server's answer to GET_REGION_INFO: its descriptor comes with a complete one."""

    def answer(asked: Message) -> Message:
        payload, complete = encode_region_info(told, at.REGION_INFO.unpack(asked.payload).argsz)
        return replace(asked.reply(payload), fds=[fd] if fd is not None and complete else [])

    return answer


def cut(asked: Message) -> Message:
    return asked.reply(region(WHOLE, None)(asked).payload[:8])


def asking(index: int, room: int) -> bytes:
    return at.REGION_INFO.pack(room, 0, index, 0, 0, 0)


def restored(known: Region, now: Region) -> str:
    """What is wrong with a new server that answers so after one that answered otherwise; "": nothing.

    There is another region before, of which nothing can be mapped.
    """
    version = at.VERSION.pack(0, 0, tail=b"{}\0")
    small = region(replace(WHOLE, index=0), None)
    with Bench() as bench:
        bench.negotiate()
        for index, answer in ((0, small), (INDEX, known)):
            bench.client.send(request(Command.GET_REGION_INFO, asking(index, 4096)))
            bench.server.send(answer(bench.server.receive()))
            close_all(bench.client.receive().fds)
        task = Task(restore(bench.session))
        while not task.done:
            if (asked := bench.server.next()) is None:
                bench.loop.turn(0.02)
            elif asked.command == CURRENT.number(Command.VERSION):
                bench.server.send(asked.reply(version))
            else:
                info = at.REGION_INFO.unpack(asked.payload)
                assert asked.payload == asking(info.region, info.argsz)
                bench.server.send((now if info.region else small)(asked))
        try:
            task.result()
        except IncompatibleServer as error:
            return str(error)
        return ""


def test_a_new_server_is_taken_if_its_regions_are_what_the_client_knows() -> None:
    with ExitStack() as until:
        mine, other = memory_file(SIZE), memory_file(SIZE)
        until.callback(close_all, [mine, other])
        cases: dict[str, tuple[Region, Region, str]] = {
            "the same file": (region(WHOLE, mine), region(WHOLE, mine), ""),
            "the same file, told where there is room": (region(KNOWN, mine), region(KNOWN, mine), ""),
            "another file": (region(WHOLE, mine), region(WHOLE, other), "mapped"),
            "another file, told where there is room": (region(KNOWN, mine), region(KNOWN, other), "mapped"),
            "no file": (region(WHOLE, mine), region(WHOLE, None), "mapped"),
            "no file, where there is room": (region(KNOWN, mine), region(KNOWN, None), "mapped"),
            "nobody has asked for a file": (region(WHOLE, None), region(WHOLE, mine), ""),
            "another size": (region(WHOLE, None), region(replace(WHOLE, size=SIZE + 1), None), f"{SIZE + 1:#x}"),
            "not writable": (region(WHOLE, None), region(replace(WHOLE, flags=RegionFlags.READ), None), "flags"),
            "capabilities more": (region(WHOLE, mine), region(KNOWN, mine), ""),
            "no answer that is one": (region(WHOLE, None), cut, "understood"),
        }
        for name, (known, now, said) in cases.items():
            found = restored(known, now)
            assert bool(found) == bool(said), name
            assert said in found, name
