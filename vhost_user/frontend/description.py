"""What a back-end offers, in words: features and protocol features by name, queues, memory slots, configuration."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from userdev.counted import counted
from userdev.errors import ProtocolError
from vhost_user.frontend.front_end import FrontEnd
from vhost_user.wire import FrontEndRequest, ProtocolFeature, VirtioFeature, check_protocol_features
from vhost_user.wire.features import names_of
from vhost_user.wire.payloads import MAX_CONFIG, Config

R = FrontEndRequest
_V, _P = VirtioFeature, ProtocolFeature

_CONFIG_SIZES = (MAX_CONFIG, 96, 60, 44, 40, 24, 12, 8)
"""Bytes of configuration space that are asked for until some come: QEMU's storage daemon gives none where more is asked
than it has. They are those of the devices that there are, and the most that a message carries."""


@dataclass(frozen=True)
class Description:
    """What a back-end offers. Bits without a name, which are the device's own, are called by their number."""

    features: tuple[str, ...]
    protocol_features: tuple[str, ...]
    queues: int | None
    """As GET_QUEUE_NUM says it; None without MQ."""
    memory_slots: int | None
    """As GET_MAX_MEM_SLOTS says it; None without CONFIGURE_MEM_SLOTS."""
    config: str | None
    """Configuration space, in hexadecimal; None without CONFIG."""
    problems: tuple[str, ...]
    """What a front-end would stumble over."""


def describe(front_end: FrontEnd) -> Description:
    """Negotiate, and ask for all that can be asked for without starting anything.

    Raises:
        BackEndError: the back-end does not answer.
    """
    front_end.negotiate()
    features, protocol = front_end.offered
    return Description(
        names_of(features),
        names_of(protocol),
        front_end.queue_count() if front_end.has(_P.MQ) else None,
        front_end.ask(R.GET_MAX_MEM_SLOTS) if front_end.has(_P.CONFIGURE_MEM_SLOTS) else None,
        _config(front_end).hex() if front_end.has(_P.CONFIG) else None,
        tuple(_problems(features, protocol)),
    )


def render(description: Description) -> str:
    """The same for people."""
    config = description.config
    lines = {
        "features": " ".join(description.features),
        "protocol features": " ".join(description.protocol_features),
        "queues": description.queues,
        "memory slots": description.memory_slots,
        "configuration": None if config is None else _in_words(bytes.fromhex(config)),
    }
    shown = [f"{name + ':':<19} {'not told' if value is None else value or 'none'}" for name, value in lines.items()]
    return "\n".join([*shown, *(f"! {problem}" for problem in description.problems)])


def _in_words(config: bytes) -> str:
    """Its bytes, with those behind the last that is not zero counted: a back-end gives as many as are asked for."""
    said = config.rstrip(b"\0")
    zeros = counted(len(config) - len(said), "zero") if len(said) < len(config) else ""
    return ", then ".join(filter(None, (said.hex(" "), zeros)))


def as_json(description: Description) -> dict[str, Any]:
    """The same for programs."""
    return asdict(description)


def _config(front_end: FrontEnd) -> bytes:
    """As much as comes."""
    for size in _CONFIG_SIZES:
        said = front_end.ask(R.GET_CONFIG, Config(0, size, 0, bytes(size)))
        if said is not None and said.data:
            data: bytes = said.data
            return data
    return b""


def _problems(features: VirtioFeature, protocol: ProtocolFeature) -> list[str]:
    found = []
    if _V.VERSION_1 not in features:
        found.append("VERSION_1 is not offered: to QEMU it is a legacy device, and DPDK's virtio_user takes no such")
    if _V.PROTOCOL_FEATURES in features and _P.REPLY_ACK not in protocol:
        found.append("REPLY_ACK is not offered: nobody learns of a message that was refused, and libblkio refuses it")
    if _P.LOG_SHMFD in protocol and _V.LOG_ALL not in features:
        found.append("LOG_SHMFD is offered without LOG_ALL: a guest does not migrate")
    if _P.CONFIG in protocol and _P.BACKEND_REQ not in protocol:
        found.append("CONFIG is offered without BACKEND_REQ: a change of configuration cannot be told")
    try:
        check_protocol_features(protocol)
    except ProtocolError as error:
        found.append(f"protocol features that need each other: {error}")
    return found
