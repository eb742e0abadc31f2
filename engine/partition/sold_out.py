"""What is known to be short, so that it need not be asked for in full.

A hint, and no more: whoever is turned away for it has been looked at by the script, in the atom of its batch, by one
compact question for all of a tick (`CheckShort`). So it can be wrong without harm, either way, and needs no wake-up
when stock returns: the question itself says so. A buyer who has orders in the sale is never turned away by it, because
one of them may be the order that they ask for again.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.domain.commands import CheckShort
from engine.domain.errors import MiaocangError
from engine.domain.outcomes import Outcome
from engine.partition.codec import Reply

SHORT_SECONDS_MAX = 0.1
"""How long an answer counts as a hint."""
SHORTAGES_MAX = 50_000
"""SKUs of all sales and channels that are remembered; then all are forgotten, at the cost of asking in full once."""
CHECKS_PER_BATCH_MAX = 1024
"""Checks in one question; each costs the script a tenth of a hold."""

OnChecked = Callable[[Reply | MiaocangError | None], None]
"""Told the refusal, the failure to tell, or None where it must be asked in full."""


Wanted = tuple[str, str, int]
"""What a cart of one line wants: (channel, sku, quantity)."""


class SoldOutMemory:
    """Which SKUs were short a moment ago, of all sales of this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._short: dict[tuple[str, str, str], tuple[int, float]] = {}

    def is_short(self, sale_id: str, channel: str, sku: str, quantity: int) -> bool:
        """Whether fewer than `quantity` units were left for the channel, by an answer that is still fresh."""
        known = self._short.get((sale_id, channel, sku))
        return known is not None and quantity > known[0] and self._clock() < known[1]

    def remember(self, sale_id: str, channel: str, sku: str, available: int, asked_at: float) -> None:
        """Take up an answer that was asked for at `asked_at` (monotonic seconds)."""
        if len(self._short) >= SHORTAGES_MAX:
            self._short.clear()
        self._short[sale_id, channel, sku] = (available, asked_at + SHORT_SECONDS_MAX)

    def forget(self, sale_id: str, channel: str, sku: str) -> None:
        """Stock is back."""
        self._short.pop((sale_id, channel, sku), None)


@dataclass(slots=True)
class ShortChecks:
    """The checks of one batch."""

    wanted: dict[Wanted, int] = field(default_factory=dict)
    """Each once, with its place in the question."""
    buyers: list[str] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    """For each buyer what they want."""
    told: list[OnChecked] = field(default_factory=list)
    deadline: float = 0.0

    def add(self, buyer: str, wanted: Wanted, deadline: float, on_checked: OnChecked) -> None:
        """One more buyer, by the part of the order's digest that is theirs."""
        self.buyers.append(buyer)
        self.places.append(self.wanted.setdefault(wanted, len(self.wanted)))
        self.told.append(on_checked)
        self.deadline = deadline  # later than all before

    def question(self) -> CheckShort:
        """All of them as one command."""
        return CheckShort(tuple(self.wanted), tuple(self.buyers), tuple(self.places))

    def answer(self, reply: Reply, on_verdict: Callable[[Wanted, Reply | None], None]) -> list["Reply | None"]:
        """What each check comes to, in order; `on_verdict` is told what each thing wanted does, buyers aside."""
        if reply.outcome is not Outcome.DONE:
            return [reply] * len(self.told)
        verdicts, known_buyers = reply.detail
        replies = [_refusal(wanted, verdict) for wanted, verdict in zip(self.wanted, verdicts, strict=True)]
        for wanted, refusal in zip(self.wanted, replies, strict=True):
            on_verdict(wanted, refusal)
        answers = [replies[place] for place in self.places]
        for position in known_buyers:
            answers[position - 1] = None
        return answers


def _refusal(wanted: Wanted, verdict: Sequence[int]) -> Reply | None:
    if not verdict:
        return None
    outcome = Outcome(verdict[0])
    return Reply(outcome, [wanted[1], *verdict[1:]] if outcome is Outcome.SOLD_OUT else [])
