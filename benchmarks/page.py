"""What the page of a long trace costs: to write, in bytes, and to open in a real browser.

    python -m benchmarks.page [--records 1000000] [--json FILE]

Two traces of register accesses are made: one in which a driver does the same again and again, and the worst, in which
no value comes twice. Of each page: processor seconds and memory to write it, its size, and in headless Chromium the
time from the beginning of loading to the first picture, what a search of all takes, and a look closer.
"""

from __future__ import annotations

import json
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import click

from tests.chromium import Page, chromium
from tests.pictures import READY
from tests.traced import Written

OFFSETS = (0x00, 0x04, 0x08, 0x20, 0x24, 0x60, 0x80, 0x88)
KINDS = ("alike", "all different")


def make(path: Path, records: int, *, alike: bool) -> None:
    """A trace of so many records: seven reads to three writes, all over a device."""
    draw = random.Random(1)
    with Written(path) as trace:
        for _ in range(records // 2):
            offset, value = draw.choice(OFFSETS), draw.choice((0x0, 0x1, 0x80)) if alike else draw.getrandbits(32)
            if draw.random() < 0.7:
                trace.read(offset, value)
            else:
                trace.write(offset, value)


def written(trace: Path, page: Path) -> dict[str, float]:
    """What it costs to write the page, in a process of its own: processor seconds, and MiB at most."""
    program = "import sys; from pathlib import Path; from vfio_user.page.document import write_page"
    program += "; write_page(Path(sys.argv[1]), Path(sys.argv[2]))"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", program, str(trace), str(page)], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"write, CPU s": round(seconds, 2), "write, MiB": round(after.ru_maxrss / 1024, 1)}


SEARCH = """
document.querySelector('#wanted').value = 'REGION_WRITE 0x80';
document.querySelector('#search').requestSubmit();
const found = document.querySelector('#found');
while (!/^[0-9,]+ of/.test(found.textContent)) await new Promise(done => setTimeout(done, 1));
"""
CLOSER = """
document.querySelector('#closer').click();
await new Promise(done => requestAnimationFrame(() => setTimeout(done)));
"""


def opened(browser: Page, page: Path) -> dict[str, float]:
    """What a browser makes of it."""
    browser.open(page, READY)
    return {
        "open, ms": round(browser.ask("performance.getEntriesByName('drawn')[0].startTime")),
        "heap, MiB": round(browser.ask("performance.memory.usedJSHeapSize") / 2**20, 1),
        "search, ms": milliseconds(browser, SEARCH),
        "closer, ms": milliseconds(browser, CLOSER),
    }


def milliseconds(browser: Page, act: str) -> int:
    """How long something takes on a page."""
    timed = "const began = performance.now(); " + act + "; return performance.now() - began"
    return round(float(browser.ask(f"(async () => {{ {timed} }})()")))


@click.command()
@click.option("--records", default=1_000_000, show_default=True)
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the numbers here too.")
def main(records: int, output: Path | None) -> None:
    """Measure, and print a line for each kind of trace."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            trace, page = Path(folder) / f"{kind}.trace", Path(folder) / f"{kind}.html"
            make(trace, records, alike=kind == "alike")
            costs = written(trace, page) | {"MB": round(page.stat().st_size / 1e6, 1)}
            with chromium().page() as browser:
                browser.emulate()
                costs |= opened(browser, page)
            results[kind] = costs
            click.echo(f"{kind:14}" + "  ".join(f"{name} {value}" for name, value in costs.items()))
    if output is not None:
        output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
