"""Micro-batching: what arrives in one tick of the event loop goes in one call of the partition's script.

A lone request goes at once. While two calls are in flight, later requests wait together for the next one, so that under
load batches grow by themselves and the fsync of the append-only file is shared by all of a batch.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import structlog
from msgspec import Struct

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
from engine.partition.codec import Reply, Travelling
from engine.partition.hold_template import EncodedHold
from engine.partition.sold_out import CHECKS_PER_BATCH_MAX, OnChecked, ShortChecks, SoldOutMemory, Wanted

_log = structlog.get_logger(__name__)
_SOLD_OUT, _DUE_HOLDS_REMAIN = Outcome.SOLD_OUT, Outcome.DUE_HOLDS_REMAIN
"""By names of their own: to look up a member of an enum costs as much as ten other look-ups."""
T = TypeVar("T")

ANSWERS_PER_TURN = 64
"""Answers given in one turn of the event loop. Between two turns it reads what has come meanwhile and sends it off, so
that Redis works on the next orders while these are being answered, instead of the two taking turns."""
GROUP_SECONDS_MAX = 0.05
"""By how much the deadlines of commands may differ that are posted together: they share the earliest."""
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

    async def call(self, sale_id: str, commands: Sequence[Travelling], deadline: float) -> list[Reply]:
        """The replies in the order of the commands."""
        ...


Replies = list[Reply]
OnReply = Callable[[Reply | MiaocangError], None]
"""Told what became of one command: its reply, or the failure to tell."""
_OnReplies = Callable[[Replies | MiaocangError], None]


class _Request(Struct, eq=False):
    """Commands that were submitted together, and are answered together; or a group that were posted one by one."""

    commands: list[Travelling]
    deadline: float
    """Monotonic seconds; a request that is not sent by then is turned away."""
    lines: int
    told: list[OnReply]
    """Of a group: for each command whom to tell of its reply. Empty where they are answered together."""
    on_replies: tuple[_OnReplies, ...] = ()
    question: Command | None = None
    """Its only command, where that changes nothing."""


class Batcher:
    """Merges the requests for one partition into batches. Calls `on_idle` when there is nothing left to do."""

    def __init__(
        self,
        sale_id: str,
        caller: Caller,
        bounds: BatchBounds,
        sold_out: SoldOutMemory,
        on_idle: Callable[[str], None],
    ) -> None:
        self._sale_id = sale_id
        self._caller = caller
        self._bounds = bounds
        self._sold_out = sold_out
        self._on_idle = on_idle
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[_Request] = deque()
        self._group: _Request | None = None
        """The last one that waits, if it is a group that what is posted next may join."""
        self._checks: deque[ShortChecks] = deque()
        self._questions: dict[Command, _Request] = {}
        """Questions that wait by themselves: who asks the same before it is sent gets the same answer."""
        self._waiting_commands = 0
        self._counted_commands = 0
        """What the gauge was last told."""
        self._in_flight: set[asyncio.Task[None]] = set()
        self._scheduled = False
        self._to_tell: deque[tuple[Callable[[Any], None], Any]] = deque()
        """Who is still to be told what: answers of calls that have returned."""
        self._telling = False
        self._is_idle = False

    async def submit(self, commands: Sequence[Command], deadline: float) -> Replies:
        """Apply `commands` in one atom, with what else arrives in this tick. Raises as Partitions.submit."""
        if self._waiting_commands + len(commands) > self._bounds.queue_commands_max:
            raise self._full()
        answer: asyncio.Future[Replies] = self._loop.create_future()

        def on_replies(outcome: Replies | MiaocangError) -> None:
            if answer.done():  # whoever waited has given up
                return
            if isinstance(outcome, list):
                answer.set_result(outcome)
            else:
                answer.set_exception(outcome)

        question = commands[0] if len(commands) == 1 and isinstance(commands[0], QUESTIONS) else None
        request = self._questions.get(question) if question is not None else None
        if request is None:
            lines = sum(self._lines(command) for command in commands)
            request = _Request(list(commands), deadline, lines, [], question=question)
            if question is not None:
                self._questions[question] = request
            self._push(request)
        request.on_replies = (*request.on_replies, on_replies)
        return await answer

    def post(self, command: Travelling, deadline: float, on_reply: OnReply) -> None:
        """Apply one command with what else arrives in this tick; `on_reply` is told once, later, what became of it."""
        if self._waiting_commands >= self._bounds.queue_commands_max:
            self._loop.call_soon(on_reply, self._full())
            return
        lines = self._lines(command)
        group = self._group
        if group is None or not self._may_join(group, deadline, lines):
            group = self._group = _Request([], deadline, 0, [])
            self._waiting.append(group)
        group.commands.append(command)
        group.told.append(on_reply)
        group.lines += lines
        self._waiting_commands += 1
        if not self._scheduled:
            self._schedule()

    def post_if_short(self, buyer: str, wanted: Wanted, deadline: float, on_checked: OnChecked) -> None:
        """Ask, together with all others of this tick, whether a cart of one line is to be refused."""
        if self._waiting_commands >= self._bounds.queue_commands_max:
            self._loop.call_soon(on_checked, self._full())
            return
        if not self._checks or len(self._checks[-1].told) >= CHECKS_PER_BATCH_MAX:
            self._checks.append(ShortChecks())
        self._checks[-1].add(buyer, wanted, deadline, on_checked)
        self._waiting_commands += 1
        if not self._scheduled:
            self._schedule()

    def _may_join(self, group: _Request, deadline: float, lines: int) -> bool:
        return (
            len(group.commands) < self._bounds.batch_orders_max
            and group.lines + lines <= self._bounds.batch_lines_max
            and deadline - group.deadline <= GROUP_SECONDS_MAX
        )

    def _full(self) -> Overloaded:
        metrics.BOUND_REACHED.labels(bound="queue_commands_max").inc()
        return Overloaded("too many requests wait for this sale")

    def _push(self, request: _Request) -> None:
        self._waiting.append(request)
        self._group = None
        self._waiting_commands += len(request.commands)
        self._schedule()

    def _pop(self) -> _Request:
        request = self._waiting.popleft()
        if request is self._group:
            self._group = None
        if request.question is not None:
            self._questions.pop(request.question, None)
        self._waiting_commands -= len(request.commands)
        return request

    def _schedule(self) -> None:
        """Send at the end of this tick, once for all that arrives in it."""
        if not self._scheduled and len(self._in_flight) < self._bounds.batches_in_flight_max:
            self._scheduled = True
            self._loop.call_soon(self._send_waiting)

    def _send_waiting(self) -> None:
        self._scheduled = False
        while self._waiting_commands and len(self._in_flight) < self._bounds.batches_in_flight_max:
            batch = self._next_batch()
            if not batch:
                continue
            task = self._loop.create_task(self._apply(batch))
            self._in_flight.add(task)
            task.add_done_callback(self._finished)
        if self._counted_commands != self._waiting_commands:
            metrics.QUEUED_COMMANDS.inc(self._waiting_commands - self._counted_commands)
            self._counted_commands = self._waiting_commands
        self._tell_soon()
        if not self._waiting_commands and not self._in_flight and not self._to_tell and not self._is_idle:
            self._is_idle = True
            self._on_idle(self._sale_id)

    def _tell_some(self) -> None:
        """Give some of the answers, and the rest in later turns.

        One caller's fate must not touch another's: whatever is wrong with one, the others are answered.
        """
        self._telling = False
        for _ in range(min(len(self._to_tell), ANSWERS_PER_TURN)):
            told, outcome = self._to_tell.popleft()
            try:
                told(outcome)
            except Exception:
                _log.exception("reply_defect")
        self._tell_soon()
        if not self._to_tell and not self._scheduled:
            self._send_waiting()

    def _tell_soon(self) -> None:
        if self._to_tell and not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell_some)

    def _finished(self, task: "asyncio.Task[None]") -> None:
        self._in_flight.discard(task)
        if not self._scheduled:
            self._send_waiting()
        if not self._telling:
            self._tell_some()

    def _next_batch(self) -> list[_Request]:
        """Take requests in their order until a bound is reached; those whose time is over are turned away.

        All checks that wait for the next batch go with it, as one more request.
        """
        batch: list[_Request] = []
        commands = lines = 0
        now = time.monotonic()
        if self._checks:
            checks = self._checks.popleft()
            self._waiting_commands -= len(checks.told)
            request = self._checking(checks, now)
            if checks.deadline <= now:
                self._turn_away(request)
            else:
                batch.append(request)
        orders_max, lines_max = self._bounds.batch_orders_max, self._bounds.batch_lines_max
        while self._waiting:
            request = self._waiting[0]
            commands += len(request.commands)
            lines += request.lines
            if batch and (commands > orders_max or lines > lines_max):
                break
            self._pop()
            if request.deadline <= now:
                self._turn_away(request)
                continue
            batch.append(request)
        return batch

    def _checking(self, checks: ShortChecks, asked_at: float) -> _Request:
        """The request that asks for all of these, and tells each."""

        def on_verdict(wanted: Wanted, refusal: Reply | None) -> None:
            channel, sku, _ = wanted
            if refusal is None:
                self._sold_out.forget(self._sale_id, channel, sku)
            elif refusal.outcome is Outcome.SOLD_OUT:
                self._sold_out.remember(self._sale_id, channel, sku, refusal.detail[1], asked_at)

        def on_reply(outcome: Reply | MiaocangError) -> None:
            if isinstance(outcome, Reply):
                self._to_tell.extend(zip(checks.told, checks.answer(outcome, on_verdict), strict=True))
            else:
                # where one buyer's row cannot be read, only that buyer's hold is to fail: each by itself
                answer = None if isinstance(outcome, ScriptFailed) else outcome
                self._to_tell.extend((told, answer) for told in checks.told)

        question = checks.question()
        return _Request([question], checks.deadline, len(question.wanted), [on_reply])

    def _lines(self, command: Travelling) -> int:
        """The order lines that a command makes the script look at; what may look at a whole sale fills a batch."""
        if isinstance(command, EncodedHold):
            return command.line_count
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
        asked_at = time.monotonic()
        try:
            replies = await self._caller.call(self._sale_id, commands, deadline)
        except ScriptFailed as error:
            apart = [each for request in batch for each in self._apart(request)]
            if len(apart) == 1:
                self._fail(batch, error)
            else:
                # one caller's request must not touch another's: each by itself, so that only the one to blame fails
                metrics.CALL_RETRIES.labels(cause="script_failed").inc()
                await self._apply_each(apart)
        except MiaocangError as error:
            self._fail(batch, error)
        except BaseException as error:
            self._fail(batch, OutcomeUnknown(f"the call ended early: {error!r}"))
            raise
        else:
            self._answer(batch, replies, asked_at)

    def _apart(self, request: _Request) -> list[_Request]:
        """What was posted one by one, one by one again; what was submitted together stays together."""
        if len(request.told) <= 1:
            return [request]
        return [self._group_of(request.deadline, [each]) for each in zip(request.told, request.commands, strict=True)]

    def _group_of(self, deadline: float, posted: Sequence[tuple[OnReply, Travelling]]) -> _Request:
        commands = [command for _, command in posted]
        return _Request(commands, deadline, sum(map(self._lines, commands)), [told for told, _ in posted])

    async def _apply_each(self, batch: list[_Request]) -> None:
        left = deque(batch)
        try:
            while left:
                await self._apply([left.popleft()])
        finally:
            self._fail(list(left), PartitionUnavailable("the calls before this one ended early"))

    def _answer(self, batch: list[_Request], replies: Replies, asked_at: float) -> None:
        first = 0
        again: list[_Request] = []
        for request in batch:
            own = replies[first : first + len(request.commands)]
            first += len(own)
            if request.told:
                again += self._answer_group(request, own, asked_at)
            elif any(reply.outcome is _DUE_HOLDS_REMAIN for reply in own):
                again.append(request)
            else:
                if own[0].outcome is _SOLD_OUT:
                    self._learn_shortage(request.commands[0], own[0], asked_at)
                self._to_tell.extend((on_replies, own) for on_replies in request.on_replies)
        for request in reversed(again):
            self._waiting.appendleft(request)
            self._waiting_commands += len(request.commands)

    def _answer_group(self, group: _Request, replies: Replies, asked_at: float) -> list[_Request]:
        """Answer those that have come to an end; returns those, each by itself, that must ask again."""
        unfinished: set[int] = set()
        for position, reply in enumerate(replies):
            if reply.outcome is _SOLD_OUT:
                self._learn_shortage(group.commands[position], reply, asked_at)
            elif reply.outcome is _DUE_HOLDS_REMAIN:
                unfinished.add(position)
        if not unfinished:
            self._to_tell.extend(zip(group.told, replies, strict=True))
            return []
        self._to_tell.extend(
            each for position, each in enumerate(zip(group.told, replies, strict=True)) if position not in unfinished
        )
        return [
            self._group_of(group.deadline, [(group.told[position], group.commands[position])])
            for position in sorted(unfinished)
        ]

    def _learn_shortage(self, command: Travelling, reply: Reply, asked_at: float) -> None:
        if isinstance(command, (EncodedHold, Hold)):
            sku, available = reply.detail
            self._sold_out.remember(self._sale_id, command.channel, sku, available, asked_at)

    def _fail(self, batch: list[_Request], error: MiaocangError) -> None:
        for request in batch:
            self._tell_failure(request, error)

    def _tell_failure(self, request: _Request, error: MiaocangError) -> None:
        def failure_of(commands: Sequence[Travelling]) -> MiaocangError:
            only_asked = isinstance(error, OutcomeUnknown) and all(isinstance(c, QUESTIONS) for c in commands)
            return PartitionUnavailable(str(error)) if only_asked else error

        if request.told:
            failures = (failure_of((command,)) for command in request.commands)
            self._to_tell.extend(zip(request.told, failures, strict=True))
        else:
            failure = failure_of(request.commands)
            self._to_tell.extend((on_replies, failure) for on_replies in request.on_replies)

    def _turn_away(self, request: _Request) -> None:
        metrics.BOUND_REACHED.labels(bound="request_deadline_seconds").inc(max(1, len(request.told)))
        self._tell_failure(request, Overloaded("the request waited for longer than it may"))
