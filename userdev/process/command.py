"""A server's command line as people write it: {socket}, {fd} and {host} stand for what is known when it starts."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path

from userdev.errors import UserError

SOCKET, FD, HOST = "{socket}", "{fd}", "{host}"


@dataclass(frozen=True)
class ServerCommand:
    """A command line that says where the socket goes.

    {socket} is the path to listen on, {fd} the number of a listening socket that is inherited, {host} the name of the
    host that the server is started on.
    """

    text: str

    @classmethod
    def parse(cls, text: str) -> ServerCommand:
        """Check a command line.

        Raises:
            UserError: it has neither {socket} nor {fd}, no words, or cannot be split into words.
        """
        if SOCKET not in text and FD not in text:
            raise UserError(
                f"the server's command says nowhere what to listen on: {text}",
                hint="put {socket} where the path belongs, or {fd} for an inherited listening socket",
            )
        command = cls(text)
        command.words  # noqa: B018  # it raises
        return command

    @property
    def words(self) -> list[str]:
        """Its words, with the placeholders in them.

        Raises:
            UserError: the text cannot be split into words.
        """
        try:
            return shlex.split(self.text)
        except ValueError as error:
            raise UserError(f"the server's command cannot be read: {error}: {self.text}") from None

    @property
    def program(self) -> str:
        """The name of what it starts."""
        return Path(self.words[0]).name

    @property
    def inherits(self) -> bool:
        """Whether the server inherits its socket, and can be connected to before it has started."""
        return FD in self.text

    def argv(self, *, socket: Path | str = "", fd: int | str = "", host: str = "") -> list[str]:
        """The command for one start."""
        values = {SOCKET: str(socket), FD: str(fd), HOST: host}
        return [_filled(word, values) for word in self.words]


def _filled(word: str, values: dict[str, str]) -> str:
    for placeholder, value in values.items():
        word = word.replace(placeholder, value)
    return word
