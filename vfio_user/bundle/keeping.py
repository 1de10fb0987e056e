"""Keeping a bundle of what goes on in a block: always, or only where something fails."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from userdev.errors import UserError, VerdictError
from vfio_user.bundle.made_with import named_files, recorded, scenario_seeds
from vfio_user.bundle.model import Outcome, Recipe, Seen, Verdict
from vfio_user.bundle.packing import USUAL_MIB, checked_place, pack
from vfio_user.bundle.secrets import Secrets
from vfio_user.harness.artifacts import from_here
from vfio_user.harness.evidence import cause_of

AUTO = "auto"
"""For --bundle: only where something fails, among the results."""

ALWAYS = "always"
"""Among the results too, whatever comes of it."""

IN_RESULTS = "bundle"
"""The folder's name there."""


_VERDICTS = (VerdictError, AssertionError)
"""A test says by the second what it found wrong."""


class Keeping:
    """A block of which a bundle is kept. A context manager.

    `wanted` says where: "" for none, `AUTO`, `ALWAYS`, or a folder. `recipe` is what does it again, as far as the
    command line says; the rest is found among the results.
    """

    def __init__(
        self,
        wanted: str,
        recipe: Recipe,
        *,
        of: str,
        inputs: Mapping[str, Path] | None = None,
        most: int = USUAL_MIB << 20,
    ) -> None:
        """Look at the place.

        Raises:
            UserError: something is there already.
        """
        self.recipe = recipe
        self.folder: Path | None = None
        """Where the results are; the block says so once it knows."""
        self.failure: BaseException | None = None
        """What went wrong, where no exception leaves the block for it."""
        self.place: Path | None = None
        """Where the bundle is, once it was made."""
        self.saw: list[Seen] = []
        self.wanted = wanted
        """Where it is to be, as above."""
        self._of, self._most = of, most
        self._inputs = dict(inputs or {})
        if wanted not in ("", AUTO, ALWAYS):
            checked_place(Path(wanted))

    @property
    def is_wanted(self) -> bool:
        """Whether there may be a bundle, for which everything has to be recorded."""
        return bool(self.wanted)

    def looked_at(self, what: str, *, ok: bool, seen: str = "") -> None:
        """Remember what the guest saw."""
        self.saw.append(Seen(what=what, ok=ok, seen=seen))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wrong = error or self.failure
        if (
            self.folder is None
            or not self.folder.is_dir()
            or not self.is_wanted
            or not isinstance(wrong, Exception | None)
        ):
            return
        if wrong is None and self.wanted == AUTO:
            return
        try:
            place = self.make(self.folder, outcome_of(self.folder, wrong, self.saw))
        except (OSError, UserError) as unmade:
            if wrong is None:
                raise
            wrong.add_note(f"there is no bundle: {unmade}")
        else:
            if wrong is not None:
                wrong.add_note(mention(place))

    def make(self, folder: Path, outcome: Outcome, place: Path | None = None) -> Path:
        """Make the bundle of the results in `folder`; where it is.

        Raises:
            UserError, OSError: it cannot be made.
        """
        if place is None:
            place = _free(folder / IN_RESULTS) if self.wanted in (AUTO, ALWAYS) else Path(self.wanted)
        scenarios = [*self._inputs.values(), *folder.glob("*.faults.yaml")]
        found = {
            **recorded(folder),
            "files": named_files(self.recipe.arguments),
            "seeds": {**scenario_seeds(scenarios), **self.recipe.seeds},
        }
        recipe = self.recipe.model_copy(update=found)
        commands = [self.recipe.arguments, *(program.command for program in recipe.programs)]
        pack(
            folder, place, recipe, outcome, of=self._of, inputs=self._inputs, secrets=Secrets(commands), most=self._most
        )
        self.place = place
        return place


def mention(place: Path) -> str:
    """Where a bundle is and what it is good for, a line for people."""
    return f"bundle: {from_here(place)}; `vfio-user repro` does it again"


def _free(place: Path) -> Path:
    """The place, or the first beside it where nothing is: a test may have several labs."""
    numbered = (place.with_name(f"{place.name}-{number}") for number in itertools.count(2))
    return next(each for each in itertools.chain([place], numbered) if not each.exists())


def outcome_of(folder: Path, wrong: BaseException | None, saw: list[Seen]) -> Outcome:
    """What came of a run: its first cause is that of the evidence, where there is some."""
    verdict: Verdict = "PASS" if wrong is None else "FAIL" if isinstance(wrong, _VERDICTS) else "ERROR"
    cause = (cause_of(folder) or str(wrong)) if wrong is not None else ""
    return Outcome(verdict=verdict, cause=cause, saw=tuple(saw))
