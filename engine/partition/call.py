"""One call of the partition's script: sent, healed, sent again, or honestly unknown."""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.exceptions import NoScriptError

from engine.domain.commands import Define
from engine.domain.errors import MiaocangError, OutcomeUnknown, PartitionFrozen, PartitionUnavailable
from engine.domain.outcomes import Outcome
from engine.observability import metrics
from engine.partition import keyspace
from engine.partition.codec import (
    CALL_FORMAT,
    BatchAnswer,
    Header,
    Reply,
    Travelling,
    decode_answer,
    encode_commands,
    encode_header,
    replies_of,
)
from engine.partition.connections import (
    AnswerLost,
    BusyLoadingError,
    Connections,
    NotSent,
    ResponseError,
    unavailable,
)
from engine.partition.redis_clock import RedisClock
from engine.partition.scripts import load_script

RETRY_DELAY_SECONDS = (0.01, 0.5)
"""The first and the longest pause between two attempts; each is jittered."""
EPOCHS_MAX = 20_000
"""Sales whose epoch is remembered; a forgotten one costs one more round trip."""
JUMP_BELIEVED_SECONDS = 3.0
"""How long Redis' clock is taken to have jumped before its new time is believed: by then the guard has looked."""
TURNS_MAX = 5
"""How often one call may be sent again at once because it was made for another epoch."""


class ScriptFailed(MiaocangError):
    """The script itself failed, before it had written anything: a command of the batch is to blame, or the script."""


@dataclass(frozen=True, slots=True)
class CallSettings:
    """How calls behave."""

    call_timeout_seconds: float
    """How long one attempt may wait for its answer; Redis refuses it when it gets to it later."""
    request_deadline_seconds: float
    """How long attempts are made for one request in all."""
    backlog_max_entries: int
    """Entries that the ledger may be behind before new holds are refused."""
    retention_ms: int
    """How long after its close a sale's orders can be read at the gateway."""


class _Batch(NamedTuple):
    """Commands on their way."""

    encoded: bytes
    size: int
    may_make_partition: bool


