"""The control room in a real browser: signing in, watching a sale, and what it says when something is wrong."""

import os
import re
import shutil
import signal
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from tests.integration.running_backoffice import RunningBackOffice, sale_body, sku, whole_back_office

BROWSER_NAMES = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next((path for path in map(shutil.which, BROWSER_NAMES) if path), None)
NOT_TESTED = f"THE CONSOLE IS NOT TESTED: none of {', '.join(BROWSER_NAMES)} is on the PATH; install one"

if BROWSER is None and os.environ.get("CI") != "true":
    pytest.skip(NOT_TESTED, allow_module_level=True)

WAIT_MS = 10_000
COMPLAINTS: list[str] = []
"""What the page's script has done wrong: uncaught errors, dialogs that only injected code would open."""


@pytest.fixture(scope="module")
def office(tmp_path_factory: pytest.TempPathFactory, postgres_server: str) -> Iterator[RunningBackOffice]:
    with whole_back_office(tmp_path_factory.mktemp("console"), postgres_server) as started:
        grid = [
            sku(f"{colour}-{size}", 10, withheld=2, channels={"douyin": 3}, colour=colour, size=size)
            for colour in ("黑", "白")
            for size in ("S", "M")
        ]
        started.put("live-1", sale_body(*grid, sku("<b>x</b>", 1, style="CAP"), title="<script>alert(1)</script> 秒杀"))
        started.transition("live-1", "open")
        started.put("draft-2", sale_body(title="Second"))
        yield started


@pytest.fixture(scope="module")
def browser(office: RunningBackOffice) -> Iterator[Browser]:
    """The browser starts after the servers, for it keeps an event loop running in this thread until it ends."""
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def context(browser: Browser) -> Iterator[BrowserContext]:
    opened = browser.new_context(locale="en-GB")
    opened.set_default_timeout(WAIT_MS)
    yield opened
    opened.close()


def sign_in(page: Page, office: RunningBackOffice, role: str = "ops", rest: str = "") -> None:
    answer = page.goto(f"http://127.0.0.1:{office.port}/console/{rest}")
    assert answer is not None
    assert answer.status == 401
    page.fill("#key", office.keys[role])
    page.click("button[type=submit]")


def opened_console(context: BrowserContext, office: RunningBackOffice, rest: str = "") -> Page:
    page = context.new_page()
    page.on("pageerror", lambda error: COMPLAINTS.append(str(error)))
    page.on("console", lambda said: COMPLAINTS.append(said.text) if "Content Security Policy" in said.text else None)
    page.on("dialog", lambda dialog: COMPLAINTS.append(dialog.message))
    sign_in(page, office, rest=rest)
    expect(page.locator("#sale-title")).to_be_visible(timeout=WAIT_MS)
    return page


def test_a_wrong_key_is_refused_with_words(context: BrowserContext, office: RunningBackOffice) -> None:
    page = context.new_page()
    sign_in(page, office, "erp")
    expect(page.locator("#message")).to_have_text("This key is not of the role ops.")
    page.fill("#key", "密钥")
    page.click("button[type=submit]")
    expect(page.locator("#message")).to_have_text("This key is not known here, or is revoked.")
    assert context.cookies() == []


def test_a_sale_is_shown_as_a_grid_that_follows_its_orders(context: BrowserContext, office: RunningBackOffice) -> None:
    page = opened_console(context, office)
    assert page.url.endswith("/console/#sale=live-1")  # the first open one
    expect(page.locator("#sale-title")).to_have_text("<script>alert(1)</script> 秒杀")
    expect(page.locator("#sale-status")).to_have_text("open")
    cell = page.locator('td[data-sku="黑-M"]')
    expect(cell.locator(".available")).to_have_text("8")
    expect(cell).to_contain_text("Withheld 2")
    expect(cell).to_contain_text("shared 5 · douyin 3")
    expect(page.locator("table.grid thead th")).to_have_text(["Colour × Size", "S", "M"])
    expect(page.locator('tr[data-sku="<b>x</b>"] td.available')).to_have_text("1")

    order = office.hold("live-1", "b1", lines=[{"sku": "黑-M", "quantity": 4}])
    expect(cell.locator(".available")).to_have_text("4", timeout=3000)
    expect(cell).to_contain_text("Held 4")
    expect(cell).to_contain_text("shared 4")  # the channel's own three went first
    office.settle(order)
    expect(cell).to_contain_text("Settled 4", timeout=3000)
    office.transition("live-1", "pause")
    expect(page.locator("#sale-status")).to_have_text("paused", timeout=3000)
    office.transition("live-1", "resume")
    expect(page.locator("#freshness")).to_have_text(re.compile("Figures [01] s old"))
    assert COMPLAINTS == []


