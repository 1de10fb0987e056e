"""Serves the control socket in the interposer's loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, get_args, get_origin

from userdev.control import ControlLine, ControlResult, LineReader, answer_line, command_of, document_of, refusal_line
from userdev.declare.values import shortened
from userdev.errors import ProtocolError, UserdevError, UserError, meant
from userdev.interposer.control.controlled import Controlled
from userdev.relay.loop import GONE, READ, WRITE, Loop, Task
from userdev.relay.outlet import Outlet
from userdev.transport import Listener, Stream, close_all

if TYPE_CHECKING:  # with it comes pydantic, which takes longer to load than all of the rest
    from pydantic import ValidationError

    from userdev.interposer.control.command import ControlCommand

MAX_CONNECTIONS = 32
"""Controllers at a time."""
MAX_LINE = 64 << 20
"""Bytes of one command, base64 included, or of what follows it."""
MAX_LINES = 1024
MAX_FDS_WAITING = 64
"""Of one controller's commands that wait for being run; it is not read on while there are more, or `MAX_LINE` bytes."""
_ROOM = 1 << 18  # bytes that are received at once
Commands = Callable[[], "Mapping[str, type[ControlCommand[Any]]]"]
"""The commands by name; loaded when a controller sends its first."""


class ControlServer:
    """Listens for controllers; each may send commands without waiting, and is answered in its own order.

    One that does not read its answers is not served on, and nobody waits for it.
    """

    def __init__(self, interposer: Controlled, commands: Commands, address: str) -> None:
        """Start to listen.

        Raises:
            UserError: the address cannot be listened on.
        """
        self._interposer = interposer
        self._commands = commands
        self._listener = Listener(address)
        self._connections: set[_Connection] = set()
        interposer.loop.watch(self._listener.socket.fileno(), self._accept)

    def close(self) -> None:
        """Close the connections of all controllers, and remove the socket."""
        self._interposer.loop.forget(self._listener.socket.fileno())
        for connection in list(self._connections):
            connection.close()
        self._listener.close()

    def _accept(self, _: int) -> None:
        stream = self._listener.take()
        if stream is None:
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            Outlet(stream).send(refusal_line(UserError(f"{MAX_CONNECTIONS} controllers are connected already")))
            stream.close()
        else:
            self._connections.add(_Connection(self._interposer, self._commands, stream, self._connections))