class ScriptCaller:
    """Calls the partition's script for batches of commands."""

    def __init__(self, connections: Connections, settings: CallSettings) -> None:
        self._connections = connections
        self._settings = settings
        self._script = load_script("partition")
        self._clock = RedisClock()
        self._epochs: dict[str, int] = {}
        self._jumped_at: float | None = None

    async def call(self, sale_id: str, commands: Sequence[Travelling], deadline: float) -> list[Reply]:
        """Apply `commands` in one atom; attempts end at `deadline` (monotonic seconds).

        A call that lost its answer is sent again as it was: the order record, or a recorded id, answers it.
        Raises PartitionUnavailable, PartitionFrozen, Overloaded, ScriptFailed (nothing was changed) or, once something
        was sent and not answered, OutcomeUnknown in place of any of them.
        """
        batch = _Batch(encode_commands(commands), len(commands), Define in set(map(type, commands)))
        unknown = False
        delay_seconds, delay_max_seconds = RETRY_DELAY_SECONDS
        while True:
            try:
                return await self._attempt(sale_id, batch, deadline)
            except AnswerLost as error:
                unknown = True
                cause: Exception = error
                metrics.CALL_RETRIES.labels(cause="answer_lost").inc()
            except (NotSent, BusyLoadingError) as error:
                cause = error
                metrics.CALL_RETRIES.labels(cause="not_sent").inc()
            except MiaocangError as error:
                if unknown:
                    raise OutcomeUnknown(f"an answer was lost, and then: {error}") from error
                raise
            if time.monotonic() + delay_seconds >= deadline:
                if unknown:
                    raise OutcomeUnknown(str(cause)) from cause
                raise PartitionUnavailable(str(cause)) from cause
            await asyncio.sleep(delay_seconds * random.uniform(0.5, 1.0))  # noqa: S311 - jitter needs no cryptography
            delay_seconds = min(delay_seconds * 2, delay_max_seconds)

    async def _attempt(self, sale_id: str, batch: _Batch, deadline: float) -> list[Reply]:
        """One attempt, with the turns it takes to learn the epoch in force."""
        if not self._clock.known:
            await self._read_clock()
        # asked anew each time, because a Redis that was flushed is still of the same run
        vouched_run = await self._vouched_run() if batch.may_make_partition else ""
        for _ in range(TURNS_MAX):
            sent_at = time.monotonic()
            timeout_seconds = min(self._settings.call_timeout_seconds, max(deadline - sent_at, 0.001))
            answer = await self._evaluate(sale_id, batch.encoded, vouched_run, timeout_seconds)
            metrics.CALL_SECONDS.observe(time.monotonic() - sent_at)
            in_step = self._clock.observe(answer.at_ms, sent_at)
            if in_step:
                self._jumped_at = None  # else one late answer long ago would have the next real jump believed at once
            outcome = Outcome(answer.outcome)
            if outcome is Outcome.DONE:
                metrics.BATCH_COMMANDS.observe(batch.size)
                if sale_id not in self._epochs:  # a partition that this call has made
                    self._learn_epoch(sale_id, answer, sent_at)
                return replies_of(answer)
            if outcome is Outcome.STALE_EPOCH:
                self._learn_epoch(sale_id, answer, sent_at)
            elif outcome is Outcome.PARTITION_MISSING:
                if await self._vouched_run() == answer.run:
                    return [Reply(Outcome.SALE_NOT_FOUND, [])] * batch.size
                raise PartitionFrozen("Redis has started anew and has not been reconciled yet")
            elif outcome is Outcome.TOO_LATE and in_step:
                # Redis came to it late, and has not looked at it: the next attempt gets a time of its own
                raise NotSent("Redis came to the call too late")
            elif outcome is Outcome.TOO_LATE:
                self._distrust_clock(answer.at_ms, sent_at)
                raise PartitionFrozen("Redis' clock has jumped ahead")
            else:
                raise PartitionFrozen(answer.reason)
        raise PartitionUnavailable("the partition's epoch changes faster than it can be followed")

    async def _evaluate(self, sale_id: str, encoded: bytes, vouched_run: str, timeout_seconds: float) -> BatchAnswer:
        header = encode_header(
            Header(
                format=CALL_FORMAT,
                epoch=self._epochs.get(sale_id, 0),
                not_after_ms=self._clock.now_ms() + int(timeout_seconds * 1000),
                backlog_max_entries=self._settings.backlog_max_entries,
                retention_ms=self._settings.retention_ms,
                run=vouched_run,
            )
        )
        keys = keyspace.partition_keys(sale_id)
        words = (self._script.digest, len(keys), *keys, header, encoded)
        try:
            try:
                answer = await self._connections.call("EVALSHA", *words, timeout_seconds=timeout_seconds)
            except NoScriptError:
                metrics.CALL_RETRIES.labels(cause="no_script").inc()
                words = (self._script.text, *words[1:])
                answer = await self._connections.call("EVAL", *words, timeout_seconds=timeout_seconds)
        except ResponseError as error:
            metrics.REDIS_ERRORS.labels(kind="response").inc()
            raise unavailable(error) or ScriptFailed(str(error)) from error
        return decode_answer(answer)

    async def _read_clock(self) -> None:
        sent_at = time.monotonic()
        seconds, microseconds = await self._ask("TIME")
        self._clock.adopt(int(seconds) * 1000 + int(microseconds) // 1000, sent_at)

    def _learn_epoch(self, sale_id: str, answer: BatchAnswer, sent_at: float) -> None:
        """The guard has opened the partition since: whatever made it look, its clock is the one that counts."""
        if len(self._epochs) >= EPOCHS_MAX:
            self._epochs.clear()
        self._epochs[sale_id] = answer.epoch
        self._clock.adopt(answer.at_ms, sent_at)

    def _distrust_clock(self, server_ms: int, sent_at: float) -> None:
        """After some seconds the guard has looked, and frozen what a real jump would end: then that time counts."""
        if self._jumped_at is None:
            self._jumped_at = sent_at
        elif sent_at - self._jumped_at >= JUMP_BELIEVED_SECONDS:
            self._jumped_at = None
            self._clock.adopt(server_ms, sent_at)

    async def _vouched_run(self) -> str:
        """The run of Redis that the guard has looked at: on no other may it be said that a sale never was."""
        marker: bytes | None = await self._ask("GET", keyspace.INSTANCE)
        return marker.decode() if marker else ""

    async def _ask(self, *words: str) -> Any:
        """A question on the way to a call; without its answer the call has not been sent."""
        try:
            return await self._connections.call(*words, timeout_seconds=self._settings.call_timeout_seconds)
        except AnswerLost as error:
            raise NotSent(str(error)) from error
        except ResponseError as error:
            raise unavailable(error) or error from error
