"""The shapes of ids (contract §1), and the id of an order, which is a digest of what makes it unique."""

import re
from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import Annotated, NamedTuple

from msgspec import Meta

SALE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
CHANNEL_PATTERN = r"^(?!(?:shared|withheld)\Z)[a-z][a-z0-9_]{0,31}\Z"
POOL_PATTERN = r"^[a-z][a-z0-9_]{0,31}\Z"
TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*\Z"
"""Neither control characters (Unicode's Cc) nor lone surrogates, which no store could keep."""
CURRENCY_PATTERN = r"^[A-Z]{3}\Z"
IDEMPOTENCY_KEY_PATTERN = r"^[\x21-\x7e]{1,255}\Z"

PRICE_MINOR_MAX = 10**9
DISCOUNT_MINOR_MAX = 10**12
FREIGHT_MINOR_MAX = 10**12
ORDER_MINOR_MAX = 10**13
SKU_QUANTITY_MAX = 10**9
LINE_QUANTITY_MAX = 9999
LINES_MAX = 200
HOLD_SECONDS_MAX = 604_800
ORDER_DIGEST_LENGTH = 22

SaleId = Annotated[str, Meta(pattern=SALE_ID_PATTERN)]
Channel = Annotated[str, Meta(pattern=CHANNEL_PATTERN)]
Pool = Annotated[str, Meta(pattern=POOL_PATTERN)]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=TEXT_PATTERN)]
"""An id given by a caller: sku, style, buyer_id, payment_id, document_id, reference, line_id."""
Currency = Annotated[str, Meta(pattern=CURRENCY_PATTERN)]

_SALE_ID = re.compile(SALE_ID_PATTERN)
_ORDER_DIGEST = re.compile(r"[A-Za-z0-9_-]{22}\Z")
_IDEMPOTENCY_KEY = re.compile(IDEMPOTENCY_KEY_PATTERN)


class OrderId(NamedTuple):
    """An order's id taken apart: which sale it is of, and its digest within that sale."""

    sale_id: str
    digest: str

    def __str__(self) -> str:
        return f"{self.digest}.{self.sale_id}"

    @classmethod
    def parse(cls, text: str) -> "OrderId | None":
        """The id that `text` spells, or None where it cannot be one."""
        digest, dot, sale_id = text[:22], text[22:23], text[23:]
        if dot != "." or not _ORDER_DIGEST.match(digest) or not _SALE_ID.match(sale_id):
            return None
        return cls(sale_id, digest)

    @classmethod
    def of(cls, sale_id: str, channel: str, buyer_id: str, idempotency_key: str) -> "OrderId":
        """The id of the one order that this buyer makes in this sale under this key: 128 bits of BLAKE2b.

        Each part is preceded by its length, so that no two different tuples share a text.
        """
        digest = blake2b(digest_size=16)
        for part in (sale_id, channel, buyer_id, idempotency_key):
            encoded = part.encode()
            digest.update(len(encoded).to_bytes(4, "big"))
            digest.update(encoded)
        return cls(sale_id, urlsafe_b64encode(digest.digest())[:ORDER_DIGEST_LENGTH].decode())


def is_sale_id(text: str) -> bool:
    """Whether `text` has the shape of a sale id."""
    return _SALE_ID.match(text) is not None


def is_idempotency_key(text: str) -> bool:
    """Whether `text` is 1 to 255 visible ASCII characters."""
    return _IDEMPOTENCY_KEY.match(text) is not None


def body_digest(encoded: bytes) -> str:
    """96 bits that tell whether a repeated request is the same, of its canonical encoding: 16 characters."""
    return urlsafe_b64encode(blake2b(encoded, digest_size=12).digest()).decode()
