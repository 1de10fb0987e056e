"""The migration state machine, as tables: linux/vfio.h's v2 states and arcs, and the v1 bits as another name for them.

A request is carried out arc by arc, along the shortest path whose middle is no saving state. An arc that fails leaves
the machine in the last state reached; the request is refused with that arc's errno (docs/protocol.md 10.3). P2P is not
offered, so its states are refused. ERROR cannot be asked for over v2; only a reset leaves it.
"""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Callable, Mapping
from types import MappingProxyType

from userdev.errors import AUTHORS_FAILURES, ProtocolError
from vfio_user.wire.constants import MigrationState

log = logging.getLogger(__name__)

ERROR = MigrationState.ERROR
STOP = MigrationState.STOP
RUNNING = MigrationState.RUNNING
STOP_COPY = MigrationState.STOP_COPY
RESUMING = MigrationState.RESUMING
PRE_COPY = MigrationState.PRE_COPY

Arc = tuple[MigrationState, MigrationState]
Path = tuple[MigrationState, ...]

ARCS: tuple[Arc, ...] = (
    (STOP, RUNNING),
    (STOP, STOP_COPY),
    (STOP, RESUMING),
    (RUNNING, STOP),
    (RUNNING, PRE_COPY),
    (STOP_COPY, STOP),
    (RESUMING, STOP),
    (PRE_COPY, RUNNING),
    (PRE_COPY, STOP_COPY),
)
"""What the device does by itself, in one step."""

SAVING = frozenset({PRE_COPY, STOP_COPY})
"""States with a stream of saved state; never passed through on the way to another."""

REFUSED: frozenset[Arc] = frozenset({(STOP_COPY, PRE_COPY)})
"""There would be a path, but a stream that has stopped the device does not start it again (vfio_mig_get_next_state)."""


def _shortest(start: MigrationState, end: MigrationState) -> Path:
    """The states after `start` on the way to `end`."""
    ways: deque[Path] = deque([(start,)])
    while ways:
        way = ways.popleft()
        for here, there in ARCS:
            if here is way[-1] and there not in way:
                if there is end:
                    return (*way[1:], there)
                if there not in SAVING:
                    ways.append((*way, there))
    raise AssertionError(f"no way from {start.name} to {end.name}")


_STATES = {state for arc in ARCS for state in arc}

PATHS: Mapping[Arc, Path] = MappingProxyType(
    {
        (start, end): () if start is end else _shortest(start, end)
        for start in _STATES
        for end in _STATES
        if (start, end) not in REFUSED
    }
)
"""For each possible request (from, to) the states gone through, `to` last; none for the same state."""

V1_STATES: Mapping[int, MigrationState] = MappingProxyType(
    {0: STOP, 1: RUNNING, 2: STOP_COPY, 3: PRE_COPY, 4: RESUMING, 6: ERROR}
)
"""device_state of the v1 region: bit 0 RUNNING, bit 1 SAVING, bit 2 RESUMING; 5 and 7 are invalid."""

V1_VALUES: Mapping[MigrationState, int] = MappingProxyType({state: value for value, state in V1_STATES.items()})

V1_SPECIFIED: frozenset[tuple[int, int]] = frozenset({(1, 0), (1, 2), (1, 3), (1, 4), (2, 0), (3, 2), (4, 1)})
"""The transition table of the specification of November 2020, which has no way out of Stopped."""

V1_EXTENSIONS: frozenset[tuple[int, int]] = frozenset(
    {(0, 1), (0, 2), (2, 1), (3, 0), (3, 1)}
    | {(value, value) for value in range(5)}
    | {(value, 6) for value in range(1, 5)}
)
"""What libvfio-user's v1 servers and their clients need besides (docs/protocol.md 10.5): a way out of Stopped,
cancelling pre-copy, the same state again, and a client that gives up by writing the error state."""

V1_TRANSITIONS = V1_SPECIFIED | V1_EXTENSIONS

Action = Callable[[], None]


class StateMachine:
    """The device's migration state, and what is done on the way to another.

    `steps` has the work of the arcs that have any, and `checks` what is asked before the first step to a state.
    `entered` is told of each state that is another.
    """

    def __init__(
        self,
        steps: Mapping[Arc, Action],
        checks: Mapping[MigrationState, Action] = MappingProxyType({}),
        entered: Action = lambda: None,
    ) -> None:
        self._steps = steps
        self._checks = checks
        self._entered = entered
        self._state = RUNNING

    @property
    def state(self) -> MigrationState:
        """The migration state of the device."""
        return self._state

    def enter(self, state: MigrationState) -> None:
        """Be in a state, without a step: what is outside of the machine has got there by itself."""
        if state is not self._state:
            self._state = state
            self._entered()

    def request(self, state: int) -> None:
        """Go to a v2 state.

        Raises:
            ProtocolError: EINVAL where there is no way, and the errno of a check, with the state unchanged; otherwise
                that of the step that failed, in the last state reached, or in ERROR if the step has gone there itself.
        """
        known = {*MigrationState}
        path = PATHS.get((self.state, MigrationState(state))) if state in known else None
        if path is None:
            name = MigrationState(state).name if state in known else f"state {state}"
            raise ProtocolError(f"migration: no way from {self.state.name} to {name}", errno.EINVAL)
        if path and (check := self._checks.get(path[-1])):
            self._take(check, path[0])
        for there in path:
            step = self._steps.get((self.state, there))
            if step is not None:
                self._take(step, there)
            log.info("migration: %s to %s", self.state.name, there.name)
            self.enter(there)

    def request_v1(self, value: int) -> None:
        """Go to a state by its v1 value; raises as `request`, EINVAL for what the v1 table does not have."""
        state = V1_STATES.get(value)
        if state is None or (V1_VALUES[self.state], value) not in V1_TRANSITIONS:
            raise ProtocolError(
                f"migration: device_state {value:#x} cannot follow {V1_VALUES[self.state]:#x}", errno.EINVAL
            )
        if state is ERROR:
            self.fail("the client wrote the error state")
        else:
            self.request(state)

    def fail(self, why: str) -> None:
        """The device is in no state that it could go on from; a reset brings it back."""
        log.error("migration: %s to ERROR: %s", self.state.name, why)
        self.enter(ERROR)

    def recover(self) -> bool:
        """The device was reset: out of ERROR, and otherwise where it was. Whether it was in ERROR.

        A guest resets its device whenever it likes, also in pre-copy, and the VMM's own idea of the migration state
        does not change by it: a server does not go to RUNNING by itself (libvfio-user 853 and 854).
        """
        if self.state is not ERROR:
            return False
        self.enter(RUNNING)
        return True

    def _take(self, step: Action, there: MigrationState) -> None:
        try:
            step()
        except ProtocolError:
            raise
        except AUTHORS_FAILURES as error:
            log.exception("migration: from %s to %s", self.state.name, there.name)
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            raise ProtocolError(
                f"migration: from {self.state.name} to {there.name}: {type(error).__name__}: {error}", number
            ) from error
