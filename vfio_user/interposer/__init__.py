"""A process between any client and any server: trace, faults, survival, requests of its own."""
