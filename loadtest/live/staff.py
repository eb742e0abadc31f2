"""Those who work for the merchant, one of each: the host, the help desk, and the ERP."""

import random
import time
from collections.abc import Iterator
from urllib.parse import quote

import gevent
from locust import between, constant, task

from loadtest.live.person import Person

SEARCH_LAG_SECONDS_MAX = 10.0
"""Search may lag by about two seconds; only what was told longer ago than this must be found."""
RECENT_ORDERS = 200
FEED_PAGE_ROWS = 500


class Host(Person):
    """Puts the links up when the time has come, and later what was kept back of each."""

    fixed_count = 1
    wait_time = constant(0.2)

    def on_start(self) -> None:
        """Learn what is to be done, and when."""
        super().on_start()
        links = [(at, link, False) for link, at in enumerate(self.show.timetable.links_at_seconds)]
        more = [(at + self.show.timetable.more_after_seconds, link, True) for at, link, _ in links]
        self.to_do: Iterator[tuple[float, int, bool]] = iter(sorted(links + more))
        self.next = next(self.to_do, None)

    @task
    def conduct(self) -> None:
        """Wait for the next thing to do, and do it."""
        if self.next is None:
            gevent.sleep(1.0)
            return
        at, link, is_more = self.next
        gevent.sleep(max(0.0, at - self.show.seconds))
        if is_more:
            self.call_for_more(link)
        else:
            self.put_up(link)
        self.next = next(self.to_do, None)

    def put_up(self, link: int) -> None:
        """ "Three, two, one, the link is up": the first opens the sale, the others bring their stock."""
        self.show.links[link].asked = True
        if link == 0:
            answer = self.ask("open", "POST", f"/ops/v1/sales/{self.show.sale_id}/open", role="ops")
            is_up = answer is not None and answer.body["status"] == "open"
        else:
            document = self.show.catalogue.link_up_document(link, f"{self.show.sale_id}-link-{link + 1}")
            is_up = self.apply(document)
        if not is_up:
            self.defect("host", f"link {link + 1} did not go up")
            return
        self.show.links[link].up.set()

    def call_for_more(self, link: int) -> None:
        """Put on sale what was kept back of a link."""
        document = self.show.catalogue.more_document(link, f"{self.show.sale_id}-more-{link + 1}")
        if document["changes"] and not self.apply(document):
            self.defect("host", f"there is no more of link {link + 1}")

    def apply(self, document: dict[str, object]) -> bool:
        """Send a stock document twice, as a nervous operator does: it must work once."""
        path = f"/ops/v1/sales/{self.show.sale_id}/stock"
        first = self.ask("stock", "POST", path, document, role="ops")
        again = self.ask("stock", "POST", path, document, role="ops")
        if again is not None and not again.is_replay:
            self.defect("stock", f"document {document['document_id']} was applied twice")
        return first is not None


class HelpDesk(Person):
    """Looks up orders that people call about, and the sale itself."""

    fixed_count = 1
    wait_time = between(0.5, 2.0)

    @task(3)
    def search(self) -> None:
        """Find an order of a while ago, by one of the things that a caller may know."""
        book = self.book
        recent = list(book.promises.values())[-RECENT_ORDERS:]
        known = [each for each in recent if each.told_at < time.time() - SEARCH_LAG_SECONDS_MAX]
        if not known:
            return
        promise = random.choice(known)
        told_at, asking = promise.told_at, promise.asking
        query = random.choice(
            [
                f"order_id={quote(promise.order_id, safe='')}",
                f"channel={promise.channel}&buyer_id={quote(promise.buyer_id, safe='')}",
                f"reference={promise.reference}",
            ]
        )
        asked_at = time.time()
        answer = self.ask("search", "GET", f"/ops/v1/orders?{query}&sale_id={book.sale_id}", role="ops")
        if answer is None:
            return
        found = [order for order in answer.body["orders"] if order["order_id"] == promise.order_id]
        if len(found) != 1:
            self.defect("search", f"order {promise.order_id} was found {len(found)} times by {query}")
        elif (promise.told_at, promise.asking) == (told_at, asking) == (told_at, ""):  # nobody changed it meanwhile
            states = promise.may_be(asked_at, time.time(), slack_seconds=SEARCH_LAG_SECONDS_MAX)
            if found[0]["status"] not in states:
                self.defect("search", f"order {promise.order_id} is {found[0]['status']}, told: {promise.status}")

    @task(1)
    def read_sale(self) -> None:
        """Every SKU's units are all accounted for, at any moment."""
        answer = self.ask("sale", "GET", f"/ops/v1/sales/{self.show.sale_id}", role="ops")
        if answer is None:
            return
        for sku in answer.body["skus"]:
            states = [sku[name] for name in ("withheld", "available", "held", "settled")]
            if sku["allocated"] != sum(states) or min(states) < 0 or sku["available"] != sum(sku["pools"].values()):
                self.defect("sale", f"{sku['sku']} does not add up: {sku}")


class Erp(Person):
    """Pulls the feed from where it stopped, and takes each row over exactly once."""

    fixed_count = 1
    wait_time = constant(1.0)

    @task
    def pull(self) -> None:
        """Read on to the end of the feed, and acknowledge where this engine is for us alone."""
        while True:
            feed = self.book.feed
            after = quote(feed.cursor, safe="")
            answer = self.ask("feed", "GET", f"/erp/v1/orders?after={after}&limit={FEED_PAGE_ROWS}", role="erp")
            if answer is None:
                return
            if complaint := feed.take_over(answer.body, self.book.sale_id):
                self.defect("feed", complaint)
            if answer.body["orders"] and self.show.acknowledges_feed:
                self.acknowledge(feed.cursor)
            if bool(answer.body["has_more"]) != ('rel="next"' in answer.headers.get("link", "")):
                self.defect("feed", "has_more and the Link header do not agree")
            if not answer.body["has_more"]:
                return

    def acknowledge(self, cursor: str) -> None:
        """Say how far the orders are taken over."""
        answer = self.ask("acknowledge", "POST", "/erp/v1/orders/acknowledge", {"up_to": cursor}, role="erp")
        if answer is not None and answer.body["acknowledged"] != cursor:
            self.defect("acknowledge", f"{cursor} became {answer.body['acknowledged']}")
