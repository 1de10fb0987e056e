"""What ends a guest of a soak, beside a `HostFailure`: that something was lost."""

from __future__ import annotations

from userdev.errors import UserdevError, VerdictError


class Failed(VerdictError):
    """Something was lost. `check` says what was looked at, the same for the same fault; `detail` what was seen."""

    def __init__(self, check: str, detail: str, *, evidence: str = "") -> None:
        super().__init__(f"{check}: {detail}", evidence=evidence)
        self.check = check
        self.detail = detail

    @classmethod
    def of(cls, error: UserdevError) -> Failed:
        """The same of an error that no check has raised: once the guest works, nothing has to fail."""
        if isinstance(error, cls):
            return error
        evidence = getattr(error, "evidence", "") or getattr(error, "hint", "")
        return cls(type(error).__name__, str(error), evidence=evidence)
