"""Device programs: each imports only the public API of `vfio_user`, as a stranger's device would."""
