"""What must not leave a machine in a bundle: passwords, tokens, keys, the environment; found by name, form and value.

A value is secret where its name says so (`--token X`, `API_KEY=X`, `"password": "X"`), in this process's environment
too, or its form does (keys in PEM, tokens of well-known issuers, passwords in URLs). It is then taken out wherever it
stands, also where a log repeats it without its name.
"""

from __future__ import annotations

import html
import itertools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

SECRET = "{secret}"
"""Stands where something was taken out."""

_ALONE = frozenset(
    {
        *("token", "password", "passwd", "passphrase", "passcode", "secret", "secrets", "credential", "credentials"),
        *("apikey", "auth", "authorization", "cookie", "sshpass", "pass"),
    }
)
"""Parts of a name that make it a secret's."""
_ENDS = ("password", "passwd", "passphrase", "token", "secret", "apikey")
"""Ends of such parts: PGPASSWORD."""
_BEFORE_KEY = frozenset({"api", "access", "private", "signing", "encryption", "ssh", "master", "account", "deploy"})
_SHORTEST = 4
"""Characters of a value that is looked for everywhere; a shorter one is taken out where its name is."""
_SHORTEST_ALONE = 8
"""Characters of a variable's value that is looked for in memory without its name, secret or not."""
_COMMON = frozenset(
    {"none", "null", "true", "false", "auto", "test", "root", "user", "guest", "local", "default", "enabled"}
)
"""Values that stand in many places and are nobody's secret."""

