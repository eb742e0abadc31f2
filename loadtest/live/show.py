"""One live as all its people share it: where the engine is, what is sold, which links are up, and the book."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gevent.event import Event

from loadtest.live.catalogue import Catalogue, make_catalogue
from loadtest.live.promises import Book
from loadtest.live.timetable import Timetable


@dataclass(slots=True)
class Link:
    """几号链接: some styles that go on sale together."""

    asked: bool = False
    """The host has asked for it to be put up: from now on it may be bought."""
    up: Event = field(default_factory=Event)
    """The engine has said that it is up: from now on nobody may be told otherwise."""


@dataclass(slots=True)
class Show:
    """What everybody in one live knows. Everything here belongs to one process of Locust."""

    endpoints: Mapping[str, Any]
    timetable: Timetable
    catalogue: Catalogue
    book: Book
    people_max: int
    acknowledges_feed: bool
    links: list[Link]
    started_at: float = field(default_factory=time.monotonic)

    @property
    def sale_id(self) -> str:
        return self.book.sale_id

    @property
    def seconds(self) -> float:
        """Since the live began."""
        return time.monotonic() - self.started_at

    @property
    def links_up(self) -> int:
        """How many links the engine has said are up; they go up in order."""
        return sum(link.up.is_set() for link in self.links)

    def url(self, role: str) -> str:
        """The address that a key of this role is for."""
        return str(self.endpoints["gateway_url" if role == "checkout" else "backoffice_url"])

    def wait_for_link(self, number: int, timeout_seconds: float) -> bool:
        """Wait until that link is up; False where there is none, or not within that time."""
        if number >= len(self.links):
            return False
        return bool(self.links[number].up.wait(timeout_seconds))


def make_show(
    endpoints: Mapping[str, Any], timetable: Timetable, people_max: int, sale_id: str, *, acknowledges_feed: bool
) -> Show:
    """A live that has not begun. Raises: OSError, where the orders cannot be read."""
    links = len(timetable.links_at_seconds)
    return Show(
        endpoints=endpoints,
        timetable=timetable,
        catalogue=make_catalogue(links, people_max),
        book=Book(sale_id, timetable.hold_seconds),
        people_max=people_max,
        acknowledges_feed=acknowledges_feed,
        links=[Link() for _ in range(links)],
    )


class OnAir:
    """Where the present show is found by Locust's users, who are made with nothing but Locust's environment."""

    show: Show | None = None

    @classmethod
    def present(cls) -> Show:
        """The show that is on."""
        assert cls.show is not None, "the show begins with the test"
        return cls.show
