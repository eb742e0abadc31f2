"""People in a live, for Locust: a waiting room, a countdown, the spike at "the link is up", carts, payments, or none.

Buyers are the closed-loop users of Locust: this shows how people fare, not the engine's ceiling (see README.md).
`python -m loadtest.live` runs it against an engine of its own and compares what people were told with what is kept.
"""

import json
import time
from argparse import Namespace
from pathlib import Path

import requests  # Locust brings it
from locust import LoadTestShape, events
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.user.users import User

from loadtest.live.shoppers import Buyer, Viewer
from loadtest.live.show import OnAir, Show, make_show
from loadtest.live.staff import Erp, HelpDesk, Host
from loadtest.live.timetable import MINUTES, SHAPES, Timetable

__all__ = ["Buyer", "Erp", "HelpDesk", "Host", "LiveShape", "Viewer"]

PEOPLE_MAX = 300
STAFF = 3
"""The host, the help desk and the ERP, who are there from the first moment to the last."""
SETUP_SECONDS_MAX = 10
JOINING_SECONDS = 5
"""In which the most people could join: Locust asks for a rate."""


@events.init_command_line_parser.add_listener
def add_options(parser: LocustArgumentParser) -> None:
    """Options of this file; those with a name in the environment can be given there."""
    parser.add_argument("--endpoints", env_var="MIAOCANG_LOAD_ENDPOINTS", default="", help="An engine's endpoints.json")
    parser.add_argument("--live-shape", choices=list(SHAPES), default="burst", help="One link, or three hours of them")
    parser.add_argument("--minutes", type=float, default=0.0, help="Play the shape within this time (0: its own)")
    parser.add_argument("--people", type=int, default=PEOPLE_MAX, help="The most people at one time")
    parser.add_argument("--sale", default="", help="The id of the sale that is made (default: by the time)")
    parser.add_argument("--book", default="", help="Where what people were told is put in the end")
    parser.add_argument("--acknowledge-feed", action="store_true", help="Let the ERP acknowledge what it has pulled")


@events.test_start.add_listener
def begin(environment: Environment, **_: object) -> None:
    """Learn where the engine is, and make the sale, which the host opens later."""
    options = environment.parsed_options
    if options is None or not options.endpoints:
        raise SystemExit("give --endpoints DIR/endpoints.json of a running engine")
    show = make_show(
        endpoints=json.loads(Path(options.endpoints).read_text(encoding="utf-8")),
        timetable=chosen_timetable(options),
        people_max=options.people,
        sale_id=options.sale or f"live-{time.strftime('%Y%m%d-%H%M%S')}",
        acknowledges_feed=options.acknowledge_feed,
    )
    make_sale(show)
    environment.host = show.url("checkout")
    OnAir.show = show


def chosen_timetable(options: Namespace) -> Timetable:
    """The shape that was asked for, in the time that was asked for."""
    return SHAPES[options.live_shape](options.minutes or MINUTES[options.live_shape])


def make_sale(show: Show) -> None:
    """Create the sale as a draft."""
    url = f"{show.url('ops')}/ops/v1/sales/{show.sale_id}"
    document = show.catalogue.sale_document("A live with many people", show.timetable.hold_seconds)
    headers = {"Authorization": f"Bearer {show.endpoints['keys']['ops']}"}
    answer = requests.put(url, json=document, headers=headers, timeout=SETUP_SECONDS_MAX)
    if answer.status_code != 201:
        raise SystemExit(f"PUT {url}: {answer.status_code} {answer.text}")


@events.quitting.add_listener
def put_down_book(environment: Environment, **_: object) -> None:
    """Leave what people were told to whoever compares it."""
    options = environment.parsed_options
    if options is not None and options.book and OnAir.show is not None:
        OnAir.show.book.write(Path(options.book))


class LiveShape(LoadTestShape):
    """As many people as the timetable of the chosen live says."""

    def tick(self) -> tuple[int, float, list[type[User]] | None] | None:
        """Asked about once a second; the end of the timetable ends the run."""
        assert self.runner is not None
        options = self.runner.environment.parsed_options
        assert options is not None
        people = chosen_timetable(options).people_at(self.get_run_time(), options.people)
        if people is None:
            return None
        return people + STAFF, max(1.0, options.people / JOINING_SECONDS), None
