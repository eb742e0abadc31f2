"""Choices that look random and are the same in every run: each is drawn from the names of what it is about."""

from collections.abc import Mapping
from hashlib import blake2b
from typing import TypeVar

SEED = "miaocang demo 1"

Choice = TypeVar("Choice")


def draw(*names: str) -> float:
    """A number in [0, 1), the same for the same names."""
    digest = blake2b("\0".join((SEED, *names)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53  # 53 bits, because more would round up to 1


def draw_one(weights: Mapping[Choice, int], *names: str) -> Choice:
    """One of the choices, each as likely as its weight says."""
    left = draw(*names) * sum(weights.values())
    for choice, weight in weights.items():
        if left < weight:
            return choice
        left -= weight
    raise AssertionError("a draw is below the sum of the weights")
