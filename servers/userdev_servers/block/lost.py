"""What a disk says that cannot keep its promise."""


class Lost(OSError):
    """Acknowledged data may be gone. The error comes again with every `sync` until the image is opened anew."""
