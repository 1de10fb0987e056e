"""Faults by script in vfio-user: the language of `userdev.interposer.faults` with this protocol's messages."""
