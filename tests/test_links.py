"""Links to other sites in the pages: https, of the form of an address, and on a list of sites that were looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tests.cases import for_each

ROOT = Path(__file__).parent.parent
LINK = re.compile(r"https?://[^\s<>\"'`)\]]+")
EXAMPLES = ("https://vhost-user.example", "http://localhost", "http://127.0.0.1")

SITES = {
    "https://github.com/avocado-framework/avocado-vt",
    "https://github.com/nutanix/libvfio-user",
    "https://github.com/rust-vmm/vhost",
    "https://github.com/spdk/spdk",
    "https://nixos.org/manual/nixos/stable/#sec-nixos-tests",
    "https://spdk.io",
}
"""Each was found in November 2026. Another one comes here once somebody has seen that it is there; `scripts/docs links`
asks all of them, where there is a network."""


def links() -> Iterator[tuple[str, str]]:
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("servers/**/*.md")]
    for page in pages:
        for link in LINK.findall(page.read_text()):
            yield str(page.relative_to(ROOT)), link.rstrip(".,;:")


@for_each(sorted(SITES))
def test_a_link_is_an_address_of_a_page(site: str) -> None:
    url = urlsplit(site)
    assert url.scheme == "https"
    assert re.fullmatch(r"(?:[a-z0-9-]+\.)+[a-z]{2,}", url.netloc)
    assert url.geturl() == site


def test_no_page_leads_where_nobody_has_looked() -> None:
    unknown = [(page, link) for page, link in links() if link not in SITES and not link.startswith(EXAMPLES)]
    assert unknown == []


def test_every_site_is_linked() -> None:
    assert {link for _, link in links()} >= SITES
