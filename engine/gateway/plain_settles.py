"""Settlements that are plainly right, decoded at a fraction of the price: see `plain_holds`."""

import re
from functools import lru_cache

import msgspec

from engine.domain.identifiers import CURRENCY_PATTERN
from engine.domain.orders import SettleRequest
from engine.gateway.plain_holds import PlainText

CURRENCIES_MAX = 1024
"""Currencies whose shape is remembered."""


class PlainSettle(SettleRequest, frozen=True, gc=False):
    """A settle request as `plain_settle` decodes it."""

    payment_id: PlainText
    currency: str


_decode = msgspec.json.Decoder(PlainSettle).decode


def plain_settle(body: bytes) -> PlainSettle | None:
    """The request that `body` spells if it obeys every rule beyond doubt, else None."""
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look into members that it passes over
        settle = _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    return settle if settle.payment_id.isprintable() and _is_currency(settle.currency) else None


_currency_pattern = re.compile(CURRENCY_PATTERN)


@lru_cache(CURRENCIES_MAX)
def _is_currency(text: str) -> bool:
    return _currency_pattern.match(text) is not None
