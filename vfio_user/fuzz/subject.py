"""A vfio-user server under test: sequences are played with one client after the other, and every oracle is asked."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

from userdev.errors import ProtocolError, UserdevError, UserError
from userdev.fuzz import Found, Journal, Kind, Step, cause_of, compared
from userdev.fuzz.process import Watched
from vfio_user.client import Client
from vfio_user.client.conformance import Bench, CheckFailed, Target
from vfio_user.client.errors import Disconnected, NoAnswer, RemoteError
from vfio_user.fuzz.ground import Ground, survey
from vfio_user.fuzz.irqs import still_wired
from vfio_user.fuzz.kinds import kinds
from vfio_user.fuzz.memory import GuardedMemory
from vfio_user.fuzz.observation import Observation, storing
from vfio_user.fuzz.oracles import ALIVE, DESCRIPTION, REFERENCE, REPLIES, RESET
from vfio_user.fuzz.session import Session
from vfio_user.wire import Command, Dialect
from vfio_user.wire.constants import MigrationState

PROTOCOL = "vfio-user"
DIALECTS = ("current", "region-migration", "draft-v6")
"""Those whose structures the steps are made of: not libvfio-user's of 2021, whose DMA is a message of 32 bits."""
_SERVER = (Disconnected, NoAnswer, RemoteError, ProtocolError, CheckFailed, UserError)


