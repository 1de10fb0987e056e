"""The names of the files that the page of a run is made of and written to."""

from __future__ import annotations

INDEX = "index.html"
"""The page, in the folder of its run."""
RECORD = "evidence.json"
TIMELINE = "timeline.json"
COMMANDS = "commands.txt"
"""The command line of every program of the run; there is none where nothing was started."""
PROCESSES = "processes.json"
"""Every program of the run, from its birth to its death."""
MIGRATIONS = "*.migration.json"
GUEST_COMMANDS = "*.commands.jsonl"
SOAK = "soak.jsonl"

COLLECTED = "vfio-user: collected at"
"""The guest's kernel is made to say it, with the seconds since 1970, when its log is taken: so its clock is known."""
