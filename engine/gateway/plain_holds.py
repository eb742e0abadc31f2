"""Holds that are plainly right, decoded at a fraction of the price.

Most of what decoding a `HoldRequest` costs is its regular expressions. For text that is nothing but printable
characters, and for a channel seen before, they need not be asked. Whatever this does not accept may be right all the
same: only the general decoder (`web/body.py`) refuses.
"""

import re
from functools import lru_cache
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine.domain.identifiers import CHANNEL_PATTERN, LINE_QUANTITY_MAX, LINES_MAX
from engine.domain.orders import HoldRequest, RequestedLine

CHANNELS_MAX = 1024
"""Channels whose shape is remembered."""

PlainText = Annotated[str, Meta(min_length=1, max_length=128)]
"""A Name, but for its pattern, which `str.isprintable` implies: no control character and no surrogate is printable."""


class PlainLine(RequestedLine, frozen=True, gc=False):
    """A line of it."""

    sku: PlainText
    quantity: Annotated[int, Meta(ge=1, le=LINE_QUANTITY_MAX)]
    line_id: PlainText | UnsetType = UNSET


class PlainHold(HoldRequest, frozen=True, gc=False):
    """A hold request as `plain_hold` decodes it."""

    buyer_id: PlainText
    channel: str
    lines: Annotated[list[PlainLine], Meta(min_length=1, max_length=LINES_MAX)]  # type: ignore[assignment]  # frozen
    reference: PlainText | UnsetType = UNSET


_decode = msgspec.json.Decoder(PlainHold).decode


def plain_hold(body: bytes) -> PlainHold | None:
    """The request that `body` spells if it obeys every rule beyond doubt, else None."""
    try:
        if not body.isascii():
            body.decode()  # msgspec does not look into members that it passes over
        hold = _decode(body)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return None
    if not hold.buyer_id.isprintable() or not _is_channel(hold.channel):
        return None
    if hold.reference is not UNSET and not hold.reference.isprintable():
        return None
    return hold if _are_plain(hold.lines) else None


def _are_plain(lines: list[PlainLine]) -> bool:
    for line in lines:
        if not line.sku.isprintable() or not (line.line_id is UNSET or line.line_id.isprintable()):
            return False
    if len(lines) == 1:
        return True
    line_ids = {str(number) if line.line_id is UNSET else line.line_id for number, line in enumerate(lines, 1)}
    return len(line_ids) == len(lines)


_channel_pattern = re.compile(CHANNEL_PATTERN)


@lru_cache(CHANNELS_MAX)
def _is_channel(text: str) -> bool:
    return _channel_pattern.match(text) is not None
