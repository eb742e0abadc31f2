"""When a live's links go up, and how many people watch meanwhile."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

LINKS_OF_A_LIVE = 8
HOLD_SECONDS_MIN = 3
BURST_HOLD_SECONDS_MAX = 15
LIVE_HOLD_SECONDS_MAX = 300
CALM_SHARE = 0.35
"""Of the most people: those who watch between two links."""


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of the live; the number of people goes evenly from one share of the most to the other."""

    name: str
    until_seconds: float
    share_from: float
    share_to: float


@dataclass(frozen=True, slots=True)
class Timetable:
    """One live, from the waiting room to the last tail."""

    stages: tuple[Stage, ...]
    links_at_seconds: tuple[float, ...]
    more_after_seconds: float
    """From a link to the moment when the host puts what was kept back of it on sale."""
    hold_seconds: int

    @property
    def length_seconds(self) -> float:
        return self.stages[-1].until_seconds

    def stage_at(self, seconds: float) -> Stage | None:
        """The stage of that moment; None once the live is over."""
        return next((stage for stage in self.stages if seconds < stage.until_seconds), None)

    def people_at(self, seconds: float, people_max: int) -> int | None:
        """How many people there are at that moment; None once the live is over."""
        stage = self.stage_at(seconds)
        if stage is None:
            return None
        position = self.stages.index(stage)
        begins = self.stages[position - 1].until_seconds if position else 0.0
        done = (seconds - begins) / (stage.until_seconds - begins)
        return round(people_max * (stage.share_from + (stage.share_to - stage.share_from) * done))


def burst(minutes: float) -> Timetable:
    """One link: a waiting room that fills, a countdown, the spike, and a tail."""
    whole = minutes * 60
    stages = (
        Stage("waiting room", 0.30 * whole, 0.1, 0.6),
        Stage("countdown", 0.40 * whole, 0.6, 1.0),
        Stage("spike", 0.65 * whole, 1.0, 1.0),
        Stage("tail", whole, 1.0, 0.25),
    )
    hold_seconds = _between(HOLD_SECONDS_MIN, whole / 8, BURST_HOLD_SECONDS_MAX)
    return Timetable(stages, (0.40 * whole,), 0.12 * whole, hold_seconds)


def live(minutes: float) -> Timetable:
    """Eight links at even intervals: before each one people come together, and after it most of them leave again."""
    whole = minutes * 60
    stages = [Stage("waiting room", 0.05 * whole, 0.1, CALM_SHARE)]
    interval = 0.9 * whole / LINKS_OF_A_LIVE
    links = []
    for number in range(1, LINKS_OF_A_LIVE + 1):
        begins = stages[-1].until_seconds
        links.append(begins + 0.5 * interval)
        stages += [
            Stage("calm", begins + 0.35 * interval, CALM_SHARE, CALM_SHARE),
            Stage(f"countdown to link {number}", links[-1], CALM_SHARE, 1.0),
            Stage(f"spike of link {number}", begins + 0.7 * interval, 1.0, 1.0),
            Stage(f"tail of link {number}", begins + interval, 1.0, CALM_SHARE),
        ]
    stages.append(Stage("leaving", whole, CALM_SHARE, 0.1))
    hold_seconds = _between(HOLD_SECONDS_MIN, whole / 36, LIVE_HOLD_SECONDS_MAX)
    return Timetable(tuple(stages), tuple(links), 0.25 * interval, hold_seconds)


def _between(least: int, wanted: float, most: int) -> int:
    return int(max(least, min(wanted, most)))


SHAPES: Mapping[str, Callable[[float], Timetable]] = {"burst": burst, "live": live}
MINUTES: Mapping[str, float] = {"burst": 2.0, "live": 180.0}
"""How long each shape is where nobody says otherwise; another number plays the same in more or less time."""
