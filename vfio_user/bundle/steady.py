"""What two runs say, as it is compared: without what is another in every run and tells nothing.

That is where the results are, how long it took and when it was, which process and which port it was, where in memory
something lay, what line of its file an error came from, and what the program is called that serves a device.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_CHANGING: Sequence[tuple[re.Pattern[str], str]] = (
    (re.compile(r"(?<![\w.])/[\w.+-]+(?:/[\w.+-]+)+"), "PATH"),
    (re.compile(r"\b(PATH|[\w-]+\.[a-z]{1,4}):\d+\b"), r"\1:N"),
    (re.compile(r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?|\[ *\d+\.\d{6}\]"), "WHEN"),
    (re.compile(r"\b\d+(?:\.\d+)?(?= ?(?:s|ms|us|seconds|minutes)\b)"), "N"),
    (re.compile(r"(?<=\bprocess )\d+|(?<=\bpid )\d+", re.IGNORECASE), "N"),
    (re.compile(r"(\b\d+\.\d+\.\d+\.\d+|\blocalhost|\[[0-9a-f:]+\]):\d+\b"), r"\1:N"),
    (re.compile(r"0x[0-9a-f]{9,}|(?<=\bat )0x[0-9a-f]{6,}"), "ADDRESS"),
    (re.compile(r"(?<=-dev)(\d+)-\w[\w.+-]*\b"), r"\1"),
)


def steady(text: str) -> str:
    """The text with a word in the place of each such thing: the same of the same failure."""
    for form, instead in _CHANGING:
        text = form.sub(instead, text)
    return text