class _Connection:
    """One controller."""

    def __init__(self, interposer: Controlled, commands: Commands, stream: Stream, others: set[_Connection]) -> None:
        self._interposer = interposer
        self._commands = commands
        self._loop: Loop = interposer.loop
        self._stream = stream
        self._outlet = Outlet(stream)
        self._others = others
        self._reader = LineReader(MAX_LINE)
        self._lines: deque[ControlLine] = deque()
        self._task: Task[None] | None = None
        self._over = False  # nothing more comes
        self._gone = False  # nobody is there any more: epoll would say so for ever
        stream.socket.setblocking(False)
        self._events = READ
        self._loop.watch(stream.fileno(), self._ready)

    def close(self) -> None:
        if self in self._others:
            self._others.discard(self)
            self._loop.forget(self._stream.fileno())
            self._outlet.clear()
            self._stream.close()
            self._reader.close()
            for line in self._lines:
                close_all(line.fds)
            self._lines.clear()

    def _ready(self, events: int) -> None:
        if events & WRITE:
            self._outlet.flush()
        if events & GONE:
            self._gone = True
            self._loop.forget(self._stream.fileno())
            self._outlet.clear()
        if events & READ and not self._is_full():
            self._receive()
        self._go_on()

    def _receive(self) -> None:
        room = memoryview(bytearray(_ROOM))
        try:
            count, fds = self._stream.receive(room)
        except BlockingIOError:
            return
        except OSError:
            count, fds = 0, []
        self._lines.extend(self._reader.feed(room[:count], fds))
        self._over = not count or self._reader.refused

    def _is_full(self) -> bool:
        """Whether so much waits already that no more is to be read."""
        return self._over or (
            self._outlet.waiting
            or len(self._lines) >= MAX_LINES
            or sum(line.size for line in self._lines) >= MAX_LINE
            or sum(len(line.fds) for line in self._lines) >= MAX_FDS_WAITING
        )

    def _go_on(self) -> None:
        """Do what can be done next: run a command, read on, or end."""
        if self not in self._others:
            return
        if self._lines and self._task is None and not self._outlet.waiting:
            self._task = task = Task(self._answer(self._lines.popleft()))
            task.when_done(self._answered)
        if self._gone and not self._is_full():
            self._loop.after(0, self._read_rest)
        elif self._over and not self._lines and self._task is None and not self._outlet.waiting:
            self.close()
        elif not self._gone:
            self._watch((0 if self._is_full() else READ) | (WRITE if self._outlet.waiting else 0))

    def _read_rest(self) -> None:
        """What a controller has sent that is gone by now."""
        if self in self._others and not self._is_full():
            self._receive()
        self._go_on()

    def _watch(self, events: int) -> None:
        if events != self._events:
            self._loop.change(self._stream.fileno(), events)
            self._events = events

    def _answered(self) -> None:
        self._task = None
        # Through the loop: a thousand commands in one packet must not nest.
        self._loop.after(0, self._go_on)

    async def _answer(self, line: ControlLine) -> None:
        document: Any = None
        try:
            document = document_of(line.text) if not line.refusal else None
            answer = answer_line(await self._run(document, line), document)
        except ProtocolError as error:
            answer = refusal_line(error, document, what=f"the peer's reply is malformed: {error}")
        except (UserdevError, TimeoutError, OSError, ValueError) as error:
            answer = refusal_line(error, document)
        except Exception as error:  # a defect of ours must not leave the controller without an answer
            answer = refusal_line(error, document, what=f"internal: {type(error).__name__}: {error}")
        finally:
            close_all(line.fds)
        if self in self._others and not self._gone:
            self._outlet.send(answer)

    async def _run(self, document: Any, line: ControlLine) -> ControlResult:
        from pydantic import ValidationError

        if line.refusal:
            raise UserError(line.refusal)
        commands = self._commands()
        name = command_of(document, commands)
        try:
            command = commands[name].model_validate(document)
        except ValidationError as error:
            raise _refusal(name, commands[name], error) from None
        if line.fds and not command.fds:
            raise UserError("this command takes no descriptors")
        if line.behind:
            command.follow(line.behind)
        return await command.run(self._interposer, line.fds)


def _refusal(name: str, command: type[ControlCommand[Any]], error: ValidationError) -> UserError:
    """What is wrong with a command's parameters first, and which there are."""
    wrong = error.errors(include_url=False)
    first = next((one for one in wrong if one["type"] == "extra_forbidden"), wrong[0])  # it may be what is missing
    place = ".".join(shortened(str(each)) for each in first["loc"])
    takes = [field for field in command.model_fields if field not in ("command", "id")]
    written = [_written(field, command.model_fields[field].annotation) for field in takes]
    hint = f"{name} takes: {', '.join(written)}" if takes else f"{name} takes nothing"
    match first["type"]:
        case "extra_forbidden" if len(first["loc"]) == 1:
            return UserError(f"there is no parameter {place!r}", hint=f"{meant(place, takes)}{hint}")
        case "missing" if len(first["loc"]) == 1:
            return UserError(f"the parameter {place!r} is missing", hint=hint)
    return UserError(f"{place}: {first['msg']}" if place else str(first["msg"]), hint=hint)


def _written(field: str, annotation: Any) -> str:
    """A parameter for a hint: one that is a list of tables with what those have, as a command line has it."""
    for part in (annotation, *get_args(annotation)):
        if get_origin(part) is list:
            (item,) = get_args(part)
            keys = ", ".join(f'"{key}": ...' for key in getattr(item, "model_fields", ()))
            return f"'{field}=[{{{keys}}}]'" if keys else field
    return field
