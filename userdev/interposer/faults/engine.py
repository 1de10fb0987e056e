"""Decides what becomes of a message: sans-IO, so that the same messages and the same seed give the same plans."""

from __future__ import annotations

import math
import random
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic

from userdev.interposer.faults import scenario as script
from userdev.interposer.faults.use import RuleUse, rule_name
from userdev.interposer.passing import M
from userdev.relay.direction import Direction
from userdev.trace import Decoded


@dataclass
class FaultPlan(Generic[M]):
    """The plan for one message."""

    data: bytes
    """What of it goes on; nothing at all where this is empty."""
    rules: list[str] = field(default_factory=list)
    """Names of the rules that matched, for trace and counters."""
    acts: list[str] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)
    """Acts of one rule that those of another left nothing to do to, and why."""
    keep_fds: list[int] | None = None
    """Indexes of the message's descriptors to send; None: all."""
    extra_fds: int = 0
    copies: int = 1
    delay: float = 0.0
    overtake: bool = False
    reorder: script.Reorder | None = None
    pauses: dict[int, float] = field(default_factory=dict)
    """Offset in `data`: seconds before what is there is sent; infinity: it never is, nor what is behind."""
    says_size: bool = False
    """Whether its header has a size that was asked for."""
    hold: bool = False
    """Whether it waits until somebody lets the session go on."""
    reply: M | None = None
    """To be sent back to where the message came from."""
    closes: list[script.Close] = field(default_factory=list)
    signals: list[script.Signal] = field(default_factory=list)

    @property
    def pieces(self) -> list[tuple[float, bytes]]:
        """What is sent one after the other, with the seconds before each; a last one that is empty is only waited
        for.
        """
        cuts = sorted((min(at, len(self.data)), seconds) for at, seconds in self.pauses.items())
        pieces, begun, pause = [], 0, 0.0
        for at, seconds in cuts:
            if at > begun:
                pieces.append((pause, self.data[begun:at]))
                begun, pause = at, 0.0
            pause += seconds
        return pieces if pause == math.inf else [*pieces, (pause, self.data[begun:])]

    @property
    def is_endless(self) -> bool:
        """Whether nothing is ever sent behind it."""
        return math.inf in self.pauses.values()

    @property
    def only_closes(self) -> bool:
        """Whether nothing is done to the message itself, which finds the way closed or not."""
        return set(self.acts) <= {"close", "signal"}

    def leaves(self, message: M) -> bool:
        """Whether the message is as it came, with its descriptors."""
        kept = self.keep_fds is None or len(self.keep_fds) == len(message.fds)
        return kept and self.data == message.encode()


CHANGES = frozenset({"corrupt", "truncate", "wrong-size", "wrong-id", "missing-fd"})
"""Acts that change what is in a message, where that has what they change."""
Act = Callable[[Any, Any, Any, Any, random.Random], None]
"""An engine's doing: of a plan, what the scenario says, of a message."""


