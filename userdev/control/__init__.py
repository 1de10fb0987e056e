"""The control socket of a program: one JSON object a line, each answered by one. Knows no command.

    {"command": "resize", "nsid": 1, "size": "128M"}   ->   {"ok": true, "result": {"size": 134217728}}
    {"command": "what", "id": 7}                       ->   {"ok": false, "error": {"what": "..."}, "id": 7}

Commands may be sent without waiting, and are answered in their order; an `id` comes back in the answer. Whoever asks
for events is sent lines {"event": {...}} in between. Bytes may follow a line whose `raw` is their number, in both
directions. The socket is its user's alone (0600) and never taken from a program that lives
(`userdev.transport.Listener`).
"""

from userdev.control.client import ControlClient, ControlError, PendingAnswer
from userdev.control.envelope import ControlResult, answer_line, command_of, document_of, event_line, refusal_line
from userdev.control.lines import ControlLine, LineReader

__all__ = [
    "ControlClient",
    "ControlError",
    "ControlLine",
    "ControlResult",
    "LineReader",
    "PendingAnswer",
    "answer_line",
    "command_of",
    "document_of",
    "event_line",
    "refusal_line",
]