def test_another_sale_can_be_chosen_and_the_language_switched(
    context: BrowserContext, office: RunningBackOffice
) -> None:
    page = opened_console(context, office)
    page.click('button[data-sale="draft-2"]')
    expect(page.locator("#sale-title")).to_have_text("Second")
    expect(page.locator("#sale-status")).to_have_text("draft")
    page.click("#language")
    expect(page.locator("#sale-status")).to_have_text("草稿")
    expect(page.locator("#totals")).to_contain_text("可售")
    page.reload()  # still signed in; language and sale are remembered
    expect(page.locator("#sale-title")).to_have_text("Second")
    expect(page.locator("#sale-status")).to_have_text("草稿")
    assert COMPLAINTS == []


def test_a_chinese_browser_is_spoken_to_in_chinese(browser: Browser, office: RunningBackOffice) -> None:
    context = browser.new_context(locale="zh-CN")
    page = opened_console(context, office)
    expect(page.locator("#sales-title")).to_have_text("场次")
    context.close()


def test_the_key_stays_out_of_the_page_and_its_address(context: BrowserContext, office: RunningBackOffice) -> None:
    page = opened_console(context, office)
    key = office.keys["ops"]
    kept = page.evaluate("JSON.stringify([location.href, {...localStorage}, {...sessionStorage}, document.cookie])")
    assert key not in kept
    (cookie,) = context.cookies()
    assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
    assert key not in cookie["value"]
    page.click("#sign-out")
    expect(page.locator("#key")).to_be_visible()
    assert context.cookies() == []


def test_the_page_says_what_is_wrong_and_recovers(context: BrowserContext, office: RunningBackOffice) -> None:
    page = opened_console(context, office)
    message = page.locator("#message")
    expect(message).to_be_hidden()
    frozen = {"status": 503, "code": "FROZEN", "detail": "Stock is being reconciled."}
    page.route("**/ops/v1/sales/live-1", lambda route: route.fulfill(status=503, json=frozen))
    expect(message).to_contain_text("FROZEN – Stock is being reconciled.", timeout=5000)
    page.unroute("**/ops/v1/sales/live-1")
    expect(message).to_be_hidden(timeout=5000)
    office.process.send_signal(signal.SIGSTOP)
    try:
        expect(page.locator("#freshness")).to_have_class("stale", timeout=15_000)
        expect(message).to_contain_text("The connection to the back office is lost", timeout=20_000)
    finally:
        office.process.send_signal(signal.SIGCONT)
    expect(message).to_be_hidden(timeout=20_000)
    context.clear_cookies()
    expect(message).to_contain_text("You are signed out", timeout=5000)


def test_of_thousands_of_skus_some_are_shown_and_any_can_be_found(
    context: BrowserContext, office: RunningBackOffice
) -> None:
    skus = [sku(f"SKU-{number:04}", 3, style=f"S{number // 10}") for number in range(3000)]
    office.put("many", sale_body(*skus))
    page = opened_console(context, office, "#sale=many")
    expect(page.locator("#shortened")).to_have_text("500 of 3000 SKUs are shown; filter to see others.")
    assert page.locator("tr[data-sku]").count() == 500
    page.fill("#filter", "sku-2999")
    expect(page.locator("tr[data-sku]")).to_have_count(1)
    expect(page.locator("#totals")).to_contain_text("9000")
