"""Faults of what comes by the back-end's channel, or is told beside rings: translations, kicks and calls, postcopy."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import Any

from tests.vhost.faults.faulty import Faulty, Usual, fault_for, nothing
from tests.vhost.faults.messages import handles
from userdev.errors import ProtocolError
from vhost_user.backend.back_end import BackEnd
from vhost_user.backend.channel import BackEndChannel
from vhost_user.backend.commands import Answer
from vhost_user.backend.misses import Misses
from vhost_user.backend.session import Session
from vhost_user.memory import Iotlb
from vhost_user.wire import FrontEndRequest, Message, decode_request
from vhost_user.wire.payloads import IotlbMessage, IotlbType

R = FrontEndRequest


def refuses(*_: Any) -> None:
    raise ProtocolError("on purpose")


# An IOMMU


@fault_for("iommu/told")
def takes_nothing_back(back_end: Faulty) -> None:
    back_end.at(
        R.IOTLB_MSG, lambda b, said, f, usual: usual(b, said, f) if said.type == IotlbType.UPDATE else refuses()
    )


@fault_for("iommu/told-unasked")
def acknowledges_translations_where_asked(back_end: Faulty) -> None:
    def handle(usual: Usual, session: Session, message: Message) -> None:
        if message.request == R.IOTLB_MSG and not message.needs_reply:
            session._run(R.IOTLB_MSG, decode_request(FrontEndRequest, message)[1], [])
        else:
            usual(session, message)

    handles(back_end, handle)


@fault_for("iommu/nowhere")
def takes_any_translation(back_end: Faulty) -> None:
    def translate(b: BackEnd, said: IotlbMessage, fds: list[int], usual: Usual) -> int:
        with suppress(ProtocolError):
            usual(b, said, fds)
        return 0

    back_end.at(R.IOTLB_MSG, translate)


@fault_for("iommu/served")
def takes_io_addresses_for_the_guests(back_end: Faulty) -> None:
    """Those of buffers; rings are where they are said to be."""

    def translate(usual: Usual, iotlb: Iotlb, iova: int, size: int, permission: Any) -> Any:
        return [(iova, size)] if iova < 1 << 32 else usual(iotlb, iova, size, permission)

    back_end.instead(Iotlb, "translate", translate)


@fault_for("iommu/asked")
def never_asks(back_end: Faulty) -> None:
    back_end.instead(Misses, "_ask_for", nothing)


@fault_for("iommu/taken-back")
def keeps_translations(back_end: Faulty) -> None:
    back_end.at(R.IOTLB_MSG, lambda b, said, f, usual: usual(b, said, f) if said.type == IotlbType.UPDATE else 0)


@fault_for("iommu/read-only")
def takes_any_permission_for_both(back_end: Faulty) -> None:
    back_end.at(R.IOTLB_MSG, lambda b, said, f, usual: usual(b, said._replace(permissions=3), f))


# Notifications in band


@fault_for("in-band/kick")
def hears_no_kicks(back_end: Faulty) -> None:
    back_end.at(R.VRING_KICK, nothing)


@fault_for("in-band/call")
def calls_without_asking(back_end: Faulty) -> None:
    back_end.instead(
        BackEndChannel, "ask", lambda usual, channel, request, value, answered: channel.tell(request, value)
    )


@fault_for("in-band/needs-others")
def agrees_on_calls_that_it_cannot_make(back_end: Faulty) -> None:
    back_end.put("vhost_user.backend.commands.check_protocol_features", nothing)


# Postcopy


@fault_for("postcopy/advised")
def gives_another_descriptor(back_end: Faulty) -> None:
    back_end.at(R.POSTCOPY_ADVISE, lambda *_: Answer(None, [os.eventfd(0)]))


@fault_for("postcopy/ended")
def does_not_end(back_end: Faulty) -> None:
    back_end.at(R.POSTCOPY_END, lambda *_: 1)


@fault_for("postcopy/bases")
def says_no_address(back_end: Faulty) -> None:
    answers_regions(back_end, user_address=0)


def answers_regions(back_end: Faulty, **other: int) -> None:
    """Answer SET_MEM_TABLE with regions of which something is otherwise."""

    def table(b: BackEnd, regions: Any, fds: list[int], usual: Usual) -> Any:
        return tuple(region._replace(**other) for region in usual(b, regions, fds))

    back_end.at(R.SET_MEM_TABLE, table)
