"""What people were told, kept by themselves, to be compared with what the engine keeps."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import orjson

CHANGES_OF: Mapping[str, frozenset[str]] = {
    "": frozenset(),
    "settle": frozenset({"settled", "refund_due"}),
    "cancel": frozenset({"cancelled"}),
}
"""What a request that was sent and never answered may have made of an order."""
EXPIRY_SECONDS_MAX = 2.0
"""The contract's: within this time of its deadline a hold ends. The reader's own delay comes on top."""


@dataclass(slots=True)
class Promise:
    """One order of which somebody was told."""

    order_id: str
    buyer_id: str
    channel: str
    reference: str
    key: str
    amount_minor: int
    units: dict[str, int]
    """By SKU."""
    held_until: float
    """Seconds since the epoch."""
    status: str
    """The last that was told."""
    told_at: float
    """Seconds since the epoch."""
    asking: str = ""
    """The change that is under way: a client that goes away meanwhile never learns what came of it."""
    payment_id: str = ""
    """The payment that settled it."""
    payments_due: list[str] = field(default_factory=list)
    """Payments of which it was told that the money comes back."""

    def may_be(self, asked_at: float, answered_at: float, slack_seconds: float = 0.0) -> frozenset[str]:
        """The states that keep this promise, for a question that was asked and answered at these moments.

        `slack_seconds` is granted on top of the contract's two seconds for a hold to end.
        """
        states = {self.status}
        if self.status == "held":
            if answered_at >= self.held_until:
                states.add("expired")
            if asked_at > self.held_until + EXPIRY_SECONDS_MAX + slack_seconds:
                states.discard("held")
        return frozenset(states | CHANGES_OF[self.asking])


@dataclass(frozen=True, slots=True)
class FeedRow:
    """What a client needs to remember of one row of the ERP's feed."""

    feed_sequence: int
    change: str
    order_id: str
    amount_minor: int
    payments_due: tuple[str, ...]


@dataclass(slots=True)
class Feed:
    """How far the ERP has come: rows of other sales are counted, and not kept."""

    cursor: str = ""
    last_sequence: int = 0
    rows: list[FeedRow] = field(default_factory=list)

    def take_over(self, page: Mapping[str, Any], sale_id: str) -> str:
        """Keep a page; what is wrong with it, or empty where nothing is."""
        complaint = ""
        for row in page["orders"]:
            sequence = row["feed_sequence"]
            if sequence != self.last_sequence + 1:
                complaint = f"feed_sequence {sequence} after {self.last_sequence}"
            self.last_sequence = sequence
            if row["sale_id"] == sale_id:
                due = tuple(payment["payment_id"] for payment in row["payments_due_for_refund"])
                self.rows.append(FeedRow(sequence, row["change"], row["order_id"], row["amount_minor"], due))
        if not page["orders"] and page["next_cursor"] != self.cursor:
            complaint = f"an empty page moved the cursor from {self.cursor!r} to {page['next_cursor']!r}"
        self.cursor = page["next_cursor"]
        return complaint


@dataclass(slots=True)
class Book:
    """All that the people of one live remember."""

    sale_id: str
    hold_seconds: int
    promises: dict[str, Promise] = field(default_factory=dict)
    feed: Feed = field(default_factory=Feed)
    answers: Counter[str] = field(default_factory=Counter)
    """Clicks on "buy", by what came of them: `accepted`, `repeated`, or a code."""
    defects: list[str] = field(default_factory=list)
    """What no answer may ever say, in words; the first `DEFECTS_KEPT_MAX` of them."""
    defects_count: int = 0

    def note_defect(self, words: str) -> None:
        """Keep what was wrong."""
        self.defects_count += 1
        if len(self.defects) < DEFECTS_KEPT_MAX:
            self.defects.append(words)

    def write(self, path: Path) -> None:
        """Put the book on disk. Raises: OSError."""
        path.write_bytes(orjson.dumps(self))

    @classmethod
    def read(cls, path: Path) -> Self:
        """The book that `write` has put there. Raises: OSError, and ValueError where it is none."""
        document = orjson.loads(path.read_bytes())
        return cls(
            sale_id=document["sale_id"],
            hold_seconds=document["hold_seconds"],
            promises={order_id: Promise(**each) for order_id, each in document["promises"].items()},
            feed=Feed(
                document["feed"]["cursor"], document["feed"]["last_sequence"], _feed_rows(document["feed"]["rows"])
            ),
            answers=Counter(document["answers"]),
            defects=document["defects"],
            defects_count=document["defects_count"],
        )


DEFECTS_KEPT_MAX = 50


def _feed_rows(rows: Sequence[Mapping[str, Any]]) -> list[FeedRow]:
    return [FeedRow(**{**row, "payments_due": tuple(row["payments_due"])}) for row in rows]
