"""What was measured: series of figures by name, with their median and spread."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field


@dataclass
class Series:
    """One figure, measured once a round."""

    unit: str
    values: list[float] = field(default_factory=list)
    spread: tuple[float, float] | None = None
    """The least and the most, where only a median was told."""

    @property
    def median(self) -> float:
        """The middle value; of two, their mean."""
        return statistics.median(self.values)

    @property
    def least(self) -> float:
        """The least value of all rounds."""
        return min(self.values) if self.spread is None else self.spread[0]

    @property
    def most(self) -> float:
        """The greatest value of all rounds."""
        return max(self.values) if self.spread is None else self.spread[1]

    def document(self) -> dict[str, object]:
        """As it goes into the JSON file."""
        return {
            "unit": self.unit,
            "median": self.median,
            "min": self.least,
            "max": self.most,
            "rounds": len(self.values),
            "values": self.values,
        }


@dataclass(frozen=True)
class Bar:
    """One line of "must show"."""

    name: str
    bar: str
    """What is asked for, in words."""
    measured: str
    """What was measured, in words; empty where it was not measured in this run."""
    is_met: bool | None
    """None where it was not measured."""

    def document(self) -> dict[str, object]:
        """As it goes into the JSON file."""
        return {"name": self.name, "bar": self.bar, "measured": self.measured, "met": self.is_met}


class Results:
    """Everything that one run of the benchmark has found."""

    def __init__(self) -> None:
        self._series: dict[str, Series] = {}
        self.failures: list[str] = []
        """What went wrong in a scenario: each is a reason not to trust the run."""
        self.remarks: list[str] = []
        """What a reader should know of this run."""
        self.demonstrations: list[dict[str, object]] = []
        self.machine: dict[str, object] = {}

    def add(self, name: str, value: float, unit: str) -> None:
        """Note one more value of a series. A series has one unit."""
        if not math.isfinite(value):
            raise ValueError(f"{name}: {value} is no measurement")
        series = self._series.setdefault(name, Series(unit))
        assert series.unit == unit, f"{name} was in {series.unit} and is now in {unit}"
        series.values.append(value)

    def add_summary(self, name: str, median: float, spread: tuple[float, float], unit: str) -> None:
        """Note a series of which somebody else has kept the values."""
        self._series[name] = Series(unit, [median], spread)

    def remark(self, remark: str) -> None:
        """Note something once."""
        if remark not in self.remarks:
            self.remarks.append(remark)

    def series(self, name: str) -> Series | None:
        """A series, or None where nothing of that name was measured."""
        return self._series.get(name)

    def median(self, name: str) -> float | None:
        """A series' median, or None where nothing of that name was measured."""
        found = self._series.get(name)
        return None if found is None else found.median

    def ratio(self, above: str, below: str) -> Series | None:
        """Round by round one series over another: what was measured minutes apart is not compared with each other.

        None where one was not measured, or not in the same rounds.
        """
        a, b = self._series.get(above), self._series.get(below)
        if a is None or b is None or len(a.values) != len(b.values):
            return None
        return Series("×", [x / y for x, y in zip(a.values, b.values, strict=True)])

    def items(self) -> Iterator[tuple[str, Series]]:
        """All series in the order in which they came up."""
        yield from self._series.items()

    def document(self, bars: Sequence[Bar]) -> dict[str, object]:
        """The JSON file."""
        return {
            "machine": self.machine,
            "must_show": [bar.document() for bar in bars],
            "failures": self.failures,
            "remarks": self.remarks,
            "demonstrations": self.demonstrations,
            "measures": {name: series.document() for name, series in self._series.items()},
        }
