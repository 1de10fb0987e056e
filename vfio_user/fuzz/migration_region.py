"""Steps that move a device by the v1 migration region, where it has one: its registers in any order, and whole moves.

Each leaves the device running again: what a state lets a client do is not told to the steps behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from userdev.conformance.check import require
from userdev.fuzz import Found, Kind, Number, Pick, Several
from vfio_user.client.errors import RemoteError
from vfio_user.client.migration_region import ERROR, RUNNING, STOP_AND_COPY, STOPPED, MigrationRegisters
from vfio_user.fuzz.encounter import Encounter
from vfio_user.fuzz.ground import Ground
from vfio_user.fuzz.observation import Observation
from vfio_user.fuzz.oracles import ALIVE, REPLIES, STATE

BY_REGION = "region"
"""How a device migrates, in the words of `probe`."""
MOST = 8 << 20
"""Bytes of state that are taken along: a device that has more is not moved at each step."""


def change_states(encounter: Encounter, states: Sequence[int]) -> None:
    """A state that is taken is read back, and what is refused leaves the device where it was, or in ERROR."""
    region = MigrationRegisters(encounter.client)
    before = RUNNING
    try:
        for state in states:
            try:
                region.state = state
            except RemoteError:
                found = region.state
                if found not in (before, ERROR):
                    raise Found(
                        REPLIES, "refused and moved", f"{before} to {state} was refused, and the state is {found}"
                    ) from None
            else:
                found = region.state
                require(found == state, f"the state is {found} and not {state}")
            before = found
            if found == STOP_AND_COPY:
                with suppress(RemoteError):
                    region.read_piece()
    finally:
        _run_again(encounter, region)


def move_region(encounter: Encounter, reset_between: int, damage: int) -> None:
    """A state that was saved piece by piece is loaded again, and is the same then, and so are the registers.

    With `damage` it is not what was saved; whatever becomes of that, the device runs again.
    """
    region = MigrationRegisters(encounter.client)
    try:
        before = Observation.of(encounter)
        saved, twice = _saved(region), _saved(region)
        if saved is None or twice is None:
            return
        if reset_between and encounter.ground.description.can_reset:
            encounter.client.reset()
        if damage:
            middle = len(saved[0]) // 2
            saved[0] = saved[0][:middle] + bytes([saved[0][middle] ^ 1]) + saved[0][middle + 1 :]
            with suppress(RemoteError):
                region.load(saved)
            return
        region.load(saved)
        after = Observation.of(encounter)
        if difference := before.difference(after, but=encounter.volatile):
            raise Found(STATE, "registers", f"behind saving and loading, {difference}")
        if saved == twice and _saved(region) != saved:
            raise Found(STATE, "digest", "a state, loaded and saved again, is another")
    finally:
        _run_again(encounter, region)


def _saved(region: MigrationRegisters) -> list[bytes] | None:
    """The pieces of a state, with the device running again; None: there is none, or it is too large."""
    region.state = STOP_AND_COPY
    pieces: list[bytes] = []
    while sum(map(len, pieces)) <= MOST and (piece := region.read_piece()):
        pieces.append(piece)
    region.state = STOPPED
    region.state = RUNNING
    return pieces if pieces and sum(map(len, pieces)) <= MOST else None


def _run_again(encounter: Encounter, region: MigrationRegisters) -> None:
    """Have the device run: by its register, or by a reset where that does not help."""
    if region.state == RUNNING:
        return
    for state in (STOPPED, RUNNING):
        with suppress(RemoteError):
            region.state = state
    if region.state != RUNNING and encounter.ground.description.can_reset:
        encounter.client.reset()
    if region.state != RUNNING:
        raise Found(ALIVE, "does not run again", f"the device stays in state {region.state}, behind a reset too")


def kinds(ground: Ground) -> list[Kind[Encounter]]:
    """The steps of this module, where the device migrates by the region."""
    if ground.description.migration.how != BY_REGION:
        return []
    states = Several(Pick((0, 1, 2, 2, 3, 4, 5, 6, 7, 8)), 1, 4)
    return [
        Kind("change_states", change_states, {"states": states}),
        Kind("move_region", move_region, {"reset_between": Number(0, 1), "damage": Pick((0, 0, 1))}, weight=2),
    ]
