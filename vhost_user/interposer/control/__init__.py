"""The control socket of vhost-user's interposer: the commands that every interposer has, and the session shown."""
