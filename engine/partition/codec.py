"""How commands and answers travel: MessagePack both ways, the layouts shared with `scripts/lua/partition.lua`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from engine.domain.commands import Command, Hold
from engine.domain.errors import PartitionUnavailable
from engine.domain.orders import OrderRecord
from engine.domain.outcomes import Outcome
from engine.domain.sales import StockLevels
from engine.partition.hold_template import EncodedHold

CALL_FORMAT = 3


class Header(Struct, array_like=True, frozen=True):
    """What goes before the commands of a batch."""

    format: int
    epoch: int
    """The epoch the batch was made for; 0 where it is not known yet, which is answered with the one in force."""
    not_after_ms: int
    """By Redis' clock; later than this nothing of the batch may happen."""
    backlog_max_entries: int
    """Entries the ledger may be behind before new holds are refused."""
    retention_ms: int
    """How long after its close a sale's orders can be read here."""
    run: str
    """The run of Redis that the guard vouched for: only on it may a new partition be made."""


class Reply(Struct, gc=False):  # a third of the cost of a named tuple
    """One command's outcome and what comes with it.

    | outcome | detail |
    |---|---|
    | DONE of hold | [sequence, held_until_ms, amount_minor, currency, [unit price of each line]] |
    | REPEATED of hold; DONE, REPEATED of cancel, get_order | [order] |
    | DONE, REPEATED of settle; PAYMENT_TOO_LATE, DUPLICATE_PAYMENT | [order, whether it was recorded before] |
    | DONE of list_buyer_orders | [[[digest, order], …]] |
    | DONE of check_short | [[verdict, …], [position, …]], see CheckShort |
    | DONE of get_availability | [status, at_ms, [[sku, available], …]] |
    | DONE of get_sale | [state, definition, [[sku, levels], …]] |
    | DONE of define | [whether it was created] |
    | DONE, REPEATED of change_stock, of a transition | [] |
    | DONE of expire | [orders expired, whether more are due] |
    | SOLD_OUT | [sku, units available to the channel] |
    | BUYER_LIMIT_REACHED | [scope, limit, units bought] |
    | PRICE_CHANGED | [amount_minor] |
    | AMOUNT_MISMATCH | [amount_minor, currency] |
    | SKU_NOT_FOUND | [sku] |
    | ORDER_NOT_HELD | [status] |
    | INVALID, CONFLICT | [field or SKU, reason] |
    """

    outcome: Outcome
    detail: list[Any]

    def held(self) -> "NewHold":
        """What has just been held; of DONE of a hold alone."""
        return NewHold(*self.detail)

    def order(self) -> OrderRecord:
        """The order in it. Only where the table above says that there is one."""
        return msgspec.convert(self.detail[0], OrderRecord)

    @property
    def recorded_before(self) -> bool:
        """Whether a settlement, or a recorded refusal, repeats an earlier one."""
        return bool(self.detail[1])

    def buyer_orders(self) -> list[tuple[str, OrderRecord]]:
        """(digest, order) of list_buyer_orders, newest first."""
        return msgspec.convert(self.detail[0], list[tuple[str, OrderRecord]])

    def sale(self) -> "SaleSnapshot":
        """The sale in the answer of get_sale."""
        return msgspec.convert(self.detail, SaleSnapshot)


class NewHold(NamedTuple):
    """What a new order has that its request did not say."""

    sequence: int
    held_until_ms: int
    amount_minor: int
    currency: str
    unit_prices_minor: list[int]
    """Of each line."""


class SaleState(Struct, array_like=True, frozen=True):
    """A partition's state as get_sale answers it."""

    status: str
    version: int
    """Counts the operators' changes; the sale's ETag."""
    sequence: int
    at_ms: int
    epoch: int
    persisted: int
    """The last sequence number that the ledger is known to hold."""
    hold_ms: int
    closed_at_ms: int
    """0 while it is not closed."""
    ever_held: bool


class SaleSnapshot(Struct, array_like=True, frozen=True):
    """A sale at one sequence number."""

    state: SaleState
    definition: str
    levels: list[tuple[str, StockLevels]]


class BatchAnswer(Struct, array_like=True):
    """What the script answers to a batch: the outcome of the batch, then of its commands if it was looked at."""

    outcome: int
    at_ms: int
    epoch: int
    run: str
    reason: str
    replies: list[list[Any]]


_SHORT_ARRAY_MAX = 0x9F
"""The first byte of an array of up to 15 elements; a longer one has two bytes more. None here has 65,536."""
_encoder = msgspec.msgpack.Encoder()
_OUTCOMES = {int(outcome): outcome for outcome in Outcome}
_answer_decoder = msgspec.msgpack.Decoder(BatchAnswer)


def encode_header(header: Header) -> bytes:
    """The script's first argument."""
    return _encoder.encode(header)


Travelling = Command | EncodedHold
"""What goes to the script."""


def encode_commands(commands: Sequence[Travelling]) -> bytes:
    """The script's second argument: each command by itself, its verb and fields one behind the other.

    So the script reads them from a stack, and need not make a table of each command and each line: a fifth of the cost.
    They travel as MessagePack's strings, whatever their bytes, for Redis' own decoder knows no other.
    """
    pieces = [_array_header(len(commands))]
    for command in commands:
        fields = command.fields if isinstance(command, EncodedHold) else _encode_fields(command)
        pieces += (_string_header(len(fields)), fields)
    return b"".join(pieces)


def _array_header(count: int) -> bytes:
    return b"\xdd" + count.to_bytes(4, "big")


def _string_header(length: int) -> bytes:
    return b"\xd9%c" % length if length < 256 else b"\xdb" + length.to_bytes(4, "big")


def _encode_fields(command: Command) -> bytes:
    encoded = _encoder.encode(command.flat() if isinstance(command, Hold) else command)
    return encoded[1 if encoded[0] <= _SHORT_ARRAY_MAX else 3 :]  # without the array's header


def decode_answer(encoded: bytes) -> BatchAnswer:
    """Raises PartitionUnavailable where the bytes are no answer: then the script is not ours."""
    try:
        return _answer_decoder.decode(encoded)
    except msgspec.MsgspecError as error:
        raise PartitionUnavailable(f"the script's answer cannot be read: {error}") from error


def replies_of(answer: BatchAnswer) -> list[Reply]:
    """The outcomes of a batch's commands, in their order."""
    return [Reply(_OUTCOMES[reply[0]], reply[1:]) for reply in answer.replies]
