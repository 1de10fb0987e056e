"""`python -m vhost_user` is the `vhost-user` command."""

from vfio_user.cli import vhost_user_main

if __name__ == "__main__":
    vhost_user_main()
