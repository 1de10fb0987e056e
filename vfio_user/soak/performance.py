"""One event done to a guest: work that ends by it ends, it happens, and then all is looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any

from userdev.errors import UserdevError
from vfio_user.harness import Cell, Lab
from vfio_user.harness.hosts.host import HostFailure, blamed_if_lost
from vfio_user.harness.migration.report import NO_PAGES
from vfio_user.soak.acts import Facts
from vfio_user.soak.events import EVENTS, Event
from vfio_user.soak.failed import Failed
from vfio_user.soak.guest import Scene, SoakedSpec, scene_of
from vfio_user.soak.loop import Begin
from vfio_user.soak.measuring import sizes
from vfio_user.soak.order import HOP, Happening
from vfio_user.soak.raised import Raised


class Performance:
    """What can happen to the guest of a scene, and its happening."""

    def __init__(self, scene: Scene, seed: int) -> None:
        self._scene = scene
        self._seed = seed
        self._raised = Raised()
        self.possible: dict[str, list[str]] = {}
        """Events, and the devices that each can be done to; "" is the guest."""
        self.left_out: dict[str, str] = {}
        """What cannot, and why."""
        for name, event in EVENTS.items():
            self._sort(name, event)

    def _sort(self, name: str, event: Event) -> None:
        lacking = {device.name: event.lacks(self._scene, device) for device in self._scene.devices}
        able = [device for device, lack in lacking.items() if not lack]
        if event.of_guest:
            able = [""] if len(able) == len(lacking) else []
        if able:
            self.possible[name] = able
        self.left_out |= {f"{name} {device}": lack for device, lack in lacking.items() if lack}

    def do(self, happening: Happening, then: Happening | None = None) -> dict[str, Any]:
        """Have it happen; what was measured: `seconds` of it, `whole` with all that is looked at, and `sizes`.

        `then` is what happens next.

        Raises:
            Failed: something was lost.
            HostFailure: a host could not do its part.
        """
        self._scene.comes_back = then is not None and then.event == HOP
        with self._told():
            return self._do(EVENTS[happening.event], happening)

    def _do(self, event: Event, happening: Happening) -> dict[str, Any]:
        scene, began = self._scene, time.monotonic()
        touched = scene.devices if event.of_guest else [scene.device(happening.target)]
        ended = [device for device in touched if event.ends_work(device)]
        keeping = [device for device in touched if device.has_kept] if event.keeps else []
        for device in ended:
            scene.end_work(device)
        for device in keeping:
            scene.keep(device, f"{self._seed}/{happening.number}")
        at = time.monotonic()
        facts = event.act(scene, touched[0], happening.chance)
        seconds = time.monotonic() - at
        if event.boots:
            scene.came_up()
        for device in keeping:
            scene.find_kept(device)
        for device in ended:
            scene.begin_work(device)
        _verify(scene, facts)
        whole = time.monotonic() - began
        return {**facts, "seconds": round(seconds, 3), "whole": round(whole, 3), **sizes(scene.guest)}

    def raised(self) -> list[str]:
        """What the servers of this guest's devices have raised since this was asked last, in sentences."""
        return self._raised.told_by(self._scene.lab.records.children)

    def finish(self) -> None:
        """End the work of all devices, and judge it.

        Raises:
            Failed: something of it was wrong.
            HostFailure: a host is not reached any more.
        """
        with self._told():
            for device in self._scene.devices:
                self._scene.end_work(device)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """A block whose errors are one of the two that end a guest."""
        try:
            with blamed_if_lost(self._scene.lab, self._scene.pair.a, self._scene.pair.b):
                yield
        except HostFailure:
            raise
        except UserdevError as error:
            raise Failed.of(error) from error


def _verify(scene: Scene, facts: Facts) -> None:
    """Look at the guest and its work; of a hop whose devices told of no page that is said before what is wrong then."""
    try:
        scene.verify()
    except Failed as failed:
        if facts.get("dirty_pages") != 0:
            raise
        raise Failed(failed.check, f"{NO_PAGES}; {failed.detail}", evidence=failed.evidence) from failed


class Recorded(Enum):
    """The guests of a soak of which an interposer records every message."""

    NONE = "none"
    REPEATED = "repeated"
    """Those that try the events of a failure again."""
    ALL = "all"


def performances(
    spec: SoakedSpec, seed: int, qemu: str | None, tell: Callable[[str], None], record: Recorded = Recorded.NONE
) -> Begin:
    """Fresh guests of a soak, each with a folder of its own for its evidence.

    Of those that are begun as `recorded`, events of a failure are tried again.
    """

    @contextmanager
    def begin(folder: Path, *, recorded: bool = False) -> Iterator[Performance]:
        trace = record is Recorded.ALL or (record is Recorded.REPEATED and recorded)
        cell = Cell(trace=trace, capture_dma=spec.capture_dma)
        with Lab("soak", folder=folder, qemu=qemu, cell=cell, progress=tell) as lab, scene_of(spec, lab) as scene:
            yield Performance(scene, seed)

    return begin
