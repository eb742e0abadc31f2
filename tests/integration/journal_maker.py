"""Makes journals as a partition does, for tests of what reads them: whole orders, dense numbers, records of batches."""

from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from hashlib import blake2b

import msgspec
from msgspec.structs import replace

from engine.domain.journal import (
    JOURNAL_FORMAT,
    Cancelled,
    DuplicatePayment,
    Entry,
    Expired,
    Held,
    JournalRecord,
    PaymentTooLate,
    Reinstated,
    SaleClosed,
    SaleDefined,
    SaleDeleted,
    SaleOpened,
    Settled,
    StockChanged,
    UnitsMoved,
)
from engine.domain.orders import RECORD_FORMAT, OrderLine, OrderRecord, OrderStatus, Payment, PaymentFate, UnitsTaken

START_MS = 1_790_000_000_000


@dataclass
class JournalMaker:
    """One sale's journal. Each method adds a state change to the batch; `record()` ends the batch."""

    sale_id: str
    sequence: int = 0
    epoch: int = 1
    at_ms: int = START_MS
    version: int = 0
    orders: dict[str, OrderRecord] = field(default_factory=dict)
    records: list[tuple[int, bytes]] = field(default_factory=list)
    _entries: list[msgspec.Raw] = field(default_factory=list)
    _orders_made: int = 0

    def _add(self, entry: Entry) -> None:
        self._entries.append(msgspec.Raw(msgspec.msgpack.encode(entry)))
        self.sequence += 1

    def record(self) -> tuple[int, bytes]:
        """End the batch; (last sequence number, encoded record)."""
        first = self.sequence - len(self._entries) + 1
        encoded = msgspec.msgpack.encode(JournalRecord(JOURNAL_FORMAT, self.epoch, first, self.at_ms, self._entries))
        self._entries = []
        self.at_ms += 10
        self.records.append((self.sequence, encoded))
        return self.records[-1]

    # sales

    def define(self, skus: dict[str, int], created: bool = True, removed: tuple[str, ...] = (), **members) -> None:
        """`skus`: units each gains, in the shared pool; its outer code is `code-SKU-version`."""
        self.version += 1
        defined = [
            {
                "sku": sku,
                "style": "TEE",
                "unit_price_minor": 1990,
                "quantity": units,
                "outer_code": f"code-{sku}-{self.version}",
            }
            for sku, units in skus.items()
        ]
        about = {"title": "a sale", "currency": "CNY", "hold_seconds": 60, "labels": {"host": "Lin"}}
        definition = {**about, "skus": defined, **members}
        moved = [UnitsMoved(sku, "shared", units) for sku, units in skus.items() if units]
        text = msgspec.json.encode(definition).decode()
        self._add(SaleDefined(self.version, created, text, moved, list(removed)))

    def open(self) -> None:
        self.version += 1
        self._add(SaleOpened(self.version, scheduled=False))

    def close(self, moved: dict[tuple[str, str], int]) -> None:
        self.version += 1
        self._add(SaleClosed(self.version, False, [UnitsMoved(*key, units) for key, units in moved.items()]))

    def delete(self, moved: dict[tuple[str, str], int]) -> None:
        self._add(SaleDeleted([UnitsMoved(*key, units) for key, units in moved.items()]))

    def change_stock(self, moved: list[tuple[str, str, int]]) -> None:
        self.version += 1
        self._add(StockChanged(self.version, f"document-{self.version}", [UnitsMoved(*units) for units in moved]))

    # orders

    def hold(
        self, lines: dict[str, int] | None = None, buyer_id: str = "u-1", channel: str = "douyin", reference: str = ""
    ) -> str:
        """Hold an order, of one unit of SKU `A` unless `lines` says otherwise; its digest."""
        self._orders_made += 1
        name = f"{self.sale_id}/{self._orders_made}".encode()
        digest = urlsafe_b64encode(blake2b(name, digest_size=18).digest()).decode()
        lines = lines or {"A": 1}
        self.orders[digest] = order = OrderRecord(
            RECORD_FORMAT, OrderStatus.HELD, channel, buyer_id, reference, False, self.sequence + 1, self.at_ms,
            self.at_ms + 60_000, 0, 0, sum(lines.values()) * 1990, "CNY",
            [OrderLine(str(at), sku, units, 1990) for at, (sku, units) in enumerate(lines.items(), 1)],
            [UnitsTaken(sku, "shared", units) for sku, units in lines.items()], 1, self.sequence + 1, 0, [],
        )  # fmt: skip
        self._add(Held(digest, order))
        return digest

    def _change(self, digest: str, status: OrderStatus, payment: tuple[str, PaymentFate] | None = None) -> OrderRecord:
        order = self.orders[digest]
        payments = order.payments
        if payment is not None:
            payments = [*payments, Payment(payment[0], order.amount_minor, "CNY", payment[1], self.at_ms)]
        settled_at_ms = order.settled_at_ms
        if payment is not None and payment[1] is PaymentFate.SETTLED:
            settled_at_ms = self.at_ms
        self.orders[digest] = order = replace(
            order, status=status, version=order.version + 1, changed_sequence=self.sequence + 1,
            settled_at_ms=settled_at_ms, payments=payments,
        )  # fmt: skip
        return order

    def settle(self, digest: str, payment_id: str) -> None:
        self._add(Settled(digest, self._change(digest, OrderStatus.SETTLED, (payment_id, PaymentFate.SETTLED))))

    def cancel(self, digest: str, returned: bool = True) -> None:
        self._add(Cancelled(digest, self._change(digest, OrderStatus.CANCELLED), returned))

    def expire(self, digest: str, returned: bool = True) -> None:
        self._add(Expired(digest, self._change(digest, OrderStatus.EXPIRED), returned))

    def reinstate(self, digest: str, payment_id: str) -> None:
        self._add(Reinstated(digest, self._change(digest, OrderStatus.SETTLED, (payment_id, PaymentFate.SETTLED))))

    def pay_too_late(self, digest: str, payment_id: str) -> None:
        order = self._change(digest, OrderStatus.REFUND_DUE, (payment_id, PaymentFate.TOO_LATE))
        self._add(PaymentTooLate(digest, order))

    def pay_twice(self, digest: str, payment_id: str) -> None:
        order = self._change(digest, OrderStatus.SETTLED, (payment_id, PaymentFate.DUPLICATE))
        self._add(DuplicatePayment(digest, order))
