"""The protocol without I/O: header, dialects, messages, capabilities. Bytes in, messages out; fds travel beside."""
