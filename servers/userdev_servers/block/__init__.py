"""What the disks of device programs are kept in, whatever protocol a guest sees them by."""
