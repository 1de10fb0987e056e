"""Runs a program that a test has as a text, as `python -c` does: a module, so that it is forked (`fork_server.py`).

python -m tests.program TEXT [ARGUMENT...]
"""

from __future__ import annotations

import sys

if __name__ == "__main__":
    text = sys.argv.pop(1)
    sys.argv[0] = "-c"
    exec(compile(text, "<string>", "exec"), {"__name__": "__main__"})
