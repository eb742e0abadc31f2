"""What an audit answers: checks that hold or do not, each in a line; being unable to tell is an exception."""

from dataclasses import dataclass
from typing import Any

from engine.domain.errors import MiaocangError

DIFFERENCES_NAMED_MAX = 10
"""Differences that a check's detail names; further ones are only counted."""


class CannotTell(MiaocangError):
    """There is nothing to compare, or it cannot be read: the audit neither holds nor fails."""


class SaleUnknown(CannotTell):
    """Neither store has heard of the sale."""


@dataclass(frozen=True)
class Check:
    """One promise, recomputed."""

    name: str
    holds: bool
    detail: str
    """The numbers it rests on; what differs, where it does not hold."""


@dataclass(frozen=True)
class AuditReport:
    """Every check of one sale."""

    sale_id: str
    checks: list[Check]

    @property
    def holds(self) -> bool:
        """Whether every check holds; never true of no checks at all."""
        return bool(self.checks) and all(check.holds for check in self.checks)

    def document(self) -> dict[str, Any]:
        """The report as the contract's §5 has it, ready for JSON."""
        checks = [{"name": check.name, "holds": check.holds, "detail": check.detail} for check in self.checks]
        return {"holds": self.holds, "checks": checks}


class Differences:
    """Collects what differs: the first few in words, all of them by number."""

    def __init__(self) -> None:
        self.count = 0
        self._named: list[str] = []

    def add(self, words: str) -> None:
        """One more difference."""
        self.count += 1
        if len(self._named) < DIFFERENCES_NAMED_MAX:
            self._named.append(words)

    def extend(self, count: int, words: list[str]) -> None:
        """`count` more differences, of which the first ones are given in words."""
        self.count += count
        self._named.extend(words[: DIFFERENCES_NAMED_MAX - len(self._named)])

    def check(self, name: str, when_it_holds: str) -> Check:
        """The check that holds if nothing differs."""
        if self.count == 0:
            return Check(name, True, when_it_holds)
        more = f"; and {self.count - len(self._named)} more" if self.count > len(self._named) else ""
        noun = "difference" if self.count == 1 else "differences"
        return Check(name, False, f"{self.count} {noun}: {'; '.join(self._named)}{more}")
