"""What a soak would be: seed, hosts, devices, and the events that would be drawn. Nothing is started for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from vfio_user.cli._soak_again import Again
from vfio_user.cli._soak_line import opening
from vfio_user.cli._trace_stats import aligned
from vfio_user.harness.hosts.pair import hosts_in_words, joined_by_cable
from vfio_user.soak import EVENTS, Journal, Order
from vfio_user.soak.guest import named
from vfio_user.soak.lacks import NO_CABLE, no_cable

DRAWN = 10
"""Events that are told."""


def plan_of(again: Again, journal: Journal, numbers: Sequence[int], untils: Sequence[str]) -> Iterator[str]:
    """The plan of a soak, a line each: as if every event could happen to every device, which only the guest can tell.

    What its hosts alone make impossible is left out.

    `numbers` are those of the events that are wanted alone; `untils` say when it is enough.

    Raises:
        UserError: a host that is named is not reached, or nothing can happen.
    """
    spec, weights, devices = again.spec, again.weights, named(again.spec.assignments)
    cable = joined_by_cable(spec.hosts)
    possible = {
        name: [""] if event.of_guest else [each.name for each in devices]
        for name, event in EVENTS.items()
        if cable or event.lacks is not no_cable
    }
    weighed = {name: weight for name, weight in weights.items() if weight}
    order, total = Order(journal.seed, weights, possible), sum(weighed[name] for name in weighed.keys() & possible)
    hosts = hosts_in_words(spec.hosts)  # first: of hosts that cannot be had there is no plan
    yield from [f"seed {journal.seed}"] if numbers else opening(journal, "it would begin anew")
    yield f"hosts: {hosts}"
    for each, said in zip(devices, spec.devices, strict=True):
        yield f"device {each.name}: {said}, with workload {each.assignment.kind}"
    yield f"until: {'these events have happened' if numbers else ', '.join(untils)}"
    yield ""
    rows = [
        (name, f"{weight:g}", f"{weight / total:.1%}", ", ".join(filter(None, possible[name])) or "the guest")
        for name, weight in weighed.items()
        if name in possible
    ]
    yield from aligned([("event", "weight", "share", "of"), *rows])
    yield from (f"left out: {name}: {NO_CABLE}" for name in weighed if name not in possible)
    yield ""
    for number in numbers or range(journal.next_number, journal.next_number + DRAWN):
        yield str(order.happening(number))
    yield ""
    yield "nothing was started; what the guest, its QEMU or its hosts cannot do is left out then, and others are drawn"
