"""The bytes of a checkout's requests, the same from every generator: wrk's (bench/wrk/orders.lua) has them too."""

from typing import NamedTuple

CHANNEL = "douyin"
SKU = "TEE-BLK-M"
PRICE_MINOR = 1990
CURRENCY = "CNY"
PREFIX_LENGTH = 4
"""Of a buyer's id: three characters for the run, one for the generator's thread; eight of a counter follow."""


class Shop(NamedTuple):
    """Whom to ask for what."""

    host: str
    port: int
    checkout_key: str
    sale_id: str


def buyer_of(prefix: str, number: int) -> str:
    """A buyer's id of 12 bytes."""
    assert len(prefix) == PREFIX_LENGTH
    return f"{prefix}{number:08x}"


def key_of(buyer_id: str) -> str:
    """The idempotency key of a buyer's one order."""
    return f"click-{buyer_id}"


def order_body(buyer_id: str, sku: str = SKU) -> bytes:
    """A cart of one unit, with the price that the buyer was shown."""
    return (
        f'{{"buyer_id":"{buyer_id}","channel":"{CHANNEL}","lines":[{{"sku":"{sku}","quantity":1}}],'
        f'"expected_amount_minor":{PRICE_MINOR}}}'
    ).encode()


def order_request(shop: Shop, buyer_id: str, sku: str = SKU) -> bytes:
    """One whole request for an order."""
    body = order_body(buyer_id, sku)
    head = (
        f"POST /v1/sales/{shop.sale_id}/orders HTTP/1.1\r\nHost: {shop.host}:{shop.port}\r\n"
        f"Authorization: Bearer {shop.checkout_key}\r\nContent-Type: application/json\r\n"
        f"Idempotency-Key: {key_of(buyer_id)}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def order_requests(shop: Shop, prefix: str, count: int) -> list[bytes]:
    """`count` requests of as many buyers, ready to be sent: numbered from 1."""
    mark = "\x00" * 8  # only the number differs, so that the rest is made once
    parts = order_request(shop, f"{prefix}{mark}").split(mark.encode())
    assert len(parts) == 3
    first, between, last = parts
    numbers = (b"%08x" % number for number in range(1, count + 1))
    return [b"".join((first, number, between, number, last)) for number in numbers]
