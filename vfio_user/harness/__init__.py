"""Real guests in a real QEMU: provisioning, images, machines, checkpoints, hosts, evidence."""
