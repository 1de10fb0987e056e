"""The page in a real browser, without a network: it renders, searches, zooms, and a click shows the record."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.chromium import Page, chromium
from tests.pictures import READY as DRAWN
from tests.test_page import HOSTILE, session
from tests.traced import flag_at_work
from vfio_user.page.axis import Kind
from vfio_user.page.document import write_page

pytestmark = pytest.mark.network

PROBES = Path(__file__).with_name("on_a_page.js").read_text()
TEXTS = ("text", "soft", "link")
MOMENT = 1_795_932_999


@pytest.fixture(scope="module")
def browser() -> Iterator[Page]:
    with chromium().page() as page:
        page.emulate()
        yield page


@pytest.fixture
def shown(browser: Page, tmp_path: Path) -> Page:
    """A browser at the page of a run with one of everything, some of it by somebody who means no good."""
    session(tmp_path / "guest-dev0-edu.trace")
    (tmp_path / "evidence.json").write_text(json.dumps({"of": "X.test_y", "first_cause": f"it said {HOSTILE}"}))
    (tmp_path / "guest.console.log").write_text(HOSTILE)
    (tmp_path / "guest.console.timed.log").write_text(f"{MOMENT}.5 {HOSTILE}\n")
    write_page(tmp_path, tmp_path / "index.html")
    browser.errors.clear()
    browser.fetched.clear()
    browser.open(tmp_path / "index.html", DRAWN)
    return browser


def text(page: Page, selector: str) -> str:
    found: str = page.ask(f"document.querySelector({json.dumps(selector)}).textContent")
    return found


def window(page: Page) -> str:
    return text(page, "#window")


def search(page: Page, wanted: str) -> str:
    """What the page says once it has looked for this."""
    page.ask(f"document.querySelector('#wanted').value = {json.dumps(wanted)}")
    page.ask("document.querySelector('#search').requestSubmit()")
    page.wait("/ of |^0 found/.test(document.querySelector('#found').textContent)")
    return text(page, "#found")


def test_it_renders_complains_of_nothing_and_asks_for_nothing(shown: Page) -> None:
    assert shown.errors == []
    assert [address for address in shown.fetched if not address.startswith("file:")] == []
    assert "guest-dev0-edu BAR0" in text(shown, "#names")
    assert shown.ask(f"{PROBES} coloursDrawn()") > 3, "nothing is drawn"


def test_what_was_said_is_text_and_nothing_of_it_runs(shown: Page) -> None:
    assert "it said </script>" in text(shown, ".cause")
    search(shown, "onerror")
    assert "<img src=x" in text(shown, "#detail-title")
    assert shown.ask("document.title").startswith("it said <")
    assert shown.ask("document.querySelectorAll('img').length") == 0


def test_a_search_finds_and_shows_the_record_taken_apart(shown: Page) -> None:
    assert search(shown, "REGION_READ 0x12345678") == "1 of 1"
    fields = text(shown, "#fields")
    for part in ("BAR0", "0x8", "REGION_READ", "0x12345678", "answered by record"):
        assert part in fields
    assert search(shown, "no such thing") == "0 found"


def test_it_zooms_moves_and_shows_all_again_by_keys(shown: Page) -> None:
    shown.ask("document.querySelector('#scroller').focus()")
    before = window(shown)
    seen = [before]
    for key in ("+", "+", "ArrowRight", "-", "0"):
        shown.press(key)
        shown.wait(f"document.querySelector('#window').textContent != {json.dumps(seen[-1])}")
        seen.append(window(shown))
    assert seen[-1] == before
    assert len(set(seen)) == 5


def test_a_click_shows_the_record_that_is_there(shown: Page) -> None:
    search(shown, "REGION_WRITE")
    terms = "[...document.querySelectorAll('#fields dt')]"
    moment = shown.ask(f"Number({terms}.find(term => term.textContent == 'seconds').nextSibling.textContent)")
    shown.ask("document.querySelector('#detail').hidden = true")
    x, y = shown.ask(f"{PROBES} placeOf('0x20', {moment})")
    shown.click(x, y)
    shown.wait("!document.querySelector('#detail').hidden")
    assert text(shown, "#detail-title").startswith("REGION_WRITE")


def test_whoever_uses_no_mouse_has_names_for_everything_and_the_same_as_a_table(shown: Page) -> None:
    assert shown.ask(f"{PROBES} nameless()") == []
    shown.ask("document.querySelector('#listed').open = true")
    shown.wait("document.querySelectorAll('#list tr').length > 5")
    shown.ask("[...document.querySelectorAll('#list button')].find(row => row.textContent.includes('DMA_MAP')).click()")
    shown.wait("document.querySelector('#detail-title').textContent.includes('DMA_MAP')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Page, tmp_path: Path, scheme: str) -> None:
    """WCAG 2.2, 1.4.3: 4.5 to 1; what is drawn, 1.4.11: 3 to 1."""
    session(tmp_path / "x.trace")
    write_page(tmp_path / "x.trace", tmp_path / "page.html")
    browser.emulate(prefers_color_scheme=scheme)
    browser.open(tmp_path / "page.html", DRAWN)
    ratios = {
        name: browser.ask(f"{PROBES} contrast('{name}')") for name in (*TEXTS, *(kind.name.lower() for kind in Kind))
    }
    assert {name: ratio for name, ratio in ratios.items() if ratio < (4.5 if name in TEXTS else 3)} == {}
    browser.emulate()


def test_a_long_trace_opens_in_time_in_a_small_file_and_leads_to_what_is_odd(browser: Page, tmp_path: Path) -> None:
    """A million records are a benchmark's (benchmarks/page.py); this has a quarter of that."""
    truth = flag_at_work(tmp_path / "long.trace", 25_000, stale=20_000)
    write_page(tmp_path / "long.trace", tmp_path / "long.html")
    assert (tmp_path / "long.html").stat().st_size < 5 << 20
    browser.open(tmp_path / "long.html", DRAWN)
    assert browser.ask("performance.getEntriesByName('drawn')[0].startTime") < 3000
    browser.ask(f"document.querySelector('#odd [data-record=\"{truth['stale']}\"]').click()")
    browser.wait(f"document.querySelector('#fields').textContent.includes('record{truth['stale']},')")
