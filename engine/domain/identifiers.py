"""The shapes of ids (contract §1), and the id of an order, which is a digest of what makes it unique."""

import re
from binascii import b2a_base64
from hashlib import blake2b
from typing import Annotated, NamedTuple

from msgspec import Meta

SALE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}\Z"
CHANNEL_PATTERN = r"^(?!(?:shared|withheld)\Z)[a-z][a-z0-9_]{0,31}\Z"
POOL_PATTERN = r"^[a-z][a-z0-9_]{0,31}\Z"
TEXT_PATTERN = r"^[^\x00-\x1f\x7f-\x9f\ud800-\udfff]*\Z"
"""Neither control characters (Unicode's Cc) nor lone surrogates, which no store could keep."""
CURRENCY_PATTERN = r"^[A-Z]{3}\Z"
ORDER_ID_PATTERN = r"^[A-Za-z0-9_-]{24}\." + SALE_ID_PATTERN.removeprefix("^")
IDEMPOTENCY_KEY_PATTERN = r"^[\x21-\x7e]{1,255}\Z"

PRICE_MINOR_MAX = 10**9
DISCOUNT_MINOR_MAX = 10**12
FREIGHT_MINOR_MAX = 10**12
ORDER_MINOR_MAX = 10**13
SKU_QUANTITY_MAX = 10**9
LINE_QUANTITY_MAX = 9999
LINES_MAX = 200
HOLD_SECONDS_MAX = 604_800
BUYER_PART_LENGTH = 12
ORDER_PART_LENGTH = 12
ORDER_DIGEST_LENGTH = BUYER_PART_LENGTH + ORDER_PART_LENGTH

SaleId = Annotated[str, Meta(pattern=SALE_ID_PATTERN)]
Channel = Annotated[str, Meta(pattern=CHANNEL_PATTERN)]
Pool = Annotated[str, Meta(pattern=POOL_PATTERN)]
Name = Annotated[str, Meta(min_length=1, max_length=128, pattern=TEXT_PATTERN)]
"""An id given by a caller: sku, style, buyer_id, payment_id, document_id, reference, line_id."""
Currency = Annotated[str, Meta(pattern=CURRENCY_PATTERN)]

_HALF_BYTES = 9
_URL_SAFE = bytes.maketrans(b"+/", b"-_")
_SALE_ID = re.compile(SALE_ID_PATTERN)
_ORDER_DIGEST = re.compile(r"[A-Za-z0-9_-]{24}\Z")
_IDEMPOTENCY_KEY = re.compile(IDEMPOTENCY_KEY_PATTERN)


class OrderId(NamedTuple):
    """An order's id taken apart: which sale it is of, and its digest within that sale."""

    sale_id: str
    digest: str

    def __str__(self) -> str:
        return f"{self.digest}.{self.sale_id}"

    @property
    def buyer_part(self) -> str:
        """The part of the digest that all orders of its buyer share."""
        return self.digest[:BUYER_PART_LENGTH]

    @classmethod
    def parse(cls, text: str) -> "OrderId | None":
        """The id that `text` spells, or None where it cannot be one."""
        digest, dot, sale_id = (
            text[:ORDER_DIGEST_LENGTH],
            text[ORDER_DIGEST_LENGTH : ORDER_DIGEST_LENGTH + 1],
            text[ORDER_DIGEST_LENGTH + 1 :],
        )
        if dot != "." or not _ORDER_DIGEST.match(digest) or not _SALE_ID.match(sale_id):
            return None
        return cls(sale_id, digest)

    @classmethod
    def of(cls, sale_id: str, channel: str, buyer_id: str, idempotency_key: str) -> "OrderId":
        """The id of the one order that this buyer makes in this sale under this key."""
        return cls(sale_id, order_digest(sale_id, channel, buyer_id, idempotency_key))

    @classmethod
    def buyer_part_of(cls, sale_id: str, channel: str, buyer_id: str) -> str:
        """The part of the digests of all of this buyer's orders in this sale."""
        return _text(_buyer_digest(sale_id, channel, buyer_id).digest())


def order_digest(sale_id: str, channel: str, buyer_id: str, idempotency_key: str) -> str:
    """144 bits of BLAKE2b that tell an order from every other.

    The first half is of the buyer, under which the partition keeps their orders together; the second is of the key as
    well: the same hash, gone on with.
    """
    digest = _buyer_digest(sale_id, channel, buyer_id)
    buyer_half = digest.digest()
    digest.update(idempotency_key.encode())
    return b2a_base64(buyer_half + digest.digest(), newline=False).translate(_URL_SAFE).decode()


def _buyer_digest(sale_id: str, channel: str, buyer_id: str) -> blake2b:
    # No two tuples share a text: neither a sale's id nor a channel has a slash, and the length says where a buyer ends.
    return blake2b(f"{sale_id}/{channel}/{len(buyer_id)}/{buyer_id}".encode(), digest_size=_HALF_BYTES)


def _text(digest: bytes) -> str:
    """As `urlsafe_b64encode`, for half of what that costs."""
    return b2a_base64(digest, newline=False).translate(_URL_SAFE).decode()


def is_sale_id(text: str) -> bool:
    """Whether `text` has the shape of a sale id."""
    return _SALE_ID.match(text) is not None


def is_idempotency_key(text: str) -> bool:
    """Whether `text` is 1 to 255 visible ASCII characters."""
    return _IDEMPOTENCY_KEY.match(text) is not None


def body_digest(encoded: bytes) -> str:
    """72 bits that tell whether a repeated document is the same, of its canonical encoding: 12 characters."""
    return _text(blake2b(encoded, digest_size=_HALF_BYTES).digest())
