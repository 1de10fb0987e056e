"""What a saved state of an NVMe controller can say, each value at its edges and just beyond."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isfunction
from types import SimpleNamespace
from typing import Any

from tests.cases import for_each, for_each_row
from userdev_servers.nvme import checks
from userdev_servers.nvme.feature_table import UNDER_TEMPERATURE, vector_key
from userdev_servers.nvme.model import (
    ADMIN_ENTRIES,
    ERROR_ENTRIES,
    ERROR_ENTRY,
    QUEUE_ENTRIES,
    REQUEST_LIMIT,
    SERIAL_SIZE,
    Model,
)
from userdev_servers.nvme.queues import CompletionQueue, SavedQueues, SubmissionQueue, queues_from
from userdev_servers.nvme.spec import PAGE, Cc, Feature

MODEL = Model(queues=2, vectors=4, namespaces=2)
LARGEST = 1 << checks.CLOCK_BITS
CQ_1, SQ_1 = [1, 4096, 2, 3, 1, 1, 1, 1], [1, 8192, 2, 1, 1, 1]
ADMIN_CQ, ADMIN_SQ = [0, 4096, 2, 0, 1, 0, 0, 1], [0, 8192, 2, 0, 0, 0]


def with_queues(completion: dict[int, int] | None = None, submission: dict[int, int] | None = None) -> SavedQueues:
    """The admin pair and another one, fields of which are others, by their places."""

    def changed(queue: list[int], fields: dict[int, int] | None) -> list[int]:
        return [(fields or {}).get(place, value) for place, value in enumerate(queue)]

    return [[ADMIN_CQ, changed(CQ_1, completion)], [ADMIN_SQ, changed(SQ_1, submission)]]


EDGES: list[tuple[Callable[[Any, Any], bool], list[Any], list[Any]]] = [
    (checks.configuration, [0, Cc.WRITABLE], [2, 1 << 24]),
    (checks.admin_sizes, [0, 0x0FFF0FFF], [1 << 12, 1 << 28]),
    (checks.admin_base, [0, PAGE], [1, PAGE // 2]),
    (checks.shadow_buffers, [[], [PAGE, 2 * PAGE]], [[PAGE], [PAGE, PAGE], [PAGE, 2 * PAGE + 8], [0, PAGE, 2 * PAGE]]),
    (
        checks.clock,
        [[LARGEST - 1, 1], [1 - LARGEST, 0]],
        [[LARGEST, 1], [-LARGEST, 1], [0, 2], [0, -1], [0.0, 1], [0, 1.0]],
    ),
    (checks.event_requests, [[], [0] * REQUEST_LIMIT], [[0] * (REQUEST_LIMIT + 1)]),
    (checks.event_types, [[], [0, 1, 2]], [[0, 0], [3]]),
    (checks.events, [[], [[0, 1, 1], [1, 0, 2], [2, 0, 4]]], [[[0, 1, 1], [0, 0, 1]], [[3, 0, 1]], [[0, 0, 0]]]),
    (
        checks.settings,
        [
            {},
            dict.fromkeys((Feature.TEMPERATURE_THRESHOLD, UNDER_TEMPERATURE, Feature.ERROR_RECOVERY), 0xFFFF),
            dict.fromkeys((Feature.ARBITRATION, Feature.WRITE_ATOMICITY, Feature.ASYNC_EVENT_CONFIG), 0xFFFFFFFF),
            {Feature.VOLATILE_WRITE_CACHE: 1, Feature.POWER_MANAGEMENT: 0},
            {vector_key(0): 0x1FFFF, vector_key(3): 0x1FFFF},
        ],
        [
            {Feature.TEMPERATURE_THRESHOLD: 1 << 16},
            {UNDER_TEMPERATURE: 1 << 16},
            {Feature.ERROR_RECOVERY: 1 << 16},
            {Feature.POWER_MANAGEMENT: 1},
            {Feature.VOLATILE_WRITE_CACHE: 2},
            {Feature.ARBITRATION: 1 << 32},
            {Feature.NUMBER_OF_QUEUES: 0x10001},
            {Feature.TIMESTAMP: 0},
            {vector_key(4): 0},
            {vector_key(0): 1 << 17},
            {0xFE: 0},
        ],
    ),
    (checks.changed_namespaces, [[], [2, 1]], [[0], [3], [1, 1]]),
    (checks.serial, ["", "x" * SERIAL_SIZE], ["x" * (SERIAL_SIZE + 1), "\n", "\u00e9"]),
    (
        checks.namespaces,
        [[[1, 1, 8, 9], [0, 0, 0, 12]]],
        [[[1, 1, 8, 9]], [[2, 1, 8, 9], [0, 0, 0, 9]], [[1, 2, 8, 9], [0, 0, 0, 9]], [[1, 1, 8, 10], [0, 0, 0, 9]]],
    ),
    (
        checks.errors,
        [[], [bytes(ERROR_ENTRY)] * ERROR_ENTRIES],
        [[bytes(ERROR_ENTRY)] * (ERROR_ENTRIES + 1), [bytes(ERROR_ENTRY - 1)], [bytearray(ERROR_ENTRY)]],
    ),
    (
        checks.queues,
        [
            [[], []],
            [[ADMIN_CQ], [ADMIN_SQ]],
            [[ADMIN_CQ, CQ_1], [ADMIN_SQ]],
            with_queues({0: 2}, {0: 2, 3: 2}),
            with_queues({2: QUEUE_ENTRIES, 5: QUEUE_ENTRIES - 1, 6: QUEUE_ENTRIES - 1}),
            with_queues(None, {2: QUEUE_ENTRIES, 4: QUEUE_ENTRIES - 1, 5: QUEUE_ENTRIES - 1}),
            [[[0, PAGE, ADMIN_ENTRIES, 0, 1, 0, 0, 1]], [[0, 0, ADMIN_ENTRIES, 0, 0, 0]]],
        ],
        [
            [[CQ_1], [SQ_1]],
            [[ADMIN_CQ], []],
            [[ADMIN_CQ, CQ_1, CQ_1], [ADMIN_SQ]],
            [[ADMIN_CQ, CQ_1], [ADMIN_SQ, SQ_1, SQ_1]],
            [[ADMIN_CQ, CQ_1], [ADMIN_SQ, [0, *SQ_1[1:]]]],
            *(
                with_queues({place: value})
                for place, value in (
                    *((0, 3), (1, PAGE + 1), (2, 1), (2, QUEUE_ENTRIES + 1)),
                    *((3, 4), (4, 2), (5, 2), (6, 2), (7, 2)),
                )
            ),
            *(
                with_queues(None, {place: value})
                for place, value in (
                    *((0, 3), (1, PAGE + 1), (2, 1), (2, QUEUE_ENTRIES + 1)),
                    *((3, 0), (3, 2), (4, 2), (5, 2)),
                )
            ),
        ],
    ),
]
"""Each check of a saved value, what is just as far as it may be, and what is just too far."""


@for_each_row(EDGES, ids=[check.__name__ for check, _, _ in EDGES])
def test_what_a_saved_state_can_say_ends_where_a_controller_does(
    check: Callable[[Any, Any], bool], right: list[Any], wrong: list[Any]
) -> None:
    def passes(value: Any) -> bool:
        try:
            return check(SimpleNamespace(model=MODEL), value)
        except ValueError:
            return False

    assert [value for value in right if not passes(value)] == []
    assert [value for value in wrong if passes(value)] == []


def test_every_check_of_a_saved_value_is_tried_at_its_edges() -> None:
    written = {
        name for name, found in vars(checks).items() if isfunction(found) and found.__module__ == checks.__name__
    }
    assert {name for name in written if not name.startswith("_")} == {check.__name__ for check, _, _ in EDGES}


@for_each((False, True), (0, 1))
def test_queues_are_as_they_were_saved(interrupts: bool, phase: int) -> None:
    """But for what is under way, which nothing is where a state is saved."""
    completions = CompletionQueue(3, 0x5000, 16, 2, interrupts=interrupts)
    completions.head, completions.tail, completions.phase = 5, 7, phase
    submissions = SubmissionQueue(4, 0x9000, 32, completions)
    submissions.head, submissions.tail = 11, 13
    saved = [[completions.save()], [submissions.save()]]
    again_completions, again_submissions = queues_from(saved)
    assert shown(again_completions[3]) == shown(completions)
    assert {**shown(again_submissions[4]), "cq": 0} == {**shown(submissions), "cq": 0}
    assert again_submissions[4].cq is again_completions[3]


def shown(queue: CompletionQueue | SubmissionQueue) -> dict[str, object]:
    return {name: getattr(queue, name) for name in type(queue).__slots__}
