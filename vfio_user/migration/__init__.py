"""Moving a device: state machine, state stream, dirty log, and their v1 and v2 faces on the wire."""
