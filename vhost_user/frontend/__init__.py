"""The front-end's side in Python: negotiation, shared memory, queues, for whoever puts a back-end to use or to test."""

from vhost_user.frontend.channel import Channel, Said
from vhost_user.frontend.errors import (
    BackEndError,
    BrokenQueue,
    Disconnected,
    NoAnswer,
    NotOffered,
    Refused,
    WrongAnswer,
)
from vhost_user.frontend.front_end import FEATURES, PROTOCOL_FEATURES, FrontEnd, InflightBuffer, Offer
from vhost_user.frontend.memory import DirtyPages, GuestMemory
from vhost_user.frontend.queue import Buffer, Completion, Queue, Request

__all__ = [
    "FEATURES",
    "PROTOCOL_FEATURES",
    "BackEndError",
    "BrokenQueue",
    "Buffer",
    "Channel",
    "Completion",
    "DirtyPages",
    "Disconnected",
    "FrontEnd",
    "GuestMemory",
    "InflightBuffer",
    "NoAnswer",
    "NotOffered",
    "Offer",
    "Queue",
    "Refused",
    "Request",
    "Said",
    "WrongAnswer",
]
