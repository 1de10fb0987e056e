"""What devices in user space have in common, whatever protocol brings them to a guest.

Parts, not a skeleton: nothing here knows vfio-user or vhost-user, both are built of it. Standard library only.
"""
