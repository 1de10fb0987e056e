"""An interposer's control socket from the other end: `userdev.control.ControlClient`, with its answers typed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeVar, overload

from userdev.control import ControlClient, ControlError
from userdev.interposer.control.answers import Done, Released, Rules, Signalled
from vfio_user.interposer.control import answers

T = TypeVar("T")


class InterposerControl(ControlClient):
    """A connection to an interposer; `control.commands` has what can be asked."""

    @overload
    def call(self, command: Literal["status"]) -> answers.InterposerStatus: ...
    @overload
    def call(self, command: Literal["session"]) -> answers.SessionShown: ...
    @overload
    def call(self, command: Literal["request"], *, fds: Sequence[int] = (), **parameters: Any) -> answers.Replied: ...
    @overload
    def call(self, command: Literal["migration_support"]) -> answers.Supports: ...
    @overload
    def call(self, command: Literal["migration_state"], **parameters: Any) -> answers.MigrationStateTold: ...
    @overload
    def call(
        self, command: Literal["mig_data_read"], *, fds: Sequence[int] = (), **parameters: Any
    ) -> answers.StateRead: ...
    @overload
    def call(
        self, command: Literal["mig_data_write"], *, fds: Sequence[int] = (), behind: bytes = b"", **parameters: Any
    ) -> answers.Written: ...
    @overload
    def call(self, command: Literal["dma_write"], **parameters: Any) -> answers.Written: ...
    @overload
    def call(self, command: Literal["dma_logging_report"], **parameters: Any) -> answers.DirtyReport: ...
    @overload
    def call(self, command: Literal["dma_logging_resend"], **parameters: Any) -> answers.Resent: ...
    @overload
    def call(self, command: Literal["resume"]) -> Released: ...
    @overload
    def call(self, command: Literal["restart"], **parameters: Any) -> answers.Restarted: ...
    @overload
    def call(self, command: Literal["faults"], **parameters: Any) -> Rules: ...
    @overload
    def call(self, command: Literal["signal"], **parameters: Any) -> Signalled: ...
    @overload
    def call(self, command: answers.DataCommand, **parameters: Any) -> answers.Data: ...
    @overload
    def call(self, command: answers.SilentCommand, **parameters: Any) -> Done: ...
    @overload
    def call(self, command: str, *, fds: Sequence[int] = (), behind: bytes = b"", **parameters: Any) -> Any: ...

    def call(self, command: str, *, fds: Sequence[int] = (), behind: bytes = b"", **parameters: Any) -> Any:
        """Call a command, as `ControlClient.call`, with the result's type."""
        return super().call(command, fds=fds, behind=behind, **parameters)

    def survival(self) -> answers.SurvivalStatus:
        """The counts and the state of survival.

        Raises:
            ControlError: there is no session, or nobody keeps it alive.
        """
        return _there(self.call("status")["survival"], "no session is kept alive")

    def session_status(self) -> answers.SessionStatus:
        """The session under way.

        Raises:
            ControlError: there is none.
        """
        return _there(self.call("status")["session"], "no client is connected")

    def server_pid(self) -> int:
        """The server's process.

        Raises:
            ControlError: it is not known.
        """
        return _there(self.call("status")["server_pid"], "the server's process is not known")


def _there(found: T | None, why: str) -> T:
    if found is None:
        raise ControlError(f"status: {why}")
    return found
