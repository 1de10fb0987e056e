"""An NVMe 1.4 controller over files: README.md has its options, limits and layout."""

from userdev_servers.nvme.nvme import Nvme

__all__ = ["Nvme"]
