"""Configuration space, the device's status, and its reset."""

from __future__ import annotations

from typing import Any

from userdev.conformance import CheckFailed, Group, Level, Skip, require
from vhost_user.frontend.conformance.bench import ACKNOWLEDGED, SERVED, Bench
from vhost_user.frontend.errors import Disconnected
from vhost_user.frontend.front_end import FrontEnd
from vhost_user.wire import DeviceStatus, FrontEndRequest, ProtocolFeature
from vhost_user.wire.payloads import MAX_CONFIG, Config

config = Group[Bench](
    "config", "spec: Front-end message types, GET_CONFIG", needs=(*ACKNOWLEDGED, "config/as-long-as-asked")
)
status = Group[Bench]("status", "spec: Front-end message types, SET_STATUS", needs=SERVED)
reset = Group[Bench]("reset", "spec: Front-end message types, RESET_DEVICE", needs=SERVED)

R, P, S = FrontEndRequest, ProtocolFeature, DeviceStatus


def _configured(bench: Bench) -> tuple[FrontEnd, int]:
    """A front-end that may ask for configuration space, and how much of that there is."""
    front_end = bench.agreed()
    front_end.need(P.CONFIG)
    return front_end, bench.config_size


def _get(front_end: FrontEnd, offset: int, size: int) -> Any:
    return front_end.ask(R.GET_CONFIG, Config(offset, size, 0, bytes(size)))


@config.check("as-long-as-asked")
def as_long_as_asked(bench: Bench) -> None:
    """As many bytes come as were asked for."""
    front_end, size = _configured(bench)
    for wanted in {1, size}:
        said = _get(front_end, 0, wanted)
        got = 0 if said is None else len(said.data)
        require(got == wanted, f"{wanted} bytes are asked for, and {got} come")


@config.check("same")
def config_same(bench: Bench) -> None:
    """Configuration space is the same when it is read again, and for the next front-end."""
    front_end, size = _configured(bench)
    first = front_end.read_config(size)
    require(front_end.read_config(size) == first, "it is another when it is read again")
    front_end.close()
    other, _ = _configured(bench)
    require(other.read_config(size) == first, "it is another for the next front-end")


@config.check("from-an-offset", level=Level.OPEN, rule="spec: Virtio device config space, offset")
def from_an_offset(bench: Bench) -> None:
    """A piece of configuration space is what is there."""
    front_end, size = _configured(bench)
    whole = front_end.read_config(size)
    offset = next((at for at in range(1, size) if whole[at:] != whole[: size - at]), size // 2)
    said = _get(front_end, offset, size - offset)
    require(said is not None and said.data == whole[offset:], f"another piece than that from {offset} on comes")


@config.check("beyond-the-end", level=Level.OPEN)
def beyond_the_end(bench: Bench) -> None:
    """More than there is comes too, or as an empty payload, and the connection goes on."""
    front_end, _ = _configured(bench)
    said = _get(front_end, 0, MAX_CONFIG)
    got = 0 if said is None else len(said.data)
    require(got in (0, MAX_CONFIG), f"{MAX_CONFIG} bytes are asked for, and {got} come")
    front_end.settle()


@config.check("read-only", rule="spec: Front-end message types, SET_CONFIG")
def read_only(bench: Bench) -> None:
    """A field that a driver must not write keeps its value."""
    front_end, size = _configured(bench)
    if not bench.device.begins_read_only:
        raise Skip(f"the first field of {bench.device.name} may be written")
    before = front_end.read_config(size)
    wrong = Config(0, 1, 0, bytes((before[0] ^ 0xFF,)))
    try:
        front_end.tell(R.SET_CONFIG, wrong)
        front_end.settle()
    except Disconnected:
        pass
    other, _ = _configured_again(bench, front_end)
    after = other.read_config(size)
    if after != before:
        other.write_config(0, before[:1])
        raise CheckFailed("the first byte of configuration space can be written")


def _configured_again(bench: Bench, front_end: FrontEnd) -> tuple[FrontEnd, int]:
    front_end.close()
    return _configured(bench)


# Status


def _with_status(bench: Bench) -> FrontEnd:
    front_end = bench.ready()
    front_end.need(P.STATUS)
    return front_end


@status.check("kept")
def status_kept(bench: Bench) -> None:
    """The status that was set is the one that is there."""
    front_end = _with_status(bench)
    for bits in (S.ACKNOWLEDGE, S.ACKNOWLEDGE | S.DRIVER, S.ACKNOWLEDGE | S.DRIVER | S.FEATURES_OK):
        front_end.set_status(bits)
        got = front_end.status()
        require(got == bits, f"{int(bits):#x} is set, and {int(got):#x} is there")


@status.check("zero", needs=("status/kept",))
def status_zero(bench: Bench) -> None:
    """Status 0 is a reset: it is there afterwards."""
    front_end = _with_status(bench)
    front_end.set_status(S(0))
    got = front_end.status()
    require(got == 0, f"status {int(got):#x} is there after 0 was set")


@status.check("zero-stops", level=Level.OPEN, needs=("status/kept",), rule="virtio 1.3: Device Reset")
def status_zero_stops(bench: Bench) -> None:
    """Status 0 stops rings."""
    front_end = _with_status(bench)
    queue = bench.running(front_end)
    bench.serve(queue)
    front_end.set_status(S(0))
    bench.put(queue)
    queue.kick()
    bench.quiet(queue, "a ring of a device whose status is 0")


# Reset


@reset.check("stops")
def reset_stops(bench: Bench) -> None:
    """A reset disables rings."""
    front_end = bench.front_end
    front_end.need(P.RESET_DEVICE)
    queue = bench.running()
    bench.serve(queue)
    front_end.do(R.RESET_DEVICE)
    bench.put(queue)
    queue.kick()
    bench.quiet(queue, "a ring of a device that was reset")


@reset.check(
    "starts-again",
    level=Level.REFERENCE,
    needs=("reset/stops",),
    rule="QEMU: memory is not shared again after RESET_DEVICE",
)
def reset_starts_again(bench: Bench) -> None:
    """After a reset, rings that are set up again are served in the memory that was shared before."""
    front_end = bench.front_end
    front_end.need(P.RESET_DEVICE)
    queue = bench.running()
    for _ in range(2):
        bench.serve(queue)
        front_end.reset()
        queue.start()
    bench.serve(queue)
