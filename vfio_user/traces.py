"""Traces of either protocol, which their headers name, for those who show them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from userdev import trace
from userdev.trace.view import TraceView
from vfio_user.interposer.trace import show
from vfio_user.interposer.trace.files import PROTOCOL as VFIO_USER
from vfio_user.interposer.trace.registers import RegisterMap
from vhost_user.interposer import traces as vhost_user

_PROTOCOLS: tuple[trace.TracedProtocol[Any], ...] = (VFIO_USER, vhost_user.PROTOCOL)


def view_trace(path: str | Path, registers: RegisterMap | None = None) -> TraceView:
    """The trace in a file, with what it is shown by; `registers` have names in one of vfio-user.

    Raises:
        UserError: there is no such file, or it is no trace of either.
    """
    found = trace.read_trace(path, *_PROTOCOLS)
    if found.header.protocol == vhost_user.NAME:
        return vhost_user.view(found)
    return show.view(found, registers or RegisterMap())
