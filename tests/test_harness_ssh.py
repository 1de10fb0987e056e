"""A guest behind its SSH server: what is made of what the server says of a command."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from tests.cases import for_each_row
from vfio_user.harness.ssh import _SshJob


class Ended:
    """The channel of a command that has ended, with this status."""

    def __init__(self, status: int) -> None:
        self.recv_exit_status = lambda: status
        self.status_event = threading.Event()

    def exit_status_ready(self) -> bool:
        return True

    def recv_ready(self) -> bool:
        return False

    recv_stderr_ready = recv_ready

    def close(self) -> None:
        pass


@for_each_row([(0, 0), (1, 1), (127, 127), (128, 128), (129, -1), (137, -9), (192, -64), (255, 255)])
def test_the_status_of_a_shell_is_a_signal_where_there_is_one_of_that_number(status: int, exit_code: int) -> None:
    guest: Any = SimpleNamespace(is_connected=True, check=lambda _: None)
    channel: Any = Ended(status)
    result = _SshJob(guest, "true", channel, 5.0).wait()
    assert (result.exit_code, result.ok) == (exit_code, status == 0)
