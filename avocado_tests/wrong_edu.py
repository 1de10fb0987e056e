"""An edu that answers wrongly, for who has to notice; its file is copied to where a command looks for devices."""

from __future__ import annotations

from userdev_servers.edu import Edu
from vfio_user.device import register


class WrongEdu(Edu):
    """Inverts all bits but the lowest."""

    @register(bar=0, offset=0x04, width=4)
    def liveness(self, value: int) -> None:  # type: ignore[override]
        self.inverted = ~value & 0xFFFFFFFE

    @liveness.reader
    def inverse(self) -> int:
        return self.inverted
