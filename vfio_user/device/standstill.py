"""Standing still: who needs the device to, whether it does, and when it may go on.

Commands that change memory or state, a guest's resets, migration and the time without a client each take a `Hold`. The
first has the device asked (`PciDevice.on_quiesce`), the others share the answer, and when the last has let go the
device is told (`on_resume`): once for each time that it was asked and did not refuse.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from contextlib import ExitStack

from userdev.errors import AUTHORS_FAILURES, ProtocolError
from vfio_user.device.lifecycle import Quiesce

log = logging.getLogger("vfio_user.device")

Work = Callable[[], None]


class Hold:
    """The need of one for the device to stand still, until it is released."""

    def __init__(self, release: Callable[[Hold], None]) -> None:
        self.settled = False
        """The device has answered: it stands still, or `refusal` says why not."""
        self.refusal: BaseException | None = None
        self._release = release
        self._then: Work | None = None

    def then(self, call: Work | None) -> None:
        """Call when this is settled, where handlers run; at once if it is already. None: nothing, after all."""
        if self.settled and call is not None:
            call()
        else:
            self._then = call

    def check(self) -> None:
        """Raise the refusal, and ProtocolError (EBUSY) while there is no answer."""
        if self.refusal is not None:
            raise self.refusal
        if not self.settled:
            raise ProtocolError("the device does not stand still yet", errno.EBUSY)

    def say_refusal(self, when: str) -> None:
        """For who cannot be refused: log that the device did not stand still; its author's mistake with the place."""
        if self.refusal is not None:
            mistake = None if isinstance(self.refusal, ProtocolError) else self.refusal
            log.warning("%s, although the device refused to stand still: %s", when, self.refusal, exc_info=mistake)

    def settle(self, refusal: BaseException | None = None) -> None:
        """Note the device's answer, and call what was to come `then`."""
        self.settled, self.refusal = True, refusal
        if self._then is not None:
            self._then()

    def release(self) -> None:
        """Let go; the device goes on if nobody else holds it. Raises what `on_resume` does."""
        self._release(self)


class Standstill:
    """Asks one device to stand still, and lets it go on. Called where handlers run, but for `post`."""

    def __init__(
        self, name: str, ask: Callable[[], Quiesce | None], go_on: Callable[[], None], post: Callable[[Work], None]
    ) -> None:
        """`name` is the device's, for the log; `ask` and `go_on` are the author's hooks; `post` runs work where
        handlers run, from any thread.
        """
        self._name = name
        self._ask = ask
        self._go_on = go_on
        self._post = post
        self._holds: list[Hold] = []
        self._awaited: Quiesce | None = None
        self._still = False

    def hold(self) -> Hold:
        """Have the device stand still until this is released. What `on_quiesce` raises is the hold's refusal."""
        hold = Hold(self._release)
        self._holds.append(hold)
        if self._still:
            hold.settle()
        elif self._awaited is None:
            self._begin()
        return hold

    def give_up(self) -> None:
        """Wait no longer: take it that the device stands still, as its client has gone."""
        if self._awaited is not None:
            log.warning("%s does not stand still, and is not waited for any more: its client has gone", self._name)
            self._settle(None)

    def _begin(self) -> None:
        try:
            answer = self._ask()
        except AUTHORS_FAILURES as error:
            self._settle(error)
            return
        if answer is None or answer.finished:
            self._settle(_refusal(answer))
        else:
            self._awaited = answer
            answer.then(lambda: self._post(lambda: self._answered(answer)))

    def _answered(self, answer: Quiesce) -> None:
        if answer is self._awaited:  # and not one that was given up
            self._settle(_refusal(answer))

    def _settle(self, refusal: BaseException | None) -> None:
        """Tell everybody, in the order of their coming: a reset that a guest asked for comes before a later stop."""
        self._awaited = None
        self._still = refusal is None
        holds = list(self._holds)
        if refusal is not None:
            self._holds.clear()
        with ExitStack() as told:  # all of them, whatever one raises; from the last to the first
            told.callback(self._go_on_if_free)  # all may have let go meanwhile
            for hold in reversed(holds):
                told.callback(hold.settle, refusal)

    def _release(self, hold: Hold) -> None:
        if hold in self._holds:
            self._holds.remove(hold)
            self._go_on_if_free()

    def _go_on_if_free(self) -> None:
        if self._still and not self._holds:
            self._still = False
            self._go_on()


def _refusal(answer: Quiesce | None) -> Exception | None:
    return ProtocolError("the device cannot stand still", answer.errno) if answer and answer.errno else None
