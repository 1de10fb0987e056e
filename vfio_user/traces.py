"""Traces of either protocol, which their headers name, for those who show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from userdev import trace
from userdev.trace.format import Header
from userdev.trace.view import ShownProtocol, TraceView, opened
from vfio_user.interposer.trace import show
from vfio_user.interposer.trace.files import PROTOCOL as VFIO_USER
from vfio_user.interposer.trace.registers import RegisterMap
from vhost_user.interposer import traces as vhost_user

PROTOCOLS: tuple[trace.TracedProtocol[Any], ...] = (VFIO_USER, vhost_user.PROTOCOL)


def open_trace(path: str | Path, registers: RegisterMap | None = None) -> TraceView:
    """The trace in a file, with what it is shown by; `registers` have names in one of vfio-user, instead of its own.

    Raises:
        UserError: there is no such file, or it is no trace of either.
    """
    with opened(Path(path), *PROTOCOLS) as reader:
        header = reader.header
    return TraceView(Path(path), header, shown_by(header, registers))


def shown_by(header: Header, registers: RegisterMap | None = None) -> ShownProtocol:
    """What a trace with this header is shown by.

    Raises:
        UserError: its dialect is unknown, or its names of registers are none.
    """
    return vhost_user.SHOWN if header.protocol == vhost_user.NAME else show.shown(header, registers)
