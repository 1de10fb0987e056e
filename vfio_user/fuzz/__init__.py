"""Fuzzing any vfio-user server: steps made of what was probed, played by a client that knows what has to come back."""

from vfio_user.fuzz.kinds import kinds
from vfio_user.fuzz.oracles import ORACLES
from vfio_user.fuzz.subject import DIALECTS, PROTOCOL, VfioUserSubject

__all__ = ["DIALECTS", "ORACLES", "PROTOCOL", "VfioUserSubject", "kinds"]
