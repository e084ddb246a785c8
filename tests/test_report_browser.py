"""The report as a browser shows it: on a phone and a desk, in light and dark, on paper, and without any request."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browser_page
from fabricated_run import fabricated_run

from edgedistill.report.page import write_report

pytestmark = pytest.mark.slow

OVERFLOW = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
# elements that reach out of the page to the right, but for what stands in a box that scrolls by itself
OUTSIDE = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.wide') && !e.closest('svg')
  && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(e => e.outerHTML.slice(0, 80))
"""
# the lowest contrast of a text with its background (WCAG 2.2, relative luminance), and that text
CONTRAST = """
(() => {
  const parts = c => c.match(/[\\d.]+/g).map(Number);
  const linear = v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => parts(c).slice(0, 3).map(v => linear(v / 255))
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
  const behind = e => { for (; e; e = e.parentElement) {
    const c = getComputedStyle(e).backgroundColor; if (parts(c)[3] !== 0) return c; } return 'rgb(255, 255, 255)'; };
  let worst = [99, ''];
  for (const e of document.querySelectorAll('body *')) {
    if (e.closest('svg') || ![...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())) continue;
    const a = light(getComputedStyle(e).color), b = light(behind(e));
    const ratio = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    if (ratio < worst[0]) worst = [ratio, e.textContent.trim().slice(0, 60)];
  }
  return worst;
})()
"""
# headings inside a table that are cut off where the table scrolls
CUT = """
[...document.querySelectorAll('tr.group span')].filter(
  e => e.getBoundingClientRect().right > document.documentElement.clientWidth).map(e => e.textContent)
"""
FOLDED = "[...document.querySelectorAll('details')].filter(e => !e.lastElementChild.checkVisibility()).length"
COLOURS = "getComputedStyle(document.body).backgroundColor"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("browser")
    report = write_report(*fabricated_run(folder / "run"))
    with browser_page(folder / "profile") as opened:
        opened.open(report)
        yield opened


def unfold(page: Page, is_open: bool) -> None:
    page.value(f"document.querySelectorAll('details').forEach(one => one.open = {str(is_open).lower()})")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(*fabricated_run(tmp_path_factory.mktemp("report")))


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_it_fits_every_width_and_is_easy_to_read_in_light_and_dark(page: Page, width: int, colours: str) -> None:
    page.show(width, colours)
    unfold(page, True)
    assert page.value(OVERFLOW) <= 0
    assert page.value(OUTSIDE) == []
    assert page.value(CUT) == []
    assert page.value("document.querySelectorAll('tr.group span').length") == 2
    ratio, text = page.value(CONTRAST)
    assert ratio >= 4.5, text


def test_dark_is_dark_and_light_is_light(page: Page) -> None:
    found = {}
    for colours in ("light", "dark"):
        page.show(1280, colours)
        found[colours] = page.value(COLOURS)
    assert found == {"light": "rgb(255, 255, 255)", "dark": "rgb(20, 23, 26)"}


def test_the_verdict_and_the_picture_come_first_on_a_phone(page: Page) -> None:
    page.show(390, "light")
    tops = page.value(
        "['.verdict', 'figure svg', 'table'].map(s => document.querySelector(s).getBoundingClientRect().top + scrollY)"
    )
    assert tops == sorted(tops)
    assert tops[0] < 150
    assert page.value("document.querySelector('figure svg').getBoundingClientRect().height") > 200


def test_printed_it_fits_the_paper_in_dark_ink(page: Page) -> None:
    unfold(page, False)
    page.show(718, "dark", media="print")  # A4 between margins of 10 mm, at 96 dots an inch
    assert page.value(OVERFLOW) <= 0
    assert page.value("[...document.querySelectorAll('table')].filter(e => e.scrollWidth > 718).length") == 0
    assert page.value(COLOURS) == "rgb(255, 255, 255)"
    assert page.value("getComputedStyle(document.body).color") == "rgb(0, 0, 0)"
    assert page.value("document.querySelectorAll('details').length") > 1
    assert page.value(FOLDED) == 0
    assert len(page.call("Page.printToPDF")["data"]) > 10_000


def test_it_asks_for_nothing_and_complains_of_nothing(page: Page, report: Path) -> None:
    page.open(report)
    page.show(1280, "light")
    requests = [event["params"]["request"] for event in page.events if event["method"] == "Network.requestWillBeSent"]
    assert [request["url"] for request in requests] == [report.as_uri()]
    assert page.value("performance.getEntriesByType('resource').length") == 0
    assert not [event for event in page.events if event["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]
