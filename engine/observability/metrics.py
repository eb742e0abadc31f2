"""Every metric, in base units, defined once. Any process's /metrics shows all processes of one engine.

prometheus-client runs in multiprocess mode where PROMETHEUS_MULTIPROC_DIR is set before its first import, which the
supervisor does for its children.
"""

from pathlib import Path

from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, values
from prometheus_client import generate_latest as _generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from engine.observability.aggregates import CountBuffer, HistogramBuffer

CONTENT_TYPE = CONTENT_TYPE_LATEST

_LATENCY_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

REQUESTS = Counter(
    "miaocang_http_requests",
    "HTTP requests, by the code they were answered with.",
    ["interface", "route", "status", "code"],
)
REQUEST_SECONDS = Histogram(
    "miaocang_http_request_seconds",
    "From a request's arrival to its answer.",
    ["interface", "route"],
    buckets=_LATENCY_SECONDS,
)
HOLD_SECONDS = Histogram(
    "miaocang_hold_seconds", "From a hold's arrival at the gateway to its outcome.", buckets=_LATENCY_SECONDS
)
REFUSALS = Counter("miaocang_refusals", "Business refusals, by code.", ["code"])
HOLD_SECONDS_BUFFER = HistogramBuffer(HOLD_SECONDS)
"""Where holds are observed: there are tens of thousands a second."""
REFUSALS_BUFFER = CountBuffer(REFUSALS)
"""Where holds' refusals are counted, likewise."""
IN_FLIGHT = Gauge(
    "miaocang_http_requests_in_flight", "Requests being answered.", ["interface"], multiprocess_mode="livesum"
)
FAST_LANE_REQUESTS = Counter(
    "miaocang_fast_lane_requests", "Requests answered on the fast lane, by who answered (hot, general).", ["by"]
)
FAST_LANE_HANDOVERS = Counter(
    "miaocang_fast_lane_handovers", "Connections that left the fast lane for the general server, by reason.", ["reason"]
)

BATCH_COMMANDS = Histogram(
    "miaocang_batch_commands", "Commands in one call of the partition's script.", buckets=_BATCH_SIZES
)
CALL_SECONDS = Histogram(
    "miaocang_partition_call_seconds", "One call of the partition's script.", buckets=_LATENCY_SECONDS
)
CALL_RETRIES = Counter("miaocang_partition_call_retries", "Calls sent again, by cause.", ["cause"])
QUEUED_COMMANDS = Gauge("miaocang_batch_queue_commands", "Commands waiting for a call.", multiprocess_mode="livesum")
BOUND_REACHED = Counter(
    "miaocang_bound_reached", "Requests turned away, or work cut short, at a named bound.", ["bound"]
)
REDIS_ERRORS = Counter("miaocang_redis_errors", "Errors of Redis, by kind.", ["kind"])
POSTGRES_ERRORS = Counter("miaocang_postgres_errors", "Errors of PostgreSQL, by kind.", ["kind"])

STOCK_UNITS = Gauge(
    "miaocang_stock_units",
    "Units by sale, SKU and state (withheld, available, held, settled).",
    ["sale", "sku", "state"],
    multiprocess_mode="mostrecent",
)
JOURNAL_ENTRIES = Gauge(
    "miaocang_journal_entries",
    "Entries in Redis that the ledger does not hold yet.",
    ["sale"],
    multiprocess_mode="mostrecent",
)
JOURNAL_LENGTH_RECORDS = Gauge(
    "miaocang_journal_length_records",
    "Records in a partition's journal stream.",
    ["sale"],
    multiprocess_mode="mostrecent",
)
PERSISTER_LAG_ENTRIES = Gauge(
    "miaocang_persister_lag_entries", "Entries the ledger is behind, in all.", multiprocess_mode="mostrecent"
)
PERSISTER_LAG_SECONDS = Gauge(
    "miaocang_persister_lag_seconds",
    "Age of the oldest entry that the ledger does not hold.",
    multiprocess_mode="mostrecent",
)
PERSISTED_ENTRIES = Counter("miaocang_persisted_entries", "Journal entries written into the ledger.")
EXPIRED_HOLDS = Counter("miaocang_expired_holds", "Holds given back at their deadline by the sweeper.")
SWEEP_LATENESS_SECONDS = Histogram(
    "miaocang_sweep_lateness_seconds",
    "From a hold's deadline to its expiry by the sweeper.",
    buckets=(0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 30.0),
)
PARTITIONS_FROZEN = Gauge("miaocang_partitions_frozen", "Partitions that are frozen.", multiprocess_mode="mostrecent")
PARTITION_OPENINGS = Counter("miaocang_partition_openings", "Partitions opened by the guard under a new epoch.")
LOOP_FAILURES = Counter(
    "miaocang_worker_loop_failures", "Failures of a worker's loop, which then starts again.", ["loop"]
)
FREEZES = Counter("miaocang_partition_freezes", "Partitions left frozen by the guard, by reason.", ["reason"])


def exposition() -> bytes:
    """The metrics in Prometheus' text format: of all processes that share the metrics directory, or of this one."""
    if values.ValueClass.__name__ != "MmapedValue":
        return _generate_latest(REGISTRY)
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return _generate_latest(registry)


def clear_directory(directory: Path) -> None:
    """Remove what processes of an earlier run have left; to be called before any process of this run starts."""
    directory.mkdir(parents=True, exist_ok=True)
    for file in directory.glob("*.db"):
        file.unlink(missing_ok=True)
