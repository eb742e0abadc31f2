"""The one table of outcomes: what a partition can answer to a command.

The numbers are shared with `scripts/lua/includes/codes.lua`; a test compares the two. A name that callers see is the
contract's own code (contract §3), so that it needs no second table of names.
"""

from enum import IntEnum, unique


@unique
class Outcome(IntEnum):
    """What became of one command. Numbers are part of the script's protocol: never reuse one."""

    # the command did its work
    DONE = 0
    """Applied now, by this command."""
    REPEATED = 1
    """Applied before, by a command of the same key; nothing changed now."""

    # a business "no": nothing changed (but see the two recorded outcomes)
    SOLD_OUT = 10
    BUYER_LIMIT_REACHED = 11
    PRICE_CHANGED = 12
    SALE_NOT_OPEN = 13
    SALE_CLOSED = 14
    ORDER_NOT_HELD = 15
    PAYMENT_TOO_LATE = 16
    """Recorded: the payment is journalled as due for refund."""
    DUPLICATE_PAYMENT = 17
    """Recorded: the payment is journalled as due for refund."""
    CONFLICT = 18
    SALE_NOT_FOUND = 20
    SKU_NOT_FOUND = 21
    ORDER_NOT_FOUND = 22
    INVALID = 30
    IDEMPOTENCY_KEY_REUSED = 31
    AMOUNT_MISMATCH = 32
    LEDGER_BEHIND = 40

    # the whole batch was turned away before any command was looked at
    FROZEN = 50
    """The partition is being reconciled, or belongs to another run of Redis."""
    STALE_EPOCH = 51
    """The batch was made for another epoch; the answer carries the one in force."""
    TOO_LATE = 52
    """Redis' clock is past the batch's `not_after`."""
    PARTITION_MISSING = 53
    """Redis holds no such partition: no such sale, or a Redis that lost it."""

    # ask again: useful work was done, but not all that this command needs
    DUE_HOLDS_REMAIN = 60
    """Units of holds that are due may still come back; the same command is to be sent again."""


RECORDED_REFUSALS = frozenset({Outcome.PAYMENT_TOO_LATE, Outcome.DUPLICATE_PAYMENT})
"""Refusals that are state changes: journalled and on disk before they are answered, and repeated alike."""