class VfioUserSubject:
    """The player. `reference`, if any, is another server that has to answer the same."""

    protocol = PROTOCOL

    def __init__(
        self, target: Target, dialect: Dialect, *, timeout: float, reference: VfioUserSubject | None = None
    ) -> None:
        """Nothing is asked yet: `prepare` does that."""
        self._target = target
        self._dialect = dialect
        self._timeout = timeout
        self._reference = reference
        self._session: Session | None = None
        self._memory = GuardedMemory()
        self._watched = Watched()
        self.ground: Ground | None = None
        """What was probed; None: nothing was, or nothing can be played with it."""
        self._start: Observation | None = None
        self._volatile: frozenset[tuple[int, int]] = frozenset()
        self._stable = True
        self._saved = b""
        self._renews = False
        self._kinds: dict[str, Kind[Session]] = {}
        self.journal: Journal = []

    @classmethod
    def of(cls, dialect: Dialect, bench: Bench) -> VfioUserSubject:
        """That of a check's bench."""
        return cls(bench.target, dialect, timeout=bench.timeout)

    def prepare(self) -> list[Found]:
        """Probe the device, and learn what of it changes by itself; what is wrong with it already.

        Raises:
            UserError: there is no server, or it has another client.
        """
        self._end_session()
        wrong = []
        try:
            self._learn()
        except (Disconnected, NoAnswer, RemoteError, ProtocolError) as error:
            if isinstance(error, RemoteError) and error.errno == errno.EBUSY:
                raise UserError(
                    str(error), hint="another client is connected, and a server has one at a time"
                ) from None
            wrong.append(self._judged("probe", error))
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
        self._session = session = self._new_session(client)
        self._start = Observation.of(session)
        registers = self._start.registers()
        if session.ground.description.can_reset:
            client.reset()
        self._volatile = self._start.bytes_that_differ(Observation.of(session))
        if session.ground.migrates:
            states = []
            for _ in range(2):
                states.append(client.save())
                client.set_migration_state(MigrationState.RUNNING)
            self._stable, self._saved = states[0] == states[1], states[0]
        stores = storing(session, registers)
        self.ground = replace(self.ground, registers=registers, stores=stores)
        self._kinds = {kind.name: kind for kind in kinds(self.ground)}
        self._end_session()
        if self._renews:
            self._target.renew()

    def kinds(self) -> list[Kind[Session]]:
        """The steps that the device can be asked for; none where it cannot be described."""
        return list(self._kinds.values())

    def facts(self) -> dict[str, str]:
        """The device's ids, and the dialect."""
        facts = {"dialect": self._dialect.name}
        if self.ground is not None:
            found = self.ground.description
            facts["device"] = f"{found.vendor:04x}:{found.device:04x}"
        return facts

    def renew(self) -> None:
        """Have a fresh server for the next sequence, where it is ours to start."""
        self._end_session()
        self._target.renew()
        self._target.crashed()
        if not self._renews:
            self._start = None
        if self._reference is not None:
            self._reference.renew()

    def play(self, steps: Sequence[Step]) -> Found | None:
        """Play a sequence with a device that is as after its start, and ask every oracle; what went wrong first."""
        found = self._played(steps) if steps else next(iter(self.prepare()), None)
        self.journal = self._session.journal if self._session is not None else []
        if found is not None:
            self._end_session()
        elif self._reference is not None:
            found = self._compared(steps)
        if self._session is not None:
            self._session.journal = []
        return found

    def _played(self, steps: Sequence[Step]) -> Found | None:
        name = "begin"
        try:
            session = self._session or self._begun()
            for step in steps:
                name = step.name
                kind = self._kinds.get(name)
                if kind is not None and kind.takes(step):
                    kind.play(session, **dict(step.arguments))
                    self._memory.check()
            name = "end"
            self._finish(session)
        except Found as found:
            return found
        except _SERVER as error:
            return self._judged(name, error)
        return None

    def _begun(self) -> Session:
        """The session of a new client, with a device that is as after its start."""
        self._session = session = self._new_session(self._connect())
        self._run_again(session)
        if session.ground.description.can_reset:
            session.client.reset()
        if self._start is None:  # a server that is not ours to start anew keeps what it was found with
            self._start = Observation.of(session)
        self._watched.note(self._target.pid, session.client.device_info)
        return session

    def _judged(self, name: str, error: UserdevError) -> Found:
        """What an error of the server's is."""
        if isinstance(error, (Disconnected, NoAnswer, UserError)):
            self._end_session()
            self._target.settle()
            if (crash := self._target.crashed()) is not None:
                last = next((line for line in reversed(crash.text.splitlines()) if line.strip()), "")
                return Found(ALIVE, cause_of(last), crash.text)
            return Found(ALIVE, cause_of(f"{name}: {error}"), f"{name}: {error}")
        return Found(REPLIES, cause_of(f"{name}: {error}"), f"{name}: {error}")

    def _finish(self, session: Session) -> None:
        """Ask what has to hold behind any sequence, and leave the device as after its start."""
        still_wired(session)
        if session.accessible:
            for known in list(session.maps.values()):
                request = session.unmap_request(known.iova, known.size)
                session.good(session.ask(Command.DMA_UNMAP, request), "unmapping a range that was mapped")
                session.forget_map(known.iova)
        self._memory.check()
        session.rejoin()
        session.close_eventfds()
        self._run_again(session)
        self._watched.check_again(self._target.pid, session.client.device_info)
        if self._start is not None and session.ground.description.can_reset:
            session.client.reset()
            session.touched = session.masking = False
            if difference := self._start.difference(Observation.of(session), but=self._volatile):
                raise Found(RESET, cause_of(difference), f"behind a reset, {difference}")

    def _run_again(self, session: Session) -> None:
        if not session.ground.migrates or session.state is MigrationState.RUNNING:
            return
        with suppress(RemoteError):
            session.client.set_migration_state(MigrationState.RUNNING)
        session.state = session.client.migration_state()
        if session.state is not MigrationState.RUNNING and session.ground.description.can_reset:
            session.client.reset()
            session.state = session.client.migration_state()
        if session.state is not MigrationState.RUNNING:
            what = f"the device stays in {session.state.name}, whatever the next client does"
            raise Found(ALIVE, "does not run again", what)

    def _compared(self, steps: Sequence[Step]) -> Found | None:
        """Play the same with the reference; the first answer that is another."""
        assert self._reference is not None
        if self._reference.play(steps) is not None:
            self._reference.renew()
            return None  # the reference is wrong by itself, and says nothing
        found = compared(REFERENCE, self.journal, self._reference.journal)
        if found is not None:
            self._end_session()
        return found

    def _connect(self) -> Client:
        client = Client(self._target.connect(), dialect=self._dialect, timeout=self._timeout)
        try:
            client.negotiate(minor=0)
        except BaseException:
            client.close()
            raise
        return client

    def _new_session(self, client: Client) -> Session:
        assert self.ground is not None
        bench = Bench(self._target, self._dialect, timeout=self._timeout)
        bench.client = client
        session = Session(client, self.ground, bench, self._memory)
        session.volatile, session.stable, session.saved = self._volatile, self._stable, self._saved
        if self.ground.migrates:
            session.state = client.migration_state()
        return session

    def _end_session(self) -> None:
        if self._session is not None:
            self._session.leave()
            self._session.close()
            self._session = None

    def close(self) -> None:
        """End the session, and give memory back."""
        self._end_session()
        self._memory.close()
        if self._reference is not None:
            self._reference.close()
