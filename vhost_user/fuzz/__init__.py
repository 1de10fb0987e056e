"""Fuzzing any vhost-user back-end: messages in any order and contents of rings, by a front-end that knows the rules."""

from vhost_user.fuzz.oracles import ORACLES
from vhost_user.fuzz.subject import PROTOCOL, VhostUserSubject

__all__ = ["ORACLES", "PROTOCOL", "VhostUserSubject"]
