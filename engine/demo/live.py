"""The course of the sale: four rushes, a pause, more goods, holds that run out, a second wave, the end."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from engine.demo.buyers import Buyers
from engine.demo.catalogue import days_of, release_document, sale_document
from engine.demo.draw import draw
from engine.demo.operator import Levels, Operator
from engine.demo.orders_data import Cart
from engine.demo.tally import ToldOrder

HOLD_SECONDS = 8
ARRIVAL_SECONDS = 0.8
"""Within which everybody of a rush has clicked for the first time."""
PAUSED_RUSH = 2
RUSH_WITH_MORE = 3
PAUSE_AT_SECONDS = 0.2
MORE_AT_SECONDS = 0.4
"""After the start of a rush: in its middle."""
PAUSE_SECONDS = 1.0
EXPIRY_SECONDS_MAX = 75.0
"""A hold's time, the engine's two seconds, and 30 more that it grants where Redis was restarted meanwhile."""
LOOK_SECONDS = 0.5


@dataclass(slots=True)
class Live:
    """One sale from its opening to its close. `act` says in words what happens now."""

    buyers: Buyers
    operator: Operator
    carts: Sequence[Cart]
    announce: Callable[[str], None]
    act: str = "setting up"
    levels: Levels = field(default_factory=Levels)
    second_visits: int = 0
    trouble: list[str] = field(default_factory=list)
    """What did not go as planned, though no promise is broken by it."""

    async def run(self) -> None:
        """Play it all. Raises: NoAnswer, Unexpected."""
        await self._open()
        rushes = days_of(self.carts)
        for number, carts in enumerate(rushes, 1):
            await self._rush(
                number,
                carts,
                has_pause=number == min(PAUSED_RUSH, len(rushes)),
                has_more=number == min(RUSH_WITH_MORE, len(rushes)),
            )
        await self._wait_for_unpaid_holds()
        await self._second_wave()
        await self._close()

    async def _open(self) -> None:
        catalogue = self.buyers.catalogue
        await self.operator.define(sale_document(catalogue, "Christmas live: gifts for everybody", HOLD_SECONDS))
        await self.operator.transition("open")
        self.buyers.on_air.set()
        self.levels = await self.operator.read_levels()
        self._begin(
            f"the sale is open: {self.levels.allocated:,} units of {len(catalogue):,} SKUs, "
            f"{self.levels.withheld:,} of them kept back"
        )

    async def _rush(self, number: int, carts: Sequence[Cart], *, has_pause: bool, has_more: bool) -> None:
        """Everybody who ordered on one day of the data arrives within a moment."""
        self._begin(f"rush {number}: 3, 2, 1 - the links are up, {len(carts)} carts at once (orders of {carts[0].day})")
        async with asyncio.TaskGroup() as group:
            for cart in carts:
                group.create_task(self._arrive(cart, "first"))
            if has_pause:
                group.create_task(self._pause_for_a_moment())
            if has_more:
                group.create_task(self._call_for_more())
        self.levels = await self.operator.read_levels()

    async def _arrive(self, cart: Cart, visit: str) -> None:
        await asyncio.sleep(ARRIVAL_SECONDS * draw("arrival", cart.reference, visit))
        await self.buyers.visit(cart, visit)

    async def _pause_for_a_moment(self) -> None:
        await asyncio.sleep(PAUSE_AT_SECONDS)
        self.announce(f"the operator pauses the sale for {PAUSE_SECONDS:g} s, in the middle of the rush")
        self.buyers.on_air.clear()
        await self.operator.transition("pause")
        await asyncio.sleep(PAUSE_SECONDS)
        await self.operator.transition("resume")
        self.buyers.on_air.set()
        self.announce("the operator resumes; those who were told to wait click again")

    async def _call_for_more(self) -> None:
        await asyncio.sleep(MORE_AT_SECONDS)
        document = release_document(self.buyers.catalogue, f"{self.buyers.sale_id}-more")
        if not document["changes"]:
            return
        self.announce(f"the host calls for more: the units kept back of {len(document['changes'])} SKUs go on sale")
        await self.operator.put_more_on_sale(document)

    async def _wait_for_unpaid_holds(self) -> None:
        """Until every hold is paid, cancelled or has run out, and each buyer's order is known to be what it is."""
        await self.buyers.learn_what_was_not_answered()
        self._begin(f"waiting for the unpaid holds to run out ({HOLD_SECONDS} s each); their units go back on sale")
        give_up_at = time.monotonic() + EXPIRY_SECONDS_MAX
        while True:
            self.levels = await self.operator.read_levels()
            if self.levels.held == 0:
                break
            if time.monotonic() > give_up_at:
                self.trouble.append(f"{self.levels.held} units were still held after {EXPIRY_SECONDS_MAX:g} seconds")
                break
            await asyncio.sleep(LOOK_SECONDS)
        await self.buyers.read_statuses(self.buyers.tally.with_status("held"))

    async def _second_wave(self) -> None:
        """Late payments, then all who went without, then payments that are later still."""
        buyers = self.buyers
        self._begin(f"{len(buyers.late)} payments arrive after their hold has run out, before anybody else comes")
        await self._pay_late(buyers.late)
        returning, buyers.went_without = buyers.went_without, []
        self.second_visits = len(returning)
        self._begin(f"second wave: {len(returning)} buyers come back for what they went without")
        async with asyncio.TaskGroup() as group:
            for cart in returning:
                group.create_task(self._arrive(cart, "second"))
        self._begin(f"{len(buyers.too_late)} payments arrive later still")
        await self._pay_late(buyers.too_late)
        await buyers.learn_what_was_not_answered()

    async def _pay_late(self, orders: Sequence[ToldOrder]) -> None:
        async with asyncio.TaskGroup() as group:
            for order in orders:
                group.create_task(self.buyers.pay(order, "1"))

    async def _close(self) -> None:
        """Close, and ask once more what each order is: what was told before must still be so."""
        if (await self.operator.read_levels()).held:  # a hold whose answer was lost and that nobody has paid
            await self._wait_for_unpaid_holds()
        await self.operator.transition("close")
        self._begin("the sale is closed; each order is read once more")
        await self.buyers.read_statuses(list(self.buyers.tally.orders.values()))
        self.levels = await self.operator.read_levels()

    def _begin(self, act: str) -> None:
        self.act = act
        self.announce(act)
