"""Takes the pictures that the documentation shows: of real runs, in a real browser (`scripts/pictures`)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.chromium import Page, chromium
from vfio_user.page.names import INDEX

PICTURES = Path(__file__).parent.parent / "docs" / "pictures"
VFIO_USER = [sys.executable, "-m", "vfio_user"]
WRONG_EDU = (Path(__file__).parent.parent / "avocado_tests/wrong_edu.py").read_text()

_SLOW = """
rules:
  - name: a slow factorial
    match: {direction: to-server, command: REGION_WRITE, region: BAR0, offset: 0x8, nth: {every: 3}}
    act: {delay: {seconds: 0.05}}
"""
READY = "document.documentElement.dataset.ready == 'yes' && document.documentElement.dataset.drawn > 0"


def failed_run(folder: Path) -> Path:
    """The page of a run in which a guest saw a device do wrong, and an interposer did something on purpose."""
    (folder / "wrong.py").write_text(WRONG_EDU)
    (folder / "slow.yaml").write_text(_SLOW)
    server = f"{' '.join(VFIO_USER)} serve wrong:WrongEdu --socket-path {{socket}}"
    command = [*VFIO_USER, "run", "--server", server, "--interpose", "--faults", "slow.yaml"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    return next(folder.glob(f"results/*/{INDEX}"))


def page(browser: Page, folder: Path) -> None:
    """`vfio-user show` of a failed run: the whole of it, and one record in the dark."""
    index = failed_run(folder)
    browser.emulate(width=1200, height=1000, prefers_color_scheme="light")
    browser.open(index, READY)
    browser.picture(PICTURES / "page.png")
    browser.emulate(width=1200, height=1200, prefers_color_scheme="dark")
    browser.open(index, READY)
    browser.ask("document.querySelector('#wanted').value = 'REGION_READ BAR0 0xa5a5a5a4'")
    browser.ask("document.querySelector('#search').requestSubmit()")
    browser.wait("!document.querySelector('#detail').hidden")
    browser.ask("for (let times = 0; times < 10; times++) document.querySelector('#closer').click()")
    browser.ask("document.querySelector('#search').scrollIntoView({ behavior: 'instant' })")
    browser.wait("!document.querySelector('#window').textContent.startsWith('0.000000 s')")
    browser.picture(PICTURES / "page-record.png")


TAKEN: dict[str, Callable[[Page, Path], None]] = {"page": page}
"""By the name of what is on them."""


def main() -> None:
    """Take those that are named, or all."""
    PICTURES.mkdir(exist_ok=True)
    for name in sys.argv[1:] or TAKEN:
        with tempfile.TemporaryDirectory() as folder, chromium().page() as browser:
            TAKEN[name](browser, Path(folder))


if __name__ == "__main__":
    main()
