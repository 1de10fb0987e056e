"""A migration whose memory comes later, as its destination's back-end has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from userdev.conformance import Group, require
from userdev.transport import close_all
from vhost_user.frontend.conformance.bench import SERVED, Bench
from vhost_user.frontend.conformance.memory import TABLE
from vhost_user.frontend.front_end import PROTOCOL_FEATURES, FrontEnd
from vhost_user.frontend.memory import PAGE
from vhost_user.wire import VERSION, FrontEndRequest, Message, ProtocolFeature

postcopy = Group[Bench]("postcopy", "spec: Front-end message types, POSTCOPY_ADVISE", needs=SERVED)

R, P = FrontEndRequest, ProtocolFeature


def _advised(bench: Bench) -> tuple[FrontEnd, list[int]]:
    """One that has asked for a userfaultfd, and what came; there are no slots (specification, CONFIGURE_MEM_SLOTS)."""
    front_end = bench.agreed(protocol=PROTOCOL_FEATURES & ~P.CONFIGURE_MEM_SLOTS | P.PAGEFAULT)
    front_end.need(P.PAGEFAULT)
    _, fds = front_end.ask_for_fds(R.POSTCOPY_ADVISE)
    return front_end, fds


@postcopy.check("advised")
def postcopy_advised(bench: Bench) -> None:
    """A migration whose memory comes later is advised with a userfaultfd."""
    front_end, fds = _advised(bench)
    kinds = [str(Path(f"/proc/self/fd/{fd}").readlink()) for fd in fds]
    close_all(fds)
    require(kinds == ["anon_inode:[userfaultfd]"], f"POSTCOPY_ADVISE is answered with {kinds or 'no descriptor'}")
    front_end.settle()


@postcopy.check("ended", rule="spec: Front-end message types, POSTCOPY_END", needs=("postcopy/advised", *TABLE))
def postcopy_ended(bench: Bench) -> None:
    """Its end is acknowledged with 0, and memory that is shared after that is there."""
    front_end, fds = _advised(bench)
    close_all(fds)
    front_end.do(R.POSTCOPY_LISTEN)
    answer = front_end.ask(R.POSTCOPY_END)
    require(answer == 0, f"POSTCOPY_END is answered with {answer:#x}")
    front_end.share_memory()
    bench.serve(bench.running(front_end))


@postcopy.check("bases", rule="spec: Front-end message types, SET_MEM_TABLE", needs=("postcopy/ended",))
def postcopy_bases(bench: Bench) -> None:
    """SET_MEM_TABLE is answered then with the back-end's own addresses of the regions, which are told back."""
    front_end, fds = _advised(bench)
    close_all(fds)
    front_end.do(R.POSTCOPY_LISTEN)
    front_end.negotiated = replace(front_end.negotiated, postcopy=True)
    regions, fd = front_end.memory.regions, front_end.memory.fd
    mapped = front_end.ask(R.SET_MEM_TABLE, regions, [fd] * len(regions))
    same = tuple(new._replace(user_address=old.user_address) for new, old in zip(mapped, regions, strict=False))
    require(same == regions, f"SET_MEM_TABLE is answered with other regions than were said: {mapped}")
    nowhere = [region for region in mapped if not region.user_address or region.user_address % PAGE]
    require(not nowhere, f"SET_MEM_TABLE is answered with addresses at which no region can be: {nowhere}")
    front_end.send_message(Message(R.SET_MEM_TABLE, VERSION, bytes(8)))
    front_end.settle()
    front_end.ask(R.POSTCOPY_END)
