"""`vfio-user interpose`: a process between a client and a server."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, Any, Literal

import click

from userdev.errors import UserError
from vfio_user.cli._beside import refuse_beside
from vfio_user.cli._choice import Choice
from vfio_user.cli._command import CommandLine
from vfio_user.cli._completion import complete_servers
from vfio_user.cli._durations import LEAST, Finite
from vfio_user.cli._interposing import interposing, run
from vfio_user.cli._outputs import refuse_overwriting
from vfio_user.cli._registers import REGISTERS_HELP, registers
from vfio_user.cli._served import device_as_command
from vfio_user.interposer.interposer import Interposer, Setup
from vfio_user.interposer.survival import Policy
from vfio_user.wire import DIALECTS
from vfio_user.wire.dialects import dialect_named

if TYPE_CHECKING:
    from vfio_user.interposer.faults.scenario import Scenario


_OF_SURVIVAL = ("msg_timeout", "pending", "pending_errno", "kick", "signal_error", "hang_timeout", "give_up_after")


class _Errno(click.ParamType[int]):
    """EIO, or 5."""

    name = "errno"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        numbers = {name: number for number, name in errno.errorcode.items()}
        number = numbers.get(str(value))
        if number is None and str(value).isdecimal() and int(value) in errno.errorcode:
            number = int(value)
        if number is None:
            self.fail(f"{value!r} is no errno", param, ctx)
        return number


def _scenario() -> type[Scenario]:
    from vfio_user.interposer.faults.scenario import Scenario

    return Scenario


@click.command(cls=CommandLine)
@interposing(_scenario)
@click.option("--dialect", type=Choice(list(DIALECTS)), default="current", show_default=True)
@click.option("--capture-dma", is_flag=True, help="Let the server do DMA by message only, so that a trace has it all.")
@click.option("--capture-interrupts", is_flag=True, help="Pass interrupts on, so that a trace has them.")
@click.option("--registers", "names", metavar="MAP", help=f"{REGISTERS_HELP} The trace brings them along.")
@click.option("--keep-alive", is_flag=True, help="When the server dies, start another; the client never knows.")
@click.option("--reconnect", is_flag=True, help="The same for a server that somebody else starts again.")
@click.option(
    "--msg-timeout",
    type=Finite(LEAST),
    default=5.0,
    show_default=True,
    help="Seconds the client waits for a reply (x-msg-timeout).",
)
@click.option(
    "--pending",
    type=Choice(["replay", "fail"]),
    default="replay",
    show_default=True,
    help="Unanswered requests go to the new server, or fail at once.",
)
@click.option("--pending-errno", type=_Errno(), default="EIO", show_default=True, help="What they fail with.")
@click.option("--kick/--no-kick", default=True, show_default=True, help="Trigger all interrupts after a crash.")
@click.option("--signal-error", is_flag=True, help="Trigger the ERR interrupt after a crash (QEMU stops the guest).")
@click.option("--hang-timeout", type=Finite(LEAST), help="Kill a server that has not answered for so many seconds.")
@click.option(
    "--give-up-after", type=Finite(LEAST), default=30.0, show_default=True, help="Seconds a new server may take."
)
@device_as_command("vfio-user", complete_servers)
def command(
    listen: str,
    connect: str | None,
    server_command: str | None,
    server_pid: int | None,
    dialect: str,
    trace: str | None,
    capture_dma: bool,
    capture_interrupts: bool,
    names: str | None,
    faults: str | None,
    keep_alive: bool,
    reconnect: bool,
    msg_timeout: float,
    pending: Literal["replay", "fail"],
    pending_errno: int,
    kick: bool,
    signal_error: bool,
    hang_timeout: float | None,
    give_up_after: float,
    control: str | None,
) -> None:
    """Forward a session between a client and any server, and see, break or keep it alive.

    Addresses are PATH, unix:PATH, tcp:HOST:PORT, vsock:CID:PORT or fd:N. Prints one line once it listens; SIGTERM
    and SIGINT end it.
    """
    if keep_alive and server_command is None:
        raise UserError(
            "--keep-alive has to start servers", hint="add --server-command or --device, or use --reconnect"
        )
    if not (keep_alive or reconnect):
        refuse_beside("without --keep-alive and --reconnect a session ends with its server", *_OF_SURVIVAL)
    refuse_overwriting(trace, read=(faults, names))
    policy = Policy(
        msg_timeout=msg_timeout,
        pending=pending,
        errno=pending_errno,
        kick=kick,
        signal_error=signal_error,
        hang_timeout=hang_timeout,
        give_up_after=give_up_after,
    )
    setup = Setup(
        listen=listen,
        connect=connect,
        server_command=server_command,
        server_pid=server_pid,
        dialect=dialect_named(dialect),
        trace=trace,
        capture_dma=capture_dma,
        capture_interrupts=capture_interrupts,
        registers=registers(names) if names is not None else None,
        faults=faults,
        survive=policy if keep_alive or reconnect else None,
        control=control,
    )
    run(Interposer(setup), listen, setup.target)
