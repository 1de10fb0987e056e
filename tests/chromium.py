"""Chromium without windows, of Debian's, unpacked: the browser that pages are tried in, and photographed with.

It is told what to do over a pair of pipes, by its DevTools protocol: JSON, each message ended by a zero byte.
"""

from __future__ import annotations

import base64
import fcntl
import json
import os
import platform
import select
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from userdev.process import Deadline
from vfio_user.harness.cache import cache_dir, locked, publish
from vfio_user.harness.debian import DebianArchive
from vfio_user.harness.toolchain import Unpacked

PACKAGES = ("chromium-headless-shell", "fonts-dejavu-core")
_PROGRAM = "usr/lib/chromium/chromium-headless-shell"
_SECONDS = 60.0
"""For an answer of a browser on a busy machine."""
_FONTS = """<?xml version="1.0"?><!DOCTYPE fontconfig SYSTEM "fonts.dtd">
<fontconfig>
<alias><family>monospace</family><prefer><family>DejaVu Sans Mono</family></prefer></alias>
<dir>{root}/usr/share/fonts</dir><cachedir>{root}/fonts</cachedir></fontconfig>
"""


class PageError(AssertionError):
    """A script on a page failed, or the browser said no."""


@dataclass
class Page:
    """One page in a browser, of which everything can be asked in its own language."""

    _to: int
    _from: int
    _session: str = ""
    _number: int = 0
    _rest: bytes = b""
    errors: list[str] = field(default_factory=list)
    """What its scripts and its console complained of."""
    fetched: list[str] = field(default_factory=list)
    """The addresses that it asked for."""

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command of the DevTools protocol, and what it returns."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        deadline = Deadline(2 * _SECONDS)
        while True:
            answer = self._next(deadline)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']}")
                found: dict[str, Any] = answer["result"]
                return found
            self._happened(answer)

    def attach(self) -> None:
        """Open a tab, and hear what happens in it."""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, path: Path, until: str = "document.readyState == 'complete'") -> float:
        """Go to a file, and wait until an expression is true there; the seconds that took."""
        began = time.monotonic()
        self.send("Page.navigate", url=path.absolute().as_uri())
        self.wait(until)
        return time.monotonic() - began

    def wait(self, expression: str) -> None:
        """Wait until an expression is true: the page is asked in each of its turns."""
        there = f"document.documentElement && ({expression})"
        look = f"function look() {{ {there} ? done(true) : Date.now() > limit ? done(false) : setTimeout(look, 5) }}"
        limit = f"Date.now() + {_SECONDS * 1000}"
        if not self.ask(f"new Promise(done => {{ const limit = {limit}; ({look})() }})"):
            raise PageError(f"it is never so: {expression}; the page complains of {self.errors}")

    def ask(self, expression: str) -> Any:
        """The value of an expression, a promise's when it is kept."""
        said = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in said:
            raise PageError(said["exceptionDetails"].get("exception", {}).get("description", said))
        return said["result"].get("value")

    def emulate(self, *, width: int = 1280, height: int = 900, **features: str) -> None:
        """Give the page a size, and media features: `prefers_color_scheme="dark"`."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        named = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.send("Emulation.setEmulatedMedia", features=named)

    def press(self, key: str) -> None:
        """Press a key, as a person does: "ArrowRight", "+", "Tab"."""
        text = {"text": key} if len(key) == 1 else {"text": "\r"} if key == "Enter" else {}
        code = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def click(self, x: float, y: float) -> None:
        """Click at a place of the page."""
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def picture(self, path: Path) -> None:
        """Write what is seen as PNG."""
        path.write_bytes(base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"]))

    def _next(self, deadline: Deadline) -> dict[str, Any]:
        while b"\0" not in self._rest:
            if not select.select([self._from], [], [], deadline.remaining)[0]:
                raise PageError(f"the browser said nothing for {deadline.seconds:.0f} s")
            data = os.read(self._from, 1 << 20)
            if not data:
                raise OSError("it has hung up")
            self._rest += data
        whole, _, self._rest = self._rest.partition(b"\0")
        found: dict[str, Any] = json.loads(whole)
        return found

    def _happened(self, event: dict[str, Any]) -> None:
        said = event.get("params", {})
        match event.get("method"):
            case "Runtime.exceptionThrown":
                self.errors.append(str(said["exceptionDetails"]))
            case "Log.entryAdded" if said["entry"]["level"] == "error":
                self.errors.append(said["entry"]["text"])
            case "Network.requestWillBeSent":
                self.fetched.append(said["request"]["url"])


@dataclass(frozen=True)
class Chromium(Unpacked):
    """The folder that it is in."""

    @contextmanager
    def page(self) -> Iterator[Page]:
        """A page of a browser of its own, which ends with the block."""
        fonts = self.root / "fonts.conf"
        fonts.write_text(_FONTS.format(root=self.root))
        with tempfile.TemporaryDirectory() as home:
            (hear, to), (back, say) = _pipe(), _pipe()
            command = [str(self.root / _PROGRAM), "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
            command += ["--remote-debugging-pipe", f"--user-data-dir={home}", "--no-first-run", "--hide-scrollbars"]
            environment = {**self.environment(), "HOME": home, "FONTCONFIG_FILE": str(fonts)}
            aside = [str(path) for path in self.root.glob("usr/lib/*-linux-gnu/pulseaudio")]  # libraries of a library
            environment["LD_LIBRARY_PATH"] = ":".join([environment["LD_LIBRARY_PATH"], *aside])
            log = Path(home) / "log"
            actions = [
                (os.POSIX_SPAWN_DUP2, hear, 3),
                (os.POSIX_SPAWN_DUP2, say, 4),
                (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT, 0o600),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ]
            browser = os.posix_spawn(command[0], command, environment, file_actions=actions, setpgroup=0)
            os.close(hear)
            os.close(say)
            try:
                page = Page(to, back)
                page.attach()
                yield page
            except OSError as error:
                raise PageError(f"the browser has ended: {log.read_text()[-2000:]}") from error
            finally:
                os.killpg(browser, signal.SIGKILL)
                os.waitpid(browser, 0)
                os.close(to)
                os.close(back)


def _pipe() -> tuple[int, int]:
    """A pipe with numbers above those that the browser wants for its own."""
    ends = os.pipe()
    above = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return above[0], above[1]


def chromium() -> Chromium:
    """The browser, fetched when the cache has none.

    Raises:
        UserError: it cannot be fetched: no apt, no network, no space.
    """
    root = cache_dir() / "chromium" / platform.freedesktop_os_release()["VERSION_CODENAME"]
    with locked("chromium"):
        if not (root / _PROGRAM).exists():
            archive = DebianArchive((root.name,))
            debs = archive.fetch(PACKAGES)
            root.parent.mkdir(exist_ok=True)
            with publish(root) as making:
                archive.unpack(debs, making)
    return Chromium(root)
