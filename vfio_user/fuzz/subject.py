"""A vfio-user server under test: sequences are played with one client after the other, and every oracle is asked."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace

from userdev.conformance import CheckFailed, Level, Unmet
from userdev.errors import ProtocolError, UserdevError, UserError
from userdev.fuzz import Find, Found, Journal, Kind, Step, cause_of, compared, silence_of
from userdev.fuzz.levels import DEFAULT, Tolerated, level_of
from userdev.fuzz.process import Watched
from vfio_user.client import Client
from vfio_user.client.conformance import Bench, Target
from vfio_user.client.conformance.bench import keeps_its_line
from vfio_user.client.errors import Disconnected, NoAnswer, RemoteError
from vfio_user.fuzz.encounter import Encounter
from vfio_user.fuzz.ground import Ground, survey
from vfio_user.fuzz.irqs import still_wired
from vfio_user.fuzz.kinds import kinds
from vfio_user.fuzz.memory import GuardedMemory
from vfio_user.fuzz.observation import Observation, storing
from vfio_user.fuzz.oracles import ALIVE, DESCRIPTION, REFERENCE, REPLIES, RESET
from vfio_user.wire import Command, Dialect
from vfio_user.wire.constants import MigrationState

PROTOCOL = "vfio-user"
DIALECTS = ("current", "region-migration", "draft-v6")
"""Those whose structures the steps are made of: not libvfio-user's of 2021, whose DMA is a message of 32 bits."""
_SERVER = (Disconnected, NoAnswer, RemoteError, ProtocolError, CheckFailed, Unmet, UserError)


