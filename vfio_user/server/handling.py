"""What a command's handler is given of the session that it is part of."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from vfio_user.device import Function
from vfio_user.server.negotiation import Agreement
from vfio_user.server.regions import Regions
from vfio_user.wire import Dialect


class ServedFunction(Protocol):
    """A function, and the client that it is served to."""

    function: Function
    dialect: Dialect
    regions: Regions

    @property
    def agreement(self) -> Agreement:
        """The result of VERSION."""

    @property
    def max_data(self) -> int:
        """Bytes of data that the client may put into one message or ask for."""

    def quiet(self) -> AbstractContextManager[None]:
        """Have the device stand still inside; raises ProtocolError with its errno where it cannot."""
