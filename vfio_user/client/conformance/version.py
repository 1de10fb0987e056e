"""VERSION: the first message, and everything that may be wrong with it."""

from __future__ import annotations

import errno
import json

from userdev.conformance.check import CheckFailed, Group, Level, Skip, require
from vfio_user.client.client import Client
from vfio_user.client.conformance.bench import Bench, closed
from vfio_user.client.conformance.dialects import CURRENT_FAMILY, DRAFT
from vfio_user.client.errors import Disconnected
from vfio_user.client.reading import read_as
from vfio_user.wire import HEADER, NO_REPLY, REPLY, Command, Message
from vfio_user.wire.layouts import DEVICE_INFO, VERSION

version = Group[Bench]("version", "protocol.md 3: VERSION")

_QEMU = (
    b'{"capabilities":{"pgsizes":4096,"max_msg_fds":16,"max_dma_maps":65535,"max_data_xfer_size":1048576,'
    b'"migration":{"max_bitmap_size":268435456,"pgsize":4096},"write_multiple":true}}\0'
)


def _propose(client: Client, data: bytes, *, major: int = 0, minor: int = 0, flags: int = 0) -> Message | None:
    """The reply to VERSION with this data behind the numbers; None where the server closes without one."""
    number = client.dialect.number(Command.VERSION)
    pending = client.channel.expect(1, "VERSION")
    payload = VERSION.pack(major, minor, tail=data)
    client.channel.send_bytes(Message(1, number, flags, payload=payload).encode())
    try:
        return client.wait(pending)
    except Disconnected:
        return None


def _accepted(bench: Bench, data: bytes, what: str, *, minor: int = 0, flags: int = 0) -> Message:
    client = bench.stranger()
    reply = _propose(client, data, minor=minor, flags=flags)
    if reply is None:
        raise CheckFailed(f"the server closes the connection after {what}")
    bench.good(reply, what)
    client.device_info()
    client.close()
    return reply


def _capabilities(reply: Message) -> dict[str, object]:
    try:
        document = json.loads(reply.payload[VERSION.size : -1] or b"{}")
    except (ValueError, RecursionError) as error:
        raise CheckFailed(f"the reply's JSON is malformed: {error}") from None
    found = document.get("capabilities", {}) if isinstance(document, dict) else None
    if not isinstance(found, dict):
        raise CheckFailed("the reply's capabilities are no object")
    return found


@version.check("agreed", rule="spec: VFIO_USER_VERSION, Versioning and Feature Support")
def agreed(bench: Bench) -> None:
    """A proposal is answered with the same major and no higher minor."""
    for minor in (0, 1, 0xFFFF):
        reply = _accepted(bench, b'{"capabilities":{}}\0', f"a proposal of 0.{minor}", minor=minor)
        answer = read_as(VERSION, reply.payload, Command.VERSION.value)
        require(answer.major == 0, f"major {answer.major} answers major 0")
        require(answer.minor <= minor, f"minor {answer.minor} answers minor {minor}")


def _answered(bench: Bench) -> tuple[Message, bytes]:
    """The reply to a proposal that says how many descriptors its sender takes, and its data."""
    key = bench.dialect.fds_capability.encode()
    reply = _accepted(bench, b'{"capabilities":{"' + key + b'":16}}\0', "a proposal")
    return reply, reply.payload[VERSION.size :]


@version.check("reply-has-json", rule="protocol.md 3.5: always send JSON in the reply", level=Level.REFERENCE)
def reply_has_json(bench: Bench) -> None:
    """The reply carries JSON, which the specification does not ask for."""
    require(_answered(bench)[1], "the reply has no JSON")


@version.check("reply-is-json", rule="spec: VFIO_USER_VERSION, version data")
def reply_is_json(bench: Bench) -> None:
    """What the reply carries behind its numbers is JSON with a NUL at its end."""
    reply, data = _answered(bench)
    require(not data or data[-1] == 0, "the reply's JSON does not end with a NUL")
    if data:
        _capabilities(reply)


@version.check("no-unasked-modes", rule="spec: a subset of the capabilities proposed", dialects=CURRENT_FAMILY)
def no_unasked_modes(bench: Bench) -> None:
    """The reply agrees to neither a twin socket nor REGION_WRITE_MULTI where nobody proposed that."""
    said = _capabilities(_accepted(bench, b'{"capabilities":{}}\0', "a proposal without capabilities"))
    twin = said.get("twin_socket")
    agreed = {
        "write_multiple": said.get("write_multiple"),
        "twin_socket": isinstance(twin, dict) and twin.get("supported"),
    }
    unasked = [name for name, value in agreed.items() if value]
    require(not unasked, f"the reply has {', '.join(unasked)}, which nobody proposed")


