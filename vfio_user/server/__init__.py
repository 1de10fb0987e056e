"""One session: requests from the wire to the device, and the conventions of a server program."""
