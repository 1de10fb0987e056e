"""A virtio disk behind vhost-user."""

from userdev_servers.blk.blk import Blk

__all__ = ["Blk"]
