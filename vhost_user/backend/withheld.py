"""Features that a back-end has and does not offer, so that a front-end can be seen to do without them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from userdev.errors import UserError
from vhost_user.wire import ProtocolFeature, VirtioFeature

_NO_FEATURES, _NO_PROTOCOL_FEATURES = VirtioFeature(0), ProtocolFeature(0)


@dataclass(frozen=True)
class Withheld:
    """Bits that are not offered, whatever there is."""

    features: VirtioFeature = _NO_FEATURES
    protocol_features: ProtocolFeature = _NO_PROTOCOL_FEATURES

    @classmethod
    def of(cls, names: Iterable[str]) -> Withheld:
        """Those of these names, of both kinds, in any case.

        Raises:
            UserError: there is none of a name.
        """
        features, protocol_features = _NO_FEATURES, _NO_PROTOCOL_FEATURES
        for name in (name.strip().upper() for name in names):
            if name in VirtioFeature.__members__:
                features |= VirtioFeature[name]
            elif name in ProtocolFeature.__members__:
                protocol_features |= ProtocolFeature[name]
            else:
                known = ", ".join((*VirtioFeature.__members__, *ProtocolFeature.__members__))
                raise UserError(f"there is no feature {name!r}", hint=f"there are: {known}")
        return cls(features, protocol_features)


NOTHING = Withheld()
