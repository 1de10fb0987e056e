"""vhost-user: virtio devices in user space. Wire, guest memory and virtqueues without I/O (docs/vhost-user.md)."""