class VfioUserSubject:
    """As `userdev.fuzz.Subject`. `reference`, if any, is another server that has to answer the same."""

    protocol = PROTOCOL

    def __init__(
        self,
        target: Target,
        dialect: Dialect,
        *,
        timeout: float,
        reference: VfioUserSubject | None = None,
        ignored: Callable[[Found], bool] = lambda _: False,
        level: str = DEFAULT,
    ) -> None:
        """Nothing is asked yet: `prepare` does that. `level`: what it is held to (`userdev.fuzz.levels`).

        ignored: differences from the reference behind which others are looked for
        """
        self._level = level
        self._target = target
        self._dialect = dialect
        self._timeout = timeout
        self._reference = reference
        self._ignored = ignored
        self._encounter: Encounter | None = None
        self._memory = GuardedMemory()
        self._watched = Watched()
        self.ground: Ground | None = None
        """What was probed; None: nothing was, or nothing can be played with it."""
        self._start: Observation | None = None
        self._volatile: frozenset[tuple[int, int]] = frozenset()
        self._stable = True
        self._saved = b""
        self._renews = False
        self._kinds: dict[str, Kind[Encounter]] = {}
        self.journal: Journal = []

    @classmethod
    def of(cls, dialect: Dialect, bench: Bench, find: Find) -> VfioUserSubject:
        """That of a check's bench, for a find."""
        return cls(bench.target, dialect, timeout=bench.timeout, level=level_of(find))

    def prepare(self) -> list[Found]:
        """Probe the device, and learn what of it changes by itself; what is wrong with it already.

        Raises:
            UserError: there is no server, or it has another client.
        """
        self._end()
        wrong = []
        try:
            self._learn()
        except (Disconnected, NoAnswer, RemoteError, ProtocolError) as error:
            if isinstance(error, RemoteError) and error.errno == errno.EBUSY:
                raise UserError(
                    str(error), hint="another client is connected, and a server has one at a time"
                ) from None
            wrong.append(self._find_of("probe", error))
        if self.ground is not None:
            wrong += [Found(DESCRIPTION, cause_of(what), what) for what in self.ground.description.problems]
        if self._reference is not None:
            self._reference.prepare()
        return wrong

    def _learn(self) -> None:
        client = self._connect()
        self._renews = self._target.pid is not None
        try:
            self.ground = survey(client)
        except BaseException:
            client.close()
            raise
        self._encounter = encounter = self._new_encounter(client)
        self._start = Observation.of(encounter)
        registers = self._start.registers()
        if encounter.ground.description.can_reset:
            client.reset()
        self._volatile = self._start.bytes_that_differ(Observation.of(encounter))
        if encounter.ground.migrates:
            states = []
            for _ in range(2):
                states.append(client.save())
                client.set_migration_state(MigrationState.RUNNING)
            self._stable, self._saved = states[0] == states[1], states[0]
        stores = storing(encounter, registers)
        self.ground = replace(self.ground, registers=registers, stores=stores, keeps_line=keeps_its_line(client))
        self._kinds = {kind.name: kind for kind in kinds(self.ground)}
        self._end()
        if self._renews:
            self._target.renew()

    def kinds(self) -> list[Kind[Encounter]]:
        """The steps that the device can be asked for; none where it cannot be described."""
        return list(self._kinds.values())

    def facts(self) -> dict[str, str]:
        """The device's ids, and the dialect."""
        facts = {"dialect": self._dialect.name, "level": self._level}
        if self.ground is not None:
            found = self.ground.description
            facts["device"] = f"{found.vendor:04x}:{found.device:04x}"
        return facts

    def renew(self) -> None:
        """Have a fresh server for the next sequence, where it is ours to start."""
        self._end()
        self._target.renew()
        self._target.crashed()
        if not self._renews:
            self._start = None
        if self._reference is not None:
            self._reference.renew()

    def play(self, steps: Sequence[Step]) -> Found | None:
        """Play a sequence with a device that is as after its start, and ask every oracle; what went wrong first."""
        found = self._played(steps) if steps else next(iter(self.prepare()), None)
        self.journal = self._encounter.journal if self._encounter is not None else []
        if found is not None:
            self._end()
        elif self._reference is not None:
            found = self._compared(steps)
        if self._encounter is not None:
            self._encounter.journal = []
        return found

    def _played(self, steps: Sequence[Step]) -> Found | None:
        name, begun = "begin", 0
        try:
            encounter = self._encounter or self._begun()
            for step in steps:
                name, begun = step.name, begun + 1
                kind = self._kinds.get(name)
                if kind is not None and kind.takes(step):
                    self._step(encounter, kind, step)
                    self._memory.check()
            name = "end"
            self._finish(encounter)
            if (crash := self._target.crashed()) is not None:  # another is in its place
                raise silence_of(ALIVE, name, crash.text)
        except Found as found:
            return found.at(begun)
        except _SERVER as error:
            return self._find_of(name, error).at(begun)
        return None

    @staticmethod
    def _step(encounter: Encounter, kind: Kind[Encounter], step: Step) -> None:
        try:
            kind.play(encounter, **dict(step.arguments))
        except Tolerated:
            encounter.rejoin()
            encounter.touched = encounter.masking = True

    def _begun(self) -> Encounter:
        """The encounter of a new client, with a device that is as after its start."""
        self._encounter = encounter = self._new_encounter(self._connect())
        self._run_again(encounter)
        if encounter.ground.description.can_reset:
            encounter.client.reset()
        if self._start is None:  # a server that is not ours to start anew keeps what it was found with
            self._start = Observation.of(encounter)
        self._watched.note(self._target.pid, encounter.client.device_info)
        return encounter

    def _find_of(self, name: str, error: UserdevError) -> Found:
        """What an error of the server's is, at the step of this name."""
        what = f"{name}: {error}"
        if isinstance(error, (Disconnected, NoAnswer, UserError)):
            self._end()
            self._target.settle()
            crash = self._target.crashed()
            return silence_of(ALIVE, what, crash.text if crash is not None else "")
        level = error.level if isinstance(error, CheckFailed) else Level.MUST
        return Found(REPLIES, cause_of(what), what, level=level)

    def _finish(self, encounter: Encounter) -> None:
        """Ask what has to hold behind any sequence, and leave the device as after its start."""
        still_wired(encounter)
        if encounter.accessible:
            for known in list(encounter.maps.values()):
                request = encounter.unmap_request(known.iova, known.size)
                encounter.good(encounter.ask(Command.DMA_UNMAP, request), "unmapping a range that was mapped")
                encounter.forget_map(known.iova)
        self._memory.check()
        encounter.rejoin()
        encounter.close_eventfds()
        self._run_again(encounter)
        self._watched.check_again(self._target.pid, encounter.client.device_info)
        if self._start is not None and encounter.ground.description.can_reset:
            encounter.client.reset()
            encounter.touched = encounter.masking = False
            if difference := self._start.difference(Observation.of(encounter), but=self._volatile):
                raise Found(RESET, cause_of(difference), f"behind a reset, {difference}")

    def _run_again(self, encounter: Encounter) -> None:
        if not encounter.ground.migrates or encounter.state is MigrationState.RUNNING:
            return
        with suppress(RemoteError):
            encounter.client.set_migration_state(MigrationState.RUNNING)
        encounter.state = encounter.client.migration_state()
        if encounter.state is not MigrationState.RUNNING and encounter.ground.description.can_reset:
            encounter.client.reset()
            encounter.state = encounter.client.migration_state()
        if encounter.state is not MigrationState.RUNNING:
            what = f"the device stays in {encounter.state.name}, whatever the next client does"
            raise Found(ALIVE, "does not run again", what)

    def _compared(self, steps: Sequence[Step]) -> Found | None:
        """Play the same with the reference; the first answer that is another."""
        assert self._reference is not None
        if self._reference.play(steps) is not None:
            self._reference.renew()
            return None  # the reference is wrong by itself, and says nothing
        found = compared(REFERENCE, self.journal, self._reference.journal, ignored=self._ignored)
        if found is not None:
            self._end()
        return found

    def _connect(self) -> Client:
        client = Client(self._target.connect(), dialect=self._dialect, timeout=self._timeout)
        try:
            client.negotiate(minor=0)
        except BaseException:
            client.close()
            raise
        return client

    def _new_encounter(self, client: Client) -> Encounter:
        assert self.ground is not None
        bench = Bench(self._target, self._dialect, timeout=self._timeout)
        bench.client = client
        encounter = Encounter(client, self.ground, bench, self._memory, self._level)
        encounter.volatile, encounter.stable, encounter.saved = self._volatile, self._stable, self._saved
        if self.ground.migrates:
            encounter.state = client.migration_state()
        return encounter

    def _end(self) -> None:
        if self._encounter is not None:
            self._encounter.leave()
            self._encounter.close()
            self._encounter = None

    def close(self) -> None:
        """End the encounter, and give memory back."""
        self._end()
        self._memory.close()
        if self._reference is not None:
            self._reference.close()