@version.check("smaller-pages", rule="spec: VFIO_USER_VERSION, migration.pgsize: the smallest is used", dialects=DRAFT)
def smaller_pages(bench: Bench) -> None:
    """A proposal with larger pages of migration than the server's is accepted."""
    for size in (1 << 16, 1 << 21):
        text = f'{{"capabilities":{{"migration":{{"pgsize":{size}}}}}}}\0'
        _accepted(bench, text.encode(), f"a proposal with pages of {size} bytes")


@version.check("fits-qemu", rule="protocol.md 3.4: the size trap", level=Level.REFERENCE, dialects=CURRENT_FAMILY)
def fits_qemu(bench: Bench) -> None:
    """The reply is not longer than QEMU's proposal, which is the room it has."""
    size = _accepted(bench, _QEMU, "QEMU's proposal").size
    room = HEADER.size + VERSION.size + len(_QEMU)
    require(size <= room, f"the reply has {size} bytes and QEMU room for {room}")


@version.check("limits-qemu-takes", rule="protocol.md 3.4", level=Level.REFERENCE, dialects=CURRENT_FAMILY)
def limits_qemu_takes(bench: Bench) -> None:
    """The reply's limits are within those that QEMU enforces."""
    said = _capabilities(_accepted(bench, _QEMU, "QEMU's proposal"))
    for name, limit in (("max_msg_fds", 16), ("max_data_xfer_size", 64 << 20), ("max_dma_maps", 65535)):
        value = said.get(name, 0)
        require(isinstance(value, int) and value <= limit, f"{name} is {value!r}, and QEMU takes at most {limit}")
    pages = said.get("pgsizes", 4096)
    require(isinstance(pages, int) and pages and pages % 4096 == 0, f"pgsizes is {pages!r}, which QEMU does not take")


@version.check("no-unasked-fds", rule="protocol.md 3.4: QEMU refuses descriptors in the reply")
def no_unasked_fds(bench: Bench) -> None:
    """The reply carries no descriptors that nobody asked for."""
    reply = _propose(bench.stranger(), b"{}\0")
    require(reply is not None, "the server closes the connection after a proposal of {}")
    assert reply is not None
    descriptors = len(reply.fds)
    closed(reply)
    require(not descriptors, f"{descriptors} descriptors came with the reply")


@version.check("twin-socket", rule="protocol.md 3.6: Twin socket", dialects=frozenset({"current"}))
def twin_socket(bench: Bench) -> None:
    """A twin socket that is agreed on comes with the reply, and the session works."""
    client = bench.stranger()
    if not client.channel.carries_fds:
        raise Skip("the transport carries no descriptors")
    client.negotiate(twin_socket=True)
    client.device_info()


_TAKEN: tuple[tuple[str, str, bytes, frozenset[str] | None], ...] = (
    ("no-json", "a proposal without JSON", b"", None),
    ("empty-object", "a proposal of {}", b"{}\0", None),
    ("fds-most", "max_msg_fds of 1024", b'{"capabilities":{"max_msg_fds":1024}}\0', CURRENT_FAMILY),
    ("unknown-capability", "an unknown capability", b'{"capabilities":{"x-unknown":{"a":[1,null]}}}\0', None),
    ("unknown-member", "an unknown member beside the capabilities", b'{"x":1,"capabilities":{}}\0', None),
)

for name, what, data, dialects in _TAKEN:

    def _takes(bench: Bench, what: str = what, data: bytes = data) -> None:
        _accepted(bench, data, what)

    rule = "protocol.md 3.5; spec: capabilities are optional"
    version.add(name, f"{what} is accepted", _takes, rule=rule, dialects=dialects)


@version.check("no-reply-flag", rule="protocol.md 2: Reply to No_reply", level=Level.REFERENCE)
def no_reply_flag(bench: Bench) -> None:
    """No_reply is ignored on VERSION: the reply is sent."""
    _accepted(bench, b"{}\0", "VERSION with No_reply", flags=NO_REPLY)


def _object(text: str) -> bytes:
    return b'{"capabilities":' + text.encode() + b"}\0"


_REFUSED: tuple[tuple[str, str, bytes, frozenset[str] | None], ...] = (
    ("json-without-nul", "JSON without its NUL", b'{"capabilities":{}}', None),
    ("malformed-json", "malformed JSON", b'{"capabilities":\0', None),
    ("capabilities-string", "capabilities that are a string", _object('"x"'), None),
    ("capabilities-null", "capabilities that are null", _object("null"), None),
    ("fds-string", "max_msg_fds that is a string", _object('{"max_msg_fds":"8"}'), CURRENT_FAMILY),
    ("fds-negative", "max_msg_fds of -1", _object('{"max_msg_fds":-1}'), CURRENT_FAMILY),
    ("fds-too-many", "max_msg_fds of 1025", _object('{"max_msg_fds":1025}'), CURRENT_FAMILY),
    ("xfer-size-string", "max_data_xfer_size that is a string", _object('{"max_data_xfer_size":"1"}'), CURRENT_FAMILY),
    ("migration-number", "migration that is a number", _object('{"migration":1}'), None),
    ("pgsize-string", "migration.pgsize that is a string", _object('{"migration":{"pgsize":"4096"}}'), None),
)


