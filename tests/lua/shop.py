"""A shop for tests of the partition: short ways to say what a sale is and who buys what."""

from typing import Any

import msgspec

from engine.domain.commands import ChangeStock, Define, DefineSku, GetOrder, GetSale, Hold, Open, Settle, StockChange
from engine.domain.identifiers import OrderId
from engine.domain.journal import Entry, decode_entry, decode_record
from engine.domain.orders import HoldRequest, OrderRecord, RequestedLine
from engine.domain.outcomes import Outcome
from engine.domain.sales import StockLevels
from engine.partition.codec import Reply, SaleSnapshot
from engine.partition.keyspace import partition_keys
from engine.partition.partitions import Partitions

SALE = "live-1"


def sku(name: str, quantity: int, **fields: Any) -> DefineSku:
    """A SKU of style TEE at 19.90."""
    return DefineSku(
        **{
            "sku": name,
            "style": "TEE",
            "unit_price_minor": 1990,
            "buyer_limit": 0,
            "quantity": quantity,
            "withheld": 0,
            "channels": [],
            **fields,
        }
    )


def definition(*skus: DefineSku, **fields: Any) -> Define:
    """A sale without limits, whose holds last a minute."""
    return Define(
        **{
            "command_id": f"define-{len(skus)}-{sorted(fields.items())!r}",
            "if_match": 0,
            "definition": msgspec.json.encode({"of": repr((skus, sorted(fields.items())))}).decode(),
            "currency": "CNY",
            "hold_ms": 60_000,
            "buyer_limit": 0,
            "style_limits": {},
            "opens_at_ms": 0,
            "closes_at_ms": 0,
            "skus": list(skus),
            **fields,
        }
    )


class Shop:
    """One sale, open, and what happens in it."""

    def __init__(self, partitions: Partitions, sale_id: str = SALE) -> None:
        self.partitions = partitions
        self.sale_id = sale_id

    async def open(self, *skus: DefineSku, **fields: Any) -> None:
        await self.partitions.register(self.sale_id)
        replies = await self.partitions.submit(self.sale_id, definition(*skus, **fields), Open())
        assert [reply.outcome for reply in replies] == [Outcome.DONE, Outcome.DONE], replies

    def hold_command(
        self, buyer: str, key: str, *lines: tuple[str, int], channel: str = "douyin", **fields: Any
    ) -> tuple[OrderId, Hold]:
        request = HoldRequest(buyer, channel, [RequestedLine(name, quantity) for name, quantity in lines], **fields)
        order_id = OrderId.of(self.sale_id, channel, buyer, key)
        return order_id, Hold.of(order_id, request)

    async def hold(self, buyer: str, key: str, *lines: tuple[str, int], **fields: Any) -> Reply:
        return (await self.partitions.submit(self.sale_id, self.hold_command(buyer, key, *lines, **fields)[1]))[0]

    async def order(self, buyer: str, key: str, channel: str = "douyin") -> OrderRecord:
        digest = OrderId.of(self.sale_id, channel, buyer, key).digest
        return (await self.ask(GetOrder(digest)))[0].order()

    async def held_order(self, buyer: str, key: str, *lines: tuple[str, int], **fields: Any) -> OrderRecord:
        reply = await self.hold(buyer, key, *lines, **fields)
        order = await self.order(buyer, key)
        assert reply.outcome is Outcome.DONE
        assert reply.held().sequence == order.sequence
        return order

    async def settle(self, order_id: OrderId, payment_id: str, amount_minor: int, currency: str = "CNY") -> Reply:
        command = Settle(order_id.digest, payment_id, amount_minor, currency)
        return (await self.partitions.submit(self.sale_id, command))[0]

    async def ask(self, *commands: Any) -> list[Reply]:
        return await self.partitions.submit(self.sale_id, *commands)

    async def move(self, document_id: str, *changes: tuple[str, str, str, int]) -> Reply:
        command = ChangeStock(document_id, repr(changes), [StockChange(*change) for change in changes])
        return (await self.partitions.submit(self.sale_id, command))[0]

    async def sale(self) -> SaleSnapshot:
        return (await self.partitions.submit(self.sale_id, GetSale()))[0].sale()

    async def levels(self, name: str) -> StockLevels:
        return dict((await self.sale()).levels)[name]

    async def journal(self) -> list[tuple[int, int, Entry]]:
        """(sequence, time, entry) of the whole journal."""
        found = []
        for last_sequence, encoded in await self.partitions.journals.records_after(self.sale_id, 0, 1_000_000):
            record = decode_record(encoded)
            assert record.last_sequence == last_sequence
            for sequence, entry in enumerate(record.entries, record.first_sequence):
                found.append((sequence, record.at_ms, decode_entry(entry)))
        return found


async def purge(partitions: Partitions, sale_id: str) -> None:
    """Leave of a sale in Redis what retiring leaves, whatever state it is in."""
    state, *everything_else = partition_keys(sale_id)
    await partitions.connections.execute("HSET", state, "retired", 1)
    await partitions.connections.execute("UNLINK", *everything_else)


def order_of(reply: Reply) -> OrderRecord:
    """The order of a reply that has one."""
    return reply.order()
