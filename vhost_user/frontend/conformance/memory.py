"""Memory that is shared, in one piece or in several, and what becomes of it while rings run."""

from __future__ import annotations

from contextlib import closing

from userdev.conformance import Group, Level, Skip
from userdev.counted import counted
from vhost_user.frontend.conformance.bench import SERVED, Bench
from vhost_user.frontend.front_end import FrontEnd
from vhost_user.frontend.memory import PAGE, GuestMemory
from vhost_user.wire import FrontEndRequest, ProtocolFeature
from vhost_user.wire.payloads import Region

TABLE = ("memory/table",)
"""Without this rule nothing is known of other tables: it is how they are tried."""

memory = Group[Bench]("memory", "spec: Front-end message types, SET_MEM_TABLE", needs=SERVED)

R, P = FrontEndRequest, ProtocolFeature

_ELSEWHERE = 1 << 40
"""Bytes between two places of a front-end; a table with the same places may be taken for the same table."""
_ADD = "spec: Front-end message types, ADD_MEM_REG"
_REMOVE = "spec: Front-end message types, REM_MEM_REG"


def _with_slots(bench: Bench, *, regions: int = 1) -> FrontEnd:
    front_end = bench.stranger(regions=regions)
    front_end.negotiate()
    front_end.need(P.CONFIGURE_MEM_SLOTS)
    if (slots := front_end.ask(R.GET_MAX_MEM_SLOTS)) < regions:
        raise Skip(f"the back-end has {counted(slots, 'memory slot')}, and {regions} are needed")
    return front_end


@memory.check("table", needs=("rings/without-protocol-features",))
def table(bench: Bench) -> None:
    """A ring is served in memory that came as a table."""
    front_end = bench.agreed()
    front_end.share_memory(as_table=True)
    bench.serve(bench.running(front_end))


@memory.check("table-of-several", needs=TABLE)
def table_of_several(bench: Bench) -> None:
    """A ring is served whose request is in another region than itself."""
    front_end = bench.stranger(regions=4)
    front_end.negotiate()
    front_end.share_memory(as_table=True)
    _serve_elsewhere(bench, front_end)


@memory.check("table-replaced", needs=TABLE)
def table_replaced(bench: Bench) -> None:
    """A table takes the place of the one before, which had other memory at the guest's addresses."""
    front_end = bench.agreed()
    with closing(GuestMemory(front_end.memory.size)) as other:
        before = tuple(region._replace(user_address=region.user_address - _ELSEWHERE) for region in other.regions)
        front_end.do(R.SET_MEM_TABLE, before, [other.fd])
        front_end.share_memory(as_table=True)
        bench.serve(bench.running(front_end))


@memory.check("slots", rule=_ADD)
def slots(bench: Bench) -> None:
    """A ring is served in memory that came region by region."""
    front_end = _with_slots(bench, regions=4)
    front_end.share_memory()
    _serve_elsewhere(bench, front_end)


@memory.check("slot-gone", rule=_REMOVE)
def slot_gone(bench: Bench) -> None:
    """Regions are taken back, whatever mmap offset is said, and may come again."""
    front_end = _with_slots(bench, regions=2)
    front_end.share_memory()
    for region in front_end.memory.regions:
        elsewhere = region._replace(mmap_offset=PAGE)
        bench.accepted(front_end, lambda said=elsewhere: front_end.tell(R.REM_MEM_REG, said), "REM_MEM_REG")  # type: ignore[misc]
    front_end.share_memory()
    bench.serve(bench.running(front_end))


@memory.check("slot-gone-with-descriptor", level=Level.OPEN, rule=_REMOVE)
def slot_gone_with_descriptor(bench: Bench) -> None:
    """A descriptor with REM_MEM_REG is accepted, as libblkio sends it."""
    front_end = _with_slots(bench)
    front_end.share_memory()
    region = front_end.memory.regions[0]
    bench.accepted(front_end, lambda: front_end.tell(R.REM_MEM_REG, region, [front_end.memory.fd]), "REM_MEM_REG")


@memory.check("slot-unknown", level=Level.OPEN, rule=_REMOVE)
def slot_unknown(bench: Bench) -> None:
    """A region that is not there is not taken back: that is refused, or ends the connection."""
    front_end = _with_slots(bench)
    front_end.share_memory()
    other = Region(1 << 40, PAGE, 1 << 46, 0)
    bench.refused(front_end, lambda: front_end.tell(R.REM_MEM_REG, other), "REM_MEM_REG of memory that is not there")


@memory.check("offset-on-no-page", level=Level.OPEN, needs=TABLE, rule="spec: Memory region description, mmap offset")
def offset_on_no_page(bench: Bench) -> None:
    """A region may begin anywhere in its file."""
    front_end = bench.agreed()
    whole = front_end.memory.regions[0]
    part = whole._replace(guest_address=0x200, size=whole.size - 0x200, user_address=whole.user_address + 0x200)
    part = part._replace(mmap_offset=0x200)
    said = lambda: front_end.tell(R.SET_MEM_TABLE, (part,), [front_end.memory.fd])  # noqa: E731
    bench.accepted(front_end, said, "a region at 0x200 of its file")
    bench.serve(bench.running(front_end))


@memory.check("region-without-memory", level=Level.OPEN, needs=TABLE, rule="spec: Memory region description, size")
def region_of_nothing(bench: Bench) -> None:
    """A region of 0 bytes is refused, or ends the connection."""
    front_end = bench.agreed()
    nothing = Region(0, 0, front_end.memory.regions[0].user_address, 0)
    said = lambda: front_end.tell(R.SET_MEM_TABLE, (nothing,), [front_end.memory.fd])  # noqa: E731
    bench.refused(front_end, said, "a region of 0 bytes")


@memory.check(
    "again-while-running", needs=TABLE, rule="spec: Ring states, configuration aspects that change on the fly"
)
def again_while_running(bench: Bench) -> None:
    """A ring is served on when the table comes again, as it does when QEMU plugs memory."""
    front_end = bench.agreed()
    front_end.share_memory(as_table=True)
    queue = bench.running(front_end)
    bench.serve(queue, 2)
    front_end.share_memory(as_table=True)
    bench.serve(queue, 2)


@memory.check("over-a-border", level=Level.OPEN, rule="spec: Memory access")
def over_a_border(bench: Bench) -> None:
    """A buffer that lies in two regions, one behind the other, is one."""
    front_end = bench.stranger(regions=2)
    front_end.negotiate()
    front_end.share_memory()
    queue = bench.running(front_end)
    size = sum(buffer if isinstance(buffer, int) else len(buffer) for buffer in bench.device.request)
    if size < 2:
        raise Skip("the device's request is of one byte")
    bench.fill_to(front_end, front_end.memory.regions[1].guest_address - size // 2)
    bench.serve(queue)


def _serve_elsewhere(bench: Bench, front_end: FrontEnd) -> None:
    queue = bench.running(front_end)
    bench.fill_to(front_end, front_end.memory.regions[-1].guest_address)
    bench.serve(queue)