def _refuses(bench: Bench, what: str, data: bytes, major: int = 0) -> None:
    client = bench.stranger()
    reply = _propose(client, data, major=major)
    if reply is not None:
        bench.refused(reply, (errno.EINVAL,), what)
        bench.ends(client, what)
    bench.alive()


for name, what, data, dialects in _REFUSED:

    def _refused(bench: Bench, what: str = what, data: bytes = data) -> None:
        _refuses(bench, what, data)

    version.add(
        name,
        f"{what} is refused with EINVAL and ends the connection",
        _refused,
        rule="protocol.md 3.5: Errors",
        level=Level.REFERENCE,
        dialects=dialects,
    )


@version.check("major-mismatch", rule="spec: Versioning and Feature Support")
def major_mismatch(bench: Bench) -> None:
    """Another major version is refused and ends the connection."""
    _refuses(bench, "a proposal of 1.0", b'{"capabilities":{}}\0', major=1)


@version.check("short-payload", rule="protocol.md 3.5", level=Level.REFERENCE)
def short_payload(bench: Bench) -> None:
    """VERSION with less than its two numbers is refused and ends the connection."""
    for payload in (b"", bytes(VERSION.size - 1)):
        client = bench.stranger()
        pending = client.channel.expect(1, "VERSION")
        client.channel.send_bytes(Message(1, 1, payload=payload).encode())
        what = f"VERSION with {len(payload)} bytes of payload"
        try:
            bench.refused(client.wait(pending), (errno.EINVAL,), what)
            bench.ends(client, what)
        except Disconnected:
            pass
    bench.alive()


@version.check("must-be-first", rule="protocol.md 3.5", level=Level.REFERENCE)
def must_be_first(bench: Bench) -> None:
    """Another command in the place of VERSION is refused and ends the connection."""
    client = bench.stranger()
    number = bench.dialect.number(Command.GET_INFO)
    pending = client.channel.expect(1, "GET_INFO")
    client.channel.send_bytes(Message(1, number, payload=DEVICE_INFO.pack(16, 0, 0, 0)).encode())
    try:
        bench.refused(client.wait(pending), (errno.EINVAL,), "GET_INFO before VERSION")
        bench.ends(client, "GET_INFO before VERSION")
    except Disconnected:
        pass
    bench.alive()


@version.check("reply-first", rule="protocol.md 3.5", level=Level.REFERENCE)
def reply_first(bench: Bench) -> None:
    """A reply in the place of VERSION ends the connection."""
    client = bench.stranger()
    client.channel.expect(1, "what may answer it")
    client.channel.send_bytes(Message(1, 1, REPLY, payload=VERSION.pack(0, 0)).encode())
    bench.ends(client, "a reply as the first message")
    bench.alive()


@version.check("oversize", rule="protocol.md 3.5", level=Level.REFERENCE)
def oversize(bench: Bench) -> None:
    """VERSION that says it has 4 GiB ends the connection."""
    client = bench.stranger()
    client.channel.expect(1, "what may answer it")
    client.channel.send_bytes(HEADER.pack(1, 1, 0xFFFF_FFFF, 0, 0))
    bench.ends(client, "a size of 4 GiB")
    bench.alive()


@version.check("again", rule="protocol.md 3.5: second VERSION later", level=Level.REFERENCE)
def again(bench: Bench) -> None:
    """A second VERSION is refused with EINVAL and the session goes on."""
    reply = bench.ask(Command.VERSION, VERSION.pack(0, 0, tail=b"{}\0"))
    bench.refused(reply, (errno.EINVAL,), "a second VERSION")
    bench.client.device_info()


@version.check("vanishing-client", rule="protocol.md 3.5: client vanishes before sending")
def vanishing_client(bench: Bench) -> None:
    """Clients that leave before, within and after VERSION leave the server ready."""
    whole = Message(1, 1, payload=VERSION.pack(0, 0, tail=b"{}\0")).encode()
    for size in (0, 1, 15, 16, len(whole) - 1, len(whole)):
        client = bench.stranger()
        if size:
            client.channel.send_bytes(whole[:size])
        client.close()
    bench.alive()
