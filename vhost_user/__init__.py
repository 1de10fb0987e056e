"""vhost-user: virtio devices in user space. Its wire, memory and rings need no I/O (docs/vhost-user-inside.md)."""
