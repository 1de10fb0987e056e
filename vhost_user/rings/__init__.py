"""Virtqueues, the device's side, over views of guest memory: nothing here waits, or knows of a socket."""

from vhost_user.rings.chain import BrokenRing, Chain
from vhost_user.rings.inflight import PackedInflight, SplitInflight, region_size
from vhost_user.rings.packed import PackedRing
from vhost_user.rings.ring import Ring, RingAddresses, WrongLength
from vhost_user.rings.split import SplitRing

__all__ = [
    "BrokenRing",
    "Chain",
    "PackedInflight",
    "PackedRing",
    "Ring",
    "RingAddresses",
    "SplitInflight",
    "SplitRing",
    "WrongLength",
    "region_size",
]
