"""Micro-batching: what arrives in one tick of the event loop goes in one call of the partition's script.

A lone request goes at once. While two calls are in flight, later requests wait together for the next one, so that under
load batches grow by themselves and the fsync of the append-only file is shared by all of a batch.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from engine.domain.commands import (
    QUESTIONS,
    ChangeStock,
    Command,
    Define,
    GetAvailability,
    GetSale,
    Hold,
    ListBuyerOrders,
)
from engine.domain.errors import MiaocangError, OutcomeUnknown, Overloaded, PartitionUnavailable
from engine.domain.outcomes import Outcome
from engine.observability import metrics
from engine.partition.call import ScriptFailed
from engine.partition.codec import Reply

CONNECTIONS_MAX = 64
"""Connections to Redis of one process, unless it asks for fewer."""


@dataclass(frozen=True, slots=True)
class BatchBounds:
    """How large things may grow."""

    batch_orders_max: int = 256
    """Commands in one call."""
    batch_lines_max: int = 1024
    """Order lines in one call, so that the script stays within a few milliseconds; one larger request goes alone."""
    batches_in_flight_max: int = 2
    """Calls under way at once for each partition: one that Redis works on, and one on its way there."""
    queue_commands_max: int = 20_000
    """Commands that wait for a call, for each partition; one more is turned away."""
    connections_max: int = CONNECTIONS_MAX


class Caller(Protocol):
    """Applies a batch of commands."""

    async def call(self, sale_id: str, commands: list[Command], deadline: float) -> list[Reply]:
        """The replies in the order of the commands."""
        ...


@dataclass(slots=True)
class _Request:
    """Commands that came together and are answered together."""

    commands: Sequence[Command]
    deadline: float
    """Monotonic seconds; a request that is not sent by then is turned away."""
    lines: int
    answer: "asyncio.Future[list[Reply]]" = field(repr=False)
    question: Command | None = None
    """Its only command, where that changes nothing."""


class Batcher:
    """Merges the requests for one partition into batches. Calls `on_idle` when there is nothing left to do."""

    def __init__(self, sale_id: str, caller: Caller, bounds: BatchBounds, on_idle: Callable[[str], None]) -> None:
        self._sale_id = sale_id
        self._caller = caller
        self._bounds = bounds
        self._on_idle = on_idle
        self._waiting: deque[_Request] = deque()
        self._questions: dict[Command, _Request] = {}
        """Questions that wait by themselves: who asks the same before it is sent gets the same answer."""
        self._waiting_commands = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._scheduled = False

    async def submit(self, commands: Sequence[Command], deadline: float) -> list[Reply]:
        """Apply `commands` in one atom, with what else arrives in this tick. Raises as Partitions.submit."""
        if self._waiting_commands + len(commands) > self._bounds.queue_commands_max:
            metrics.BOUND_REACHED.labels(bound="queue_commands_max").inc()
            raise Overloaded("too many requests wait for this sale")
        loop = asyncio.get_running_loop()
        question = commands[0] if len(commands) == 1 and isinstance(commands[0], QUESTIONS) else None
        request = self._questions.get(question) if question is not None else None
        if request is None:
            lines = sum(self._lines(command) for command in commands)
            request = _Request(commands, deadline, lines, loop.create_future(), question)
            if question is not None:
                self._questions[question] = request
            self._push(request)
            self._schedule(loop)
        # shielded, because others may wait for the same answer
        return await asyncio.shield(request.answer)

    def _push(self, request: _Request, *, first: bool = False) -> None:
        if first:
            self._waiting.appendleft(request)
        else:
            self._waiting.append(request)
        self._waiting_commands += len(request.commands)
        metrics.QUEUED_COMMANDS.inc(len(request.commands))

    def _pop(self) -> _Request:
        request = self._waiting.popleft()
        if request.question is not None:
            self._questions.pop(request.question, None)
        self._waiting_commands -= len(request.commands)
        metrics.QUEUED_COMMANDS.dec(len(request.commands))
        return request

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Send at the end of this tick, once for all that arrives in it."""
        if not self._scheduled and len(self._in_flight) < self._bounds.batches_in_flight_max:
            self._scheduled = True
            loop.call_soon(self._send_waiting)

    def _send_waiting(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._in_flight) < self._bounds.batches_in_flight_max:
            batch = self._next_batch()
            if not batch:
                continue
            task = asyncio.get_running_loop().create_task(self._apply(batch))
            self._in_flight.add(task)
            task.add_done_callback(self._finished)
        if not self._waiting and not self._in_flight:
            self._on_idle(self._sale_id)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._in_flight.discard(task)
        if not self._scheduled:
            self._send_waiting()

    def _next_batch(self) -> list[_Request]:
        """Take requests in their order until a bound is reached; those whose time is over are turned away."""
        batch: list[_Request] = []
        commands = lines = 0
        now = time.monotonic()
        while self._waiting:
            request = self._waiting[0]
            full = (
                commands + len(request.commands) > self._bounds.batch_orders_max
                or lines + request.lines > self._bounds.batch_lines_max
            )
            if batch and full:
                break
            self._pop()
            if request.answer.done():
                continue
            if request.deadline <= now:
                metrics.BOUND_REACHED.labels(bound="request_deadline_seconds").inc()
                request.answer.set_exception(Overloaded("the request waited for longer than it may"))
                continue
            batch.append(request)
            commands += len(request.commands)
            lines += request.lines
        return batch

    def _lines(self, command: Command) -> int:
        """The order lines that a command makes the script look at; what may look at a whole sale fills a batch."""
        if isinstance(command, Hold):
            return len(command.lines)
        if isinstance(command, ChangeStock):
            return len(command.changes)
        if isinstance(command, (Define, GetAvailability, GetSale, ListBuyerOrders)):
            return self._bounds.batch_lines_max
        return 1

    async def _apply(self, batch: list[_Request]) -> None:
        """Send one batch and give each request its answer; none of them is left without one."""
        deadline = max(request.deadline for request in batch)
        commands = [command for request in batch for command in request.commands]
        try:
            replies = await self._caller.call(self._sale_id, commands, deadline)
        except ScriptFailed as error:
            if len(batch) == 1:
                _fail(batch, error)
            else:
                # one caller's request must not touch another's: each by itself, so that only the one to blame fails
                metrics.CALL_RETRIES.labels(cause="script_failed").inc()
                for request in batch:
                    await self._apply([request])
        except MiaocangError as error:
            _fail(batch, error)
        except BaseException as error:
            _fail(batch, OutcomeUnknown(f"the call ended early: {error!r}"))
            raise
        else:
            self._answer(batch, replies)

    def _answer(self, batch: list[_Request], replies: list[Reply]) -> None:
        first = 0
        for request in batch:
            own = replies[first : first + len(request.commands)]
            first += len(request.commands)
            if request.answer.done():
                continue
            if any(reply.outcome is Outcome.DUE_HOLDS_REMAIN for reply in own):
                self._push(request, first=True)
                continue
            request.answer.set_result(own)


def _fail(batch: list[_Request], error: MiaocangError) -> None:
    for request in batch:
        if not request.answer.done():
            only_asked = isinstance(error, OutcomeUnknown) and all(isinstance(c, QUESTIONS) for c in request.commands)
            request.answer.set_exception(PartitionUnavailable(str(error)) if only_asked else error)
