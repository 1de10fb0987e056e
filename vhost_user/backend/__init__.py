"""A device behind vhost-user: sessions, their rings and memory, and the program that listens."""

from vhost_user.backend.catalogue import DEVICES
from vhost_user.backend.server import Server, serve
from vhost_user.backend.session import Session
from vhost_user.backend.withheld import Withheld

__all__ = ["DEVICES", "Server", "Session", "Withheld", "serve"]
