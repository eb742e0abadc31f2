"""Holds encoded at a fraction of the price, where many want the same: in a flash sale nearly all do."""

import msgspec
from msgspec import Struct

from engine.domain.commands import Hold
from engine.domain.identifiers import BUYER_PART_LENGTH

_encode = msgspec.msgpack.Encoder().encode
_NO_REFERENCE = _encode("")


class EncodedHold(Struct, gc=False, eq=False):
    """A hold as it travels, with what has to be known of it on the way."""

    fields: bytes
    channel: str
    line_count: int


class HoldTemplate:
    """What all holds of one cart through one channel have in common, encoded once."""

    __slots__ = ("_before_buyer_part", "_before_order_part", "_channel", "_encoded_channel", "_line_count", "_rest")

    def __init__(self, example: Hold) -> None:
        verb, buyer_part, order_part, channel, _buyer_id, _reference, *rest = example.flat()
        self._channel = example.channel
        self._line_count = len(example.lines)
        self._before_buyer_part = _encode(verb) + _encode(buyer_part)[:1]
        self._before_order_part = _encode(order_part)[:1]
        self._encoded_channel = _encode(channel)
        self._rest = b"".join(map(_encode, rest))

    def hold(self, digest: str, buyer_id: str, reference: str) -> EncodedHold:
        """The hold of another buyer: the same bytes as of `Hold.flat`."""
        text = digest.encode()
        pieces = (
            self._before_buyer_part,
            text[:BUYER_PART_LENGTH],
            self._before_order_part,
            text[BUYER_PART_LENGTH:],
            self._encoded_channel,
            _encode(buyer_id),
            _encode(reference) if reference else _NO_REFERENCE,
            self._rest,
        )
        return EncodedHold(b"".join(pieces), self._channel, self._line_count)
