"""What an author of a virtio device writes: queues, state, configuration space, hooks (docs/vhost-user.md)."""

from userdev.declare.state import state
from vhost_user.device.config import config_field
from vhost_user.device.device import DeviceModel, Link, VhostDevice, model_of
from vhost_user.device.queues import LEFT, Begun, Later, Left, Queues, Taken, queue
from vhost_user.device.sample import SampleRequest
from vhost_user.device.supply import Supply, supply
from vhost_user.rings import BrokenRing, Chain

__all__ = [
    "LEFT",
    "Begun",
    "BrokenRing",
    "Chain",
    "DeviceModel",
    "Later",
    "Left",
    "Link",
    "Queues",
    "SampleRequest",
    "Supply",
    "Taken",
    "VhostDevice",
    "config_field",
    "model_of",
    "queue",
    "state",
    "supply",
]
