"""Child processes and folders that end with their owner, and when a program that was started listens."""

from userdev.process.asking import answer_of, complaint, run_to_end
from userdev.process.child import CRASHES, PRINTED_NOTHING, Child, tail
from userdev.process.command import ServerCommand
from userdev.process.deadline import Deadline
from userdev.process.ending import ProcessEnd
from userdev.process.folder import OwnedFolder
from userdev.process.inotify import Watch
from userdev.process.listening import await_change, await_listening, await_text, is_listening
from userdev.process.spawning import die_with, require_program, spawn

__all__ = [
    "CRASHES",
    "PRINTED_NOTHING",
    "Child",
    "Deadline",
    "OwnedFolder",
    "ProcessEnd",
    "ServerCommand",
    "Watch",
    "answer_of",
    "await_change",
    "await_listening",
    "await_text",
    "complaint",
    "die_with",
    "is_listening",
    "require_program",
    "run_to_end",
    "spawn",
    "tail",
]
