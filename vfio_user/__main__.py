"""`python -m vfio_user` is the `vfio-user` command."""

from vfio_user.cli import main

if __name__ == "__main__":
    main()
