"""The same for vhost-user, on the same transport."""
