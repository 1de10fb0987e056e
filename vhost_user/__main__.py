"""The `vhost-user` command, also as `python -m vhost_user`."""

from __future__ import annotations

from collections.abc import Sequence

from vfio_user.__main__ import start


def main() -> None:
    """Run `vhost-user`."""

    def serve(words: Sequence[str]) -> bool:
        from vhost_user.backend.command_line import SERVING

        return SERVING.run_plain(words)

    start(serve, "vhost_user_main")


if __name__ == "__main__":
    main()
