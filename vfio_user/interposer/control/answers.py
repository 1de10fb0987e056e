"""What each command of a vfio-user interposer's control socket is answered with. Bytes are base64, but for `raw`."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from userdev.interposer.control.answers import ByDirection, TraceStatus
from userdev.interposer.faults.use import RuleShown


class CountersStatus(TypedDict):
    """The counters of a session so far."""

    messages: ByDirection
    bytes: ByDirection
    unframed: int
    unframed_by_client: int
    own_requests: int
    held: int
    faults: int


class SurvivalStatus(TypedDict):
    """The counts and the state of survival; see `survival.SurvivalCounts`."""

    crashes: int
    restarts: int
    hangs: int
    replayed: int
    failed: int
    kicked: int
    last_seconds: float
    recovering: bool
    unanswered: int


class SessionStatus(TypedDict):
    """The session under way."""

    state: str
    migration_state: str
    client_migrates: bool
    holding: bool
    held: int
    counters: CountersStatus
    waiting: ByDirection
    """Requests without a reply."""


class InterposerStatus(TypedDict):
    """The result of `status`."""

    sessions: int
    server_pid: int | None
    dialect: str
    trace: TraceStatus | None
    rules: list[RuleShown]
    """Of the scenario that happens, over all sessions so far."""
    survival: SurvivalStatus | None
    session: SessionStatus | None


class MapShown(TypedDict):
    """A range of guest memory; `inode` of the file that the client gave for it."""

    iova: int
    size: int
    flags: int
    offset: int
    inode: int | None


class RegionShown(TypedDict):
    """A region as the client was told of it."""

    index: int
    size: int
    flags: int


class ConfigWrite(TypedDict):
    """A write to config space; `data` is hexadecimal."""

    offset: int
    data: str


class SessionShown(TypedDict):
    """The result of `session`."""

    state: str
    migration_state: str
    client_migrates: bool
    resets: int
    maps: list[MapShown]
    irqs: dict[int, list[int]]
    """By index: the vectors that have an eventfd. In JSON the index is a string."""
    regions: list[RegionShown]
    config_writes: list[ConfigWrite]


class Replied(TypedDict):
    """The result of `request`."""

    flags: int
    errno: int
    payload: str


class Data(TypedDict):
    """The result of `device_feature`, `region_read` and `memory_read`."""

    data: str


class Supports(TypedDict):
    """The result of `migration_support`."""

    supports: list[str]


class MigrationStateTold(TypedDict):
    """The result of `migration_state`."""

    state: str


class StateRead(TypedDict):
    """The result of `mig_data_read`; `complete`: the server reported the end."""

    bytes: int
    messages: int
    complete: bool
    data: NotRequired[str]
    raw: NotRequired[bytes]


class Written(TypedDict):
    """The result of `mig_data_write` and `dma_write`."""

    bytes: int
    messages: int


class RunShown(TypedDict):
    """A piece of guest memory."""

    iova: int
    size: int


class Bitmap(RunShown):
    """The dirty bitmap of one."""

    bitmap: str


class DirtyReport(TypedDict):
    """The result of `dma_logging_report`."""

    runs: list[RunShown]
    bytes: int
    bitmaps: NotRequired[list[Bitmap]]


class Resent(TypedDict):
    """The result of `dma_logging_resend`: how many pages, and offsets in the memory file of those mapped nowhere."""

    pages: int
    unmapped: list[int]


class Restarted(TypedDict):
    """The result of `restart`."""

    seconds: float
    handed_over: bool


DataCommand = Literal["device_feature", "region_read", "memory_read"]
SilentCommand = Literal["dma_logging_start", "dma_logging_stop", "region_write", "hold", "cut", "mark", "stop"]