class FaultEngine(ABC, Generic[M]):
    """Applies a scenario to the messages of one session, in the order they come. A protocol's says what is in them."""

    header_size: ClassVar[int]
    size_at: ClassVar[int]
    """Where the header has the message's size, 4 bytes in the machine's order."""
    size_counts_header: ClassVar[bool]

    def __init__(self, scenario: script.AnyScenario) -> None:
        self._rules = scenario.rules
        self._counts = [RuleUse() for _ in scenario.rules]
        self._uses = scenario.uses
        # One source of chance per rule: what one rule draws does not depend on what another has matched.
        self._chances = [random.Random(f"{scenario.seed}:{number}") for number in range(len(scenario.rules))]

    # what a protocol says

    @abstractmethod
    def decode(self, direction: Direction, message: M) -> Decoded:
        """What a message says; each is shown once, in the order they come."""

    @abstractmethod
    def place_of(self, message: M, name: str) -> tuple[int, int] | None:
        """Offset in the message, and width, of the field of that name; None where the message has none."""

    @abstractmethod
    def refusal(self, message: M, errno: int) -> M | None:
        """What answers a request with an error; None where it is not answered."""

    @abstractmethod
    def as_message(self, data: bytes) -> M | None:
        """The message that these bytes are, if they are exactly one."""

    # what becomes of a message

    def plan(self, direction: Direction, message: M, state: str, seconds: float) -> FaultPlan[M] | None:
        """Plan what becomes of `message`; None: it goes on as it is.

        state: the session's. seconds: since the session began.
        """
        decoded = self.decode(direction, message)
        plan: FaultPlan[M] | None = None
        for number, rule in enumerate(self._rules):
            if not self._applies(number, rule, direction, decoded, state, seconds):
                continue
            plan = plan or FaultPlan(message.encode())
            name = rule_name(number, rule.name)
            plan.rules.append(name)
            done = set[str]()
            for act in rule.act:
                if why := script.clash(act.name, plan.acts):
                    plan.left_out.append(f"{name}: {why}")
                    continue
                plan.acts.append(act.name)
                done.add(act.name)
                self.acts[act.name](self, plan, act.what, message, self._chances[number])
            if done and done <= CHANGES and plan.leaves(message):
                plan.left_out.append(f"{name}: the message has nothing of what it changes, or has it so already")
                self._uses[number].in_vain += 1
            else:
                self._uses[number].acted += 1
        return plan

    def _applies(
        self,
        number: int,
        rule: script.Rule[Any, Any],
        direction: Direction,
        decoded: Decoded,
        state: str,
        seconds: float,
    ) -> bool:
        match, count, use = rule.match, self._counts[number], self._uses[number]
        if not match.fits(direction, decoded, state, seconds):
            return False
        count.matched += 1
        use.matched += 1
        if not match.includes(count.matched) or (rule.times is not None and count.acted >= rule.times):
            return False
        if match.probability < 1 and self._chances[number].random() >= match.probability:
            return False
        count.acted += 1
        return True

    # the acts: each changes the plan

    def _drop(self, plan: FaultPlan[M], act: Any, message: M, chance: random.Random) -> None:
        plan.data = b""

    def _delay(self, plan: FaultPlan[M], act: script.Delay, message: M, chance: random.Random) -> None:
        plan.delay += act.seconds + (chance.uniform(0, act.jitter) if act.jitter else 0.0)
        plan.overtake = plan.overtake or act.overtake

    def _duplicate(self, plan: FaultPlan[M], act: script.Duplicate, message: M, chance: random.Random) -> None:
        plan.copies += act.times

    def _reorder(self, plan: FaultPlan[M], act: script.Reorder, message: M, chance: random.Random) -> None:
        plan.reorder = act

    def _corrupt(self, plan: FaultPlan[M], act: script.Corrupt, message: M, chance: random.Random) -> None:
        offset, width = self._place(act, message, len(plan.data))
        old = plan.data[offset : offset + width]
        self._put(plan, offset, _corrupted(act, old, chance))
        plan.says_size |= offset < self.size_at + 4 and self.size_at < offset + len(old)

    def _truncate(self, plan: FaultPlan[M], act: script.Truncate, message: M, chance: random.Random) -> None:
        plan.data = plan.data[: act.to]
        if act.size == "adjust" and not plan.says_size and len(plan.data) >= self.header_size:
            counted = 0 if self.size_counts_header else self.header_size
            self._say_size(plan, len(plan.data) - counted)

    def _wrong_size(self, plan: FaultPlan[M], act: script.WrongSize, message: M, chance: random.Random) -> None:
        told = int.from_bytes(plan.data[self.size_at : self.size_at + 4], sys.byteorder)
        self._say_size(plan, act.size if act.size is not None else max(0, told + (act.by or 0)))
        plan.says_size = True

    def _say_size(self, plan: FaultPlan[M], size: int) -> None:
        self._put(plan, self.size_at, (size & 0xFFFFFFFF).to_bytes(4, sys.byteorder))

    def _put(self, plan: FaultPlan[M], offset: int, data: bytes) -> None:
        """Have the message say this there, where it goes as far as that."""
        if offset + len(data) <= len(plan.data):
            plan.data = plan.data[:offset] + data + plan.data[offset + len(data) :]

    def _extra_fd(self, plan: FaultPlan[M], act: script.ExtraFd, message: M, chance: random.Random) -> None:
        plan.extra_fds += act.count

    def _missing_fd(self, plan: FaultPlan[M], act: script.MissingFd, message: M, chance: random.Random) -> None:
        left = plan.keep_fds if plan.keep_fds is not None else list(range(len(message.fds)))
        plan.keep_fds = [] if act.index is None else [index for index in left if index != act.index]

    def _reply(self, plan: FaultPlan[M], act: script.ErrorReply, message: M, chance: random.Random) -> None:
        plan.reply = self.refusal(message, act.errno)
        plan.data = b""

    def _stall(self, plan: FaultPlan[M], act: script.Stall, message: M, chance: random.Random) -> None:
        self._pause(plan, self.header_size, act.seconds if act.seconds is not None else math.inf)

    def _split(self, plan: FaultPlan[M], act: script.Split, message: M, chance: random.Random) -> None:
        self._pause(plan, act.at, act.seconds)

    def _pause(self, plan: FaultPlan[M], at: int, seconds: float) -> None:
        plan.pauses[at] = plan.pauses.get(at, 0.0) + seconds

    def _close(self, plan: FaultPlan[M], act: script.Close, message: M, chance: random.Random) -> None:
        plan.closes.append(act)

    def _signal(self, plan: FaultPlan[M], act: script.Signal, message: M, chance: random.Random) -> None:
        plan.signals.append(act)

    def _hold(self, plan: FaultPlan[M], act: script.Hold, message: M, chance: random.Random) -> None:
        plan.hold = True

    def _place(self, act: script.Corrupt, message: M, size: int) -> tuple[int, int]:
        """Offset and width of what is to be corrupted; an empty place where the message does not have it."""
        if act.at is not None:
            wanted = len(act.bytes) if act.bytes is not None else 1
            return min(act.at, size), wanted
        found = self.place_of(message, act.field or "")
        return found if found is not None and sum(found) <= size else (size, 0)

    acts: ClassVar[Mapping[str, Act]] = {
        "drop": _drop,
        "delay": _delay,
        "duplicate": _duplicate,
        "reorder": _reorder,
        "corrupt": _corrupt,
        "truncate": _truncate,
        "wrong-size": _wrong_size,
        "extra-fd": _extra_fd,
        "missing-fd": _missing_fd,
        "reply": _reply,
        "stall-after-header": _stall,
        "split-header": _split,
        "close": _close,
        "signal": _signal,
        "hold": _hold,
    }


def _corrupted(act: script.Corrupt, old: bytes, chance: random.Random) -> bytes:
    """As many bytes as there were."""
    width = len(old)
    if act.bytes is not None:
        return (act.bytes + old[len(act.bytes) :])[:width]
    number = int.from_bytes(old, "little")
    if act.value is not None:
        number = act.value
    elif act.xor is not None:
        number ^= act.xor
    else:
        number ^= chance.randrange(1, 1 << 8 * width) if width else 0
    return (number & (1 << 8 * width) - 1).to_bytes(width, "little")
