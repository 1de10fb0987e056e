"""What a PCI device says in class attributes is looked at when its class is made, with all else of the class."""

from __future__ import annotations

from userdev.declare.class_check import ClassCheck
from userdev.declare.values import shown
from userdev.errors import DeclarationError
from vfio_user.device.attributes import ATTRIBUTES, PLAIN, check_attribute, meant_attribute
from vfio_user.device.mechanism import Mechanism


def check_class(device_class: type, framework: type) -> None:
    """Check the body of a class; `framework` is the class that all devices have.

    Raises:
        DeclarationError: with the class, the name, and the place where that is written.
    """
    _Check(device_class, framework).run()


class _Check(ClassCheck):
    said = frozenset({"ids"})
    """What every device has because its author says it in the class."""
    plain = PLAIN

    def check_attribute(self, name: str, value: object) -> None:
        if name not in ATTRIBUTES and (meant := meant_attribute(name, value)):
            what = f"is {shown(value)}, which nobody would look at"
            self.refuse(name, what, hint=f"every device says that as {meant} = ...")
        if name not in ATTRIBUTES or (hasattr(type(value), "__get__") and not isinstance(value, Mechanism)):
            return  # what a property returns is looked at when a device is made
        try:
            check_attribute(name, value)
        except ValueError as error:
            which = f"{self._class.__qualname__}.{error}"
            raise DeclarationError(
                f"{which} ({self.place_of(name)})", hint=f"{name} is a class attribute of every device"
            ) from None
