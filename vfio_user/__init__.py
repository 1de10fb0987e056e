"""vfio-user devices in Python, and what it takes to test any vfio-user server from inside a real guest."""
