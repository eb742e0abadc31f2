"""Buffered metrics: what was observed is what is shown, to the last one, in both modes of prometheus-client."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from engine.observability.aggregates import CountBuffer, HistogramBuffer, buffers_flushed, flush_buffers

BUCKETS = (0.001, 0.01, 0.1)
VALUES = [0.0, 0.0005, 0.001, 0.0010001, 0.01, 0.05, 0.1, 0.10001, 7.5, float("inf")]

PROGRAM = f"""
import random, sys
from engine.observability.metrics import exposition
from prometheus_client import Counter, Histogram
from engine.observability.aggregates import CountBuffer, HistogramBuffer, flush_buffers
plain = Histogram("plain", "As it is.", buckets={BUCKETS})
buffered = Histogram("buffered", "By a buffer.", buckets={BUCKETS})
counter = Counter("counted", "By a buffer.", ["code"])
observed, counted = HistogramBuffer(buffered), CountBuffer(counter)
for turn in range(5):
    for value in {VALUES[:-1]}:
        plain.observe(value)
        observed.observe(value)
        counted.counts["A",] += 1
    counted.counts["B",] += turn
    flush_buffers()
sys.stdout.write(exposition().decode())
"""


def samples(text: str, name: str) -> dict[str, float]:
    """The values of a metric by what follows its name, without what tells when it was made."""
    found = {}
    for line in text.splitlines():
        if line.startswith(name) and not line.startswith(f"{name}_created"):
            sample, _, value = line.removeprefix(name).rpartition(" ")
            found[sample] = float(value)
    return found


def run(**environment: str) -> str:
    kept = {name: value for name, value in os.environ.items() if name != "PROMETHEUS_MULTIPROC_DIR"}
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**kept, **environment}, capture_output=True, check=True, timeout=60
    )
    return finished.stdout.decode()


@pytest.mark.parametrize("processes", [0, 1, 3])
def test_the_exposition_shows_all_that_was_observed(tmp_path: Path, processes: int) -> None:
    environment = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path)} if processes else {}
    for _ in range(max(1, processes)):
        text = run(**environment)
    rounds = 5 * max(1, processes)
    buffered = samples(text, "buffered")
    assert buffered == pytest.approx(samples(text, "plain"))
    assert buffered["_count"] == rounds * len(VALUES[:-1])
    assert buffered["_sum"] == pytest.approx(rounds * sum(VALUES[:-1]))
    assert buffered['_bucket{le="0.001"}'] == rounds * 3
    assert samples(text, "counted") == {
        '_total{code="A"}': rounds * len(VALUES[:-1]),
        '_total{code="B"}': 10 * max(1, processes),
    }


def test_each_value_falls_into_the_bucket_that_the_histogram_itself_would_choose() -> None:
    registry = CollectorRegistry()
    plain = Histogram("plain", "", buckets=BUCKETS, registry=registry)
    buffered = Histogram("buffered", "", buckets=BUCKETS, registry=registry)
    buffer = HistogramBuffer(buffered)
    for value in VALUES:
        plain.observe(value)
        buffer.observe(value)
    assert samples(generate_latest(registry).decode(), "buffered")["_count"] == 0
    buffer.flush()
    text = generate_latest(registry).decode()
    assert samples(text, "buffered") == samples(text, "plain")
    buffer.flush()
    assert generate_latest(registry).decode() == text


def test_a_counter_without_labels_and_a_histogram_with_them_work_too() -> None:
    registry = CollectorRegistry()
    counts = CountBuffer(Counter("seen", "", registry=registry))
    child = HistogramBuffer(Histogram("taken", "", ["by"], buckets=BUCKETS, registry=registry).labels("us"))
    kept = counts.counts
    for _ in range(3):
        kept[()] += 2
        child.observe(0.05)
        flush_buffers()
    text = generate_latest(registry).decode()
    assert samples(text, "seen") == {"_total": 6}
    assert samples(text, "taken")['_bucket{by="us",le="0.1"}'] == 3


async def test_a_timer_flushes_and_the_end_flushes_what_is_left() -> None:
    registry = CollectorRegistry()
    counts = CountBuffer(Counter("seen", "", registry=registry))

    def shown() -> Any:
        return registry.get_sample_value("seen_total")

    async with buffers_flushed(0.01):
        for total in (1, 2):
            counts.counts[()] += 1
            async with asyncio.timeout(5):
                while shown() != total:
                    await asyncio.sleep(0.005)
    async with buffers_flushed(60):
        counts.counts[()] += 5
        await asyncio.sleep(0)
        assert shown() == 2
    assert shown() == 7
