"""Serving a device: sessions, the command table, listening, and the conventions of a server program."""

from vfio_user.server.negotiation import Offer
from vfio_user.server.server import Server, serve
from vfio_user.server.session import Session

__all__ = ["Offer", "Server", "Session", "serve"]
