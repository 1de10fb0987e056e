"""The `vfio-user` command, also as `python -m vfio_user`."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Sequence

from userdev.printable import show_controls


def main() -> None:
    """Run `vfio-user`."""

    def serve(words: Sequence[str]) -> bool:
        from vfio_user.server.command_line import SERVING

        return SERVING.run_plain(words)

    start(serve, "main")


def start(serve: Callable[[Sequence[str]], bool], otherwise: str) -> None:
    """Have a plain `serve` done at once, and all else by this function of `vfio_user.cli` (decision 52)."""
    show_controls()
    try:
        if sys.argv[1:2] == ["serve"]:
            gc.disable()  # what is loaded stays: to look for garbage in it is an eighth of the start
            if serve(sys.argv[2:]):
                return
            gc.enable()
    except (Exception, KeyboardInterrupt) as error:
        from vfio_user.cli import end_with

        end_with(error)
    import vfio_user.cli

    getattr(vfio_user.cli, otherwise)()


if __name__ == "__main__":
    main()
