"""Real vhost-user back-ends, each started for a test, and front-ends that are connected to them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.user_namespaces import skip_where_refused
from userdev.process import Child, await_listening
from vfio_user.harness.scratch import Scratch
from vfio_user.harness.vhost_user_peers import install_peer
from vhost_user.frontend import FEATURES, PROTOCOL_FEATURES, FrontEnd, GuestMemory
from vhost_user.wire import ProtocolFeature, VirtioFeature

START_SECONDS = 60.0
END_SECONDS = 0.3
"""They end at once when they are told to, but for DPDK's, which lets go of everything one by one."""

NEWER = ("forky",)
"""Debian's suite of newer ones, for the night."""

BACK_ENDS = ("qemu-storage-daemon", "virtiofsd", "passt", "vhost-device-vsock", "dpdk-net-vhost")


@dataclass(frozen=True)
class RunningPeer:
    """A back-end that listens at `socket`; what it has beside that is in `files`."""

    version: str
    suites: tuple[str, ...] | None
    child: Child
    socket: Path
    files: Path

    @contextmanager
    def front_end(
        self,
        features: VirtioFeature = FEATURES,
        protocol: ProtocolFeature = PROTOCOL_FEATURES,
        *,
        memory: GuestMemory | None = None,
    ) -> Iterator[FrontEnd]:
        """A front-end that has negotiated those of these features that there are."""
        with FrontEnd(str(self.socket), memory=memory) as front_end:
            front_end.negotiate(features, protocol)
            yield front_end

    def another(self) -> AbstractContextManager[RunningPeer]:
        """One more of them."""
        return running_peer(self.child.name, self.suites)


def of(*names: str) -> pytest.MarkDecorator:
    """Say which back-ends a test is of: as the usual suites have them, and at night newer ones too."""
    usual = [pytest.param((name, None), id=name) for name in names]
    newer = [pytest.param((name, NEWER), id=f"{name}-newer", marks=pytest.mark.nightly) for name in names]
    return pytest.mark.parametrize("peer", usual + newer, indirect=True)


def skip_what_is_refused(name: str) -> None:
    """Skip a test of a back-end that the kernel does not let run here."""
    if name == "passt":
        skip_where_refused(name)


@contextmanager
def running_peer(name: str, suites: tuple[str, ...] | None = None) -> Iterator[RunningPeer]:
    """One of `BACK_ENDS`, of these suites of Debian's where they are given."""
    skip_what_is_refused(name)
    peer = install_peer(name, suites=suites)
    with Scratch() as scratch:
        socket = scratch.socket_path("s")
        child = Child(name, [str(peer.script), str(socket)], log=scratch.path / "log", environment=scratch.environment)
        try:
            assert await_listening(socket, child.end, START_SECONDS), f"{name} {child.fate()}:\n{child.last_words()}"
            yield RunningPeer(peer.version, suites, child, socket, Path(f"{socket}.d"))
        finally:
            child.stop(END_SECONDS)
