"""A back-end under test: sequences are played by one front-end after the other, and every oracle is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from userdev.conformance.check import CheckFailed
from userdev.errors import UserdevError, UserError
from userdev.fuzz import Find, Found, Journal, Kind, Step, cause_of, compared, silence_of
from userdev.fuzz.levels import DEFAULT, Tolerated, level_of
from userdev.fuzz.process import Watched
from vhost_user.frontend import FrontEnd
from vhost_user.frontend.conformance import Bench, DeviceKind, Target
from vhost_user.frontend.description import describe
from vhost_user.frontend.errors import BackEndError, BrokenQueue, Disconnected, NoAnswer
from vhost_user.fuzz import messages, rings
from vhost_user.fuzz.encounter import Encounter, Offered
from vhost_user.fuzz.oracles import ALIVE, OFFER, REFERENCE, REPLIES, RINGS

PROTOCOL = "vhost-user"
_READ_ONLY = 1 << 5
"""VIRTIO_BLK_F_RO (virtio 1.3, Block Device, Feature bits)."""


class VhostUserSubject:
    """As `userdev.fuzz.Subject`. `device` says what is served, which no message does; without it no request is made."""

    protocol = PROTOCOL

    def __init__(
        self,
        target: Target,
        device: DeviceKind | None,
        *,
        timeout: float,
        reference: VhostUserSubject | None = None,
        ignored: Callable[[Found], bool] = lambda _: False,
        level: str = DEFAULT,
    ) -> None:
        """Nothing is asked yet: `prepare` does that. `reference`, if any, has to answer the same.

        level: what it is held to (`userdev.fuzz.levels`)
        ignored: differences from the reference behind which others are looked for
        """
        self._level = level
        self._target = target
        self._device = device
        self._timeout = timeout
        self._encounter: Encounter | None = None
        self._offered: Offered | None = None
        self._kinds: dict[str, Kind[Encounter]] = {}
        self._watched = Watched()
        self._blocks: dict[int, bytes] = {}
        self._reference = reference
        self._ignored = ignored
        self.journal: Journal = []

    @classmethod
    def of(cls, device: DeviceKind | None, bench: Bench, find: Find) -> VhostUserSubject:
        """That of a check's bench, for a find."""
        return cls(bench.target, device, timeout=bench.timeout, level=level_of(find))

    def prepare(self) -> list[Found]:
        """Probe the back-end; what is wrong with it already.

        Raises:
            UserError: there is no back-end.
        """
        self._end()
        try:
            with FrontEnd(self._target.connect(), timeout=self._timeout) as front_end:
                said = describe(front_end)
                features, protocol = front_end.offered
        except BackEndError as error:
            return [self._find_of("probe", error)]
        config = bytes.fromhex(said.config or "")
        writable = self._device is not None and self._device.name == "blk" and not int(features) & _READ_ONLY
        sectors = int.from_bytes(config[:8], "little") if writable else 0
        self._offered = Offered(features, protocol, 1 if said.queues is None else said.queues, len(config), sectors)
        name = self._device.name if self._device is not None else None
        found = (*rings.kinds(self._offered, name), *messages.kinds(self._offered))
        self._kinds = {kind.name: kind for kind in found}
        if self._reference is not None:
            self._reference.prepare()
        return []

    def kinds(self) -> list[Kind[Encounter]]:
        """The steps that it can be asked for; none where it does not answer."""
        return list(self._kinds.values())

    def facts(self) -> dict[str, str]:
        """What it serves, as far as that was said."""
        return {"device": self._device.name if self._device is not None else "", "level": self._level}

    def renew(self) -> None:
        """Have a fresh back-end for the next sequence, where it is ours to start."""
        self._end()
        self._target.renew()
        self._target.crashed()
        self._blocks.clear()
        if self._reference is not None:
            self._reference.renew()

    def play(self, steps: Sequence[Step]) -> Found | None:
        """Play a sequence, and ask every oracle; what went wrong first. Without a step it is probed, no more."""
        if not steps:
            return next(iter(self.prepare()), None)
        self.journal = []
        found = self._played(steps)
        if found is not None or self._reference is None:
            return found
        if self._reference.play(steps) is not None:
            self._reference.renew()
            return None  # the reference is wrong by itself, and says nothing
        return compared(REFERENCE, self.journal, self._reference.journal, ignored=self._ignored)

    def _played(self, steps: Sequence[Step]) -> Found | None:
        name, begun = "begin", 0
        try:
            encounter = self._encounter or self._begun()
            encounter.journal = self.journal
            for step in steps:
                name, begun = step.name, begun + 1
                kind = self._kinds.get(name)
                if kind is not None and kind.takes(step):
                    self._step(encounter, kind, step)
            name = "end"
            self._finish(encounter)
            if (crash := self._target.crashed()) is not None:  # another is in its place
                self._end()
                raise silence_of(ALIVE, name, crash.text)
        except Found as found:
            self._end()
            return found.at(begun)
        except (BackEndError, CheckFailed, UserError) as error:
            return self._find_of(name, error).at(begun)
        return None

    @staticmethod
    def _step(encounter: Encounter, kind: Kind[Encounter], step: Step) -> None:
        try:
            kind.play(encounter, **dict(step.arguments))
        except Tolerated:
            encounter.rejoin()

    def _begun(self) -> Encounter:
        assert self._offered is not None
        self._encounter = Encounter(
            self._target, self._device, self._timeout, self._offered, blocks=self._blocks, level=self._level
        )
        self._watched.note(self._target.pid, self._encounter.front_end.settle)
        return self._encounter

    def _find_of(self, name: str, error: UserdevError) -> Found:
        """What an error of the back-end's is, at the step of this name."""
        self._end()
        what = f"{name}: {error}"
        if isinstance(error, (Disconnected, NoAnswer, UserError)):
            self._target.settle()
            crash = self._target.crashed()
            return silence_of(ALIVE, what, crash.text if crash is not None else "")
        return Found(RINGS if isinstance(error, BrokenQueue) else REPLIES, cause_of(what), what)

    def _finish(self, encounter: Encounter) -> None:
        """Ask what has to hold behind any sequence, and be the next front-end."""
        if encounter.running:
            rings.serve(encounter, 1, 0, 0)
            rings.stop(encounter)
        encounter.rejoin()
        offered = encounter.front_end.offered
        if (offered.features, offered.protocol_features) != (
            encounter.offered.features,
            encounter.offered.protocol_features,
        ):
            raise Found(OFFER, "next", "the next front-end is offered other features")
        self._watched.check_again(self._target.pid, encounter.front_end.settle)

    def _end(self) -> None:
        if self._encounter is not None:
            self._encounter.leave()
            self._encounter = None

    def close(self) -> None:
        """Give everything back."""
        self._end()
        if self._reference is not None:
            self._reference.close()