_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_VALUE = r"""(?:'(?P<single>[^'\n]*)'|"(?P<double>(?:[^"\\\n]|\\[^"])*)\\?"|(?P<bare>[^\s'",;&}\])]+))"""
_OPTION = re.compile(rf"(?<![\w-])--?(?P<name>[A-Za-z][\w-]*)(?:[= ])\s*(?!-){_VALUE}")
_ASSIGNED = re.compile(rf"""(?P<name>[A-Za-z_][\w.-]*)(?:\\?["'])?\s*[=:]\s*(?:\\(?="))?{_VALUE}""")
_FORMS = tuple(
    re.compile(form, re.DOTALL)
    for form in (
        r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
        r"(?<=://)[^\s/:@]*:(?P<value>[^\s/@]+)(?=@)",
        r"(?i:\b(?:bearer|basic)\s+)(?P<value>[A-Za-z0-9._~+/-]{8,}=*)",
        r"\bgh[pousr]_\w{20,}|\bgithub_pat_\w{20,}|\bglpat-[\w-]{16,}",
        r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b|\bxox[abprs]-[\w-]{10,}",
        r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*",
    )
)
_PEM = re.compile(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----.{0,16384}?-----END [A-Z ]*PRIVATE KEY-----", re.DOTALL)


def names_a_secret(name: str) -> bool:
    """Whether what is called so is secret: `GITHUB_TOKEN`, `--api-key`, `sshPrivateKey`."""
    parts = [part.lower() for part in _WORD.findall(name)]
    pairs = itertools.pairwise(parts)
    return any(part in _ALONE or part.endswith(_ENDS) for part in parts) or any(
        (one in _BEFORE_KEY and other in ("key", "keys")) or other == "pwd" for one, other in pairs
    )


class Secrets:
    """The secrets that are known, and how they are taken out of texts, words and bytes."""

    def __init__(self, commands: Iterable[Sequence[str]] = (), environment: Mapping[str, str] | None = None) -> None:
        """Those of this environment (the process's own if none is given), and those that these command lines have."""
        self._environment = dict(os.environ if environment is None else environment)
        values = {value for name, value in self._environment.items() if names_a_secret(name)}
        for words in commands:
            values.update(_in_words(words))
        wanted = {value for value in values if len(value) >= _SHORTEST and value.lower() not in _COMMON}
        forms = {form for value in wanted for form in _written(value)}
        self._forms = sorted(forms, key=len, reverse=True)  # the longest first: one may be within another
        self._known = re.compile("|".join(map(re.escape, self._forms))) if forms else None

    def text(self, text: str) -> str:
        """The text without them."""
        if self._known is not None:
            text = self._known.sub(SECRET, text)
        for form in _FORMS:
            text = form.sub(_without_value, text)
        for form in (_OPTION, _ASSIGNED):
            text = form.sub(lambda found: _without_value(found) if _is_secret(found) else found[0], text)
        return text

    def words(self, words: Iterable[str]) -> list[str]:
        """A command line without them; a word may be a command line itself."""
        told = list(words)
        return [
            SECRET if before is not None and _wants_secret(before) and not word.startswith("-") else self.text(word)
            for before, word in zip([None, *told], told, strict=False)
        ]

    def values(self, value: Any) -> Any:
        """What JSON can have without them: its texts, its command lines, and what stands under a secret's name."""
        match value:
            case str():
                return self.text(value)
            case list() | tuple() if all(isinstance(word, str) for word in value):
                return self.words(value)
            case list() | tuple():
                return [self.values(each) for each in value]
            case dict():
                return {
                    name: SECRET if names_a_secret(name) and isinstance(each, str) and each else self.values(each)
                    for name, each in value.items()
                }
        return value

    def data(self, data: bytes, *, memory: bool = False) -> bytes:
        """Bytes without them, of the same length; of a process's `memory` also without its environment.

        An interpreter keeps values apart from their names. A path that exists is left there: a core names its files.
        """
        known = [(b"", form.encode(errors="surrogateescape")) for form in self._forms]
        for name, value in self._environment.items() if memory else ():
            if value:
                known.append((os.fsencode(f"{name}="), os.fsencode(value)))
            if len(value) >= _SHORTEST_ALONE and not _is_path(value):
                known.append((b"", os.fsencode(value)))
        for before, secret in known:
            data = data.replace(before + secret, before + b"x" * len(secret))
        return _PEM.sub(lambda found: b"x" * len(found[0]), data)

    @property
    def longest(self) -> int:
        """Bytes that one of them can have."""
        return (
            max((len(os.fsencode(f"{name}={value}")) for name, value in self._environment.items()), default=0) + 32768
        )


def _is_path(text: str) -> bool:
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long for one, say
        return False


def _written(value: str) -> Iterator[str]:
    """A value as the languages of our files write it, also one within another."""
    once = {value, html.escape(value), _in_json(value), shlex.quote(value).strip("'"), quote(value, safe="")}
    for form in once:
        yield from (form, html.escape(form), _in_json(form))


def _in_json(text: str) -> str:
    return json.dumps(text)[1:-1]


def _is_secret(found: re.Match[str]) -> bool:
    """Whether a name and a value are: a small number and a word such as `none` are a setting."""
    value = _value(found)
    return names_a_secret(found["name"]) and value.lower() not in _COMMON and not (value.isdigit() and len(value) < 4)


def _wants_secret(word: str) -> bool:
    return word.startswith("-") and "=" not in word and " " not in word and names_a_secret(word)


def _in_words(words: Sequence[str]) -> Iterator[str]:
    """The values that are secret in a command line, within words that are command lines too."""
    for before, word in zip(["", *words], words, strict=False):
        if _wants_secret(before) and not word.startswith("-"):
            yield word
        name, _, value = word.partition("=")
        if " " not in name and names_a_secret(name):
            yield value
        for form in _FORMS[1:]:
            yield from (found["value"] if "value" in form.groupindex else found[0] for found in form.finditer(word))
        for form in (_OPTION, _ASSIGNED):
            yield from (_value(found) for found in form.finditer(word) if _is_secret(found))


def _value(found: re.Match[str]) -> str:
    return found["single"] or found["double"] or found["bare"] or ""


def _without_value(found: re.Match[str]) -> str:
    """What was found, with `SECRET` in the place of its value: all of it where it has no part called so."""
    groups = [name for name in ("value", "single", "double", "bare") if name in found.re.groupindex and found[name]]
    if groups and found[groups[0]].startswith(SECRET.rstrip("}")):
        return found[0]  # it was taken out before
    if not groups:
        return found[0] if "bare" in found.re.groupindex else SECRET
    begin, end = (place - found.start() for place in found.span(groups[0]))
    return found[0][:begin] + SECRET + found[0][end:]
