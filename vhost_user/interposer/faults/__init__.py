"""Faults by script in vhost-user: the language of `userdev.interposer.faults` with this protocol's messages."""
