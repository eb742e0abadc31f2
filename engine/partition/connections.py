"""Connections to Redis, bounded, and told apart: what was never sent, and what was sent and not answered."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis.asyncio.connection import AbstractConnection, BlockingConnectionPool
from redis.exceptions import BusyLoadingError, OutOfMemoryError, RedisError, ResponseError

from engine.domain.errors import Overloaded, PartitionFrozen, PartitionUnavailable
from engine.observability import metrics

__all__ = ["AnswerLost", "BusyLoadingError", "Connections", "NotSent", "ResponseError", "pairs", "unavailable"]

CONNECT_TIMEOUT_SECONDS = 2.0
COMMAND_TIMEOUT_SECONDS = 5.0
"""For commands outside the partition's script; a script call brings its own limit."""
CONNECTION_WAIT_SECONDS = 2.0
"""How long a call may wait for a free connection before it is turned away."""


class NotSent(Exception):
    """The command did not leave this process."""


class AnswerLost(Exception):
    """The command was sent, and its answer did not come: it may have been carried out."""


class Connections:
    """At most `connections_max` connections to one Redis. Connects at its first use."""

    def __init__(self, redis_url: str, connections_max: int) -> None:
        self._pool = BlockingConnectionPool.from_url(
            redis_url,
            protocol=2,  # with the third, and the server's notices in it, a connection that was closed is not noticed
            max_connections=connections_max,
            timeout=CONNECTION_WAIT_SECONDS,
            socket_connect_timeout=CONNECT_TIMEOUT_SECONDS,
            # every wait has a limit of its own here; with one of its own redis-py writes under asyncio.wait_for, which
            # until Python 3.12 swallows a cancellation (or a time-out of ours) that comes as the write ends
            socket_timeout=None,
            socket_keepalive=True,
            retry=None,
            health_check_interval=0,
        )

    @asynccontextmanager
    async def _connection(self, timeout_seconds: float) -> AsyncIterator[AbstractConnection]:
        try:
            async with asyncio.timeout(timeout_seconds):
                connection = await self._pool.get_connection()  # type: ignore[no-untyped-call]  # untyped in redis-py
        except (RedisError, OSError, TimeoutError) as error:
            metrics.REDIS_ERRORS.labels(kind="connect").inc()
            raise NotSent(f"Redis cannot be reached: {str(error) or 'time-out'}") from error
        try:
            yield connection
        finally:
            await self._pool.release(connection)

    async def call(self, *words: str | bytes | int, timeout_seconds: float) -> Any:
        """Send one command and wait for its answer, at most `timeout_seconds` for a connection and again for it.

        Raises NotSent, AnswerLost, or redis-py's ResponseError where Redis refused the command.
        """
        async with self._connection(timeout_seconds) as connection:
            try:
                async with asyncio.timeout(timeout_seconds):
                    await connection.send_command(*words)
                    return await connection.read_response(disconnect_on_error=True)
            except (ResponseError, BusyLoadingError):  # an answer: Redis has not done it
                raise
            except (RedisError, OSError, TimeoutError) as error:
                await connection.disconnect(nowait=True)
                metrics.REDIS_ERRORS.labels(kind="answer_lost").inc()
                raise AnswerLost(f"Redis did not answer: {str(error) or 'time-out'}") from error
            except asyncio.CancelledError:
                await connection.disconnect(nowait=True)
                raise

    async def execute(self, *words: str | bytes | int) -> Any:
        """A command that may be repeated without harm.

        Raises PartitionUnavailable, or ResponseError where Redis refused it for what it says.
        """
        try:
            return await self.call(*words, timeout_seconds=COMMAND_TIMEOUT_SECONDS)
        except (NotSent, AnswerLost, BusyLoadingError) as error:
            raise PartitionUnavailable(str(error)) from error
        except ResponseError as error:
            raise unavailable(error) or error from error

    async def execute_all(self, commands: Sequence[Sequence[str | bytes | int]]) -> list[Any]:
        """Several such commands in one round trip; the answers in their order. Raises as `execute`."""
        if not commands:
            return []
        try:
            async with self._connection(CONNECTION_WAIT_SECONDS) as connection:
                try:
                    async with asyncio.timeout(COMMAND_TIMEOUT_SECONDS):
                        await connection.send_packed_command(connection.pack_commands(commands))
                        answers = [await _answer(connection) for _ in commands]
                except (RedisError, OSError, TimeoutError) as error:
                    await connection.disconnect(nowait=True)
                    raise AnswerLost(f"Redis did not answer: {str(error) or 'time-out'}") from error
                except asyncio.CancelledError:
                    await connection.disconnect(nowait=True)
                    raise
        except (NotSent, AnswerLost) as error:
            raise PartitionUnavailable(str(error)) from error
        for answer in answers:
            if isinstance(answer, (ResponseError, BusyLoadingError)):
                raise unavailable(answer) or answer
        return answers

    async def close(self) -> None:
        """Close every connection."""
        await self._pool.disconnect()


def pairs(answer: Any) -> dict[bytes, bytes]:
    """A hash as Redis answers it: a flat list of names and values, or a mapping where the protocol has one."""
    if isinstance(answer, dict):
        return answer
    return {answer[i]: answer[i + 1] for i in range(0, len(answer), 2)}


def scored(answer: Any) -> list[tuple[bytes, Any]]:
    """Members with their scores as Redis answers them: a flat list, or pairs where the protocol has them."""
    if answer and isinstance(answer[0], list):
        return [(member, score) for member, score in answer]
    return list(zip(answer[::2], answer[1::2], strict=True))


async def _answer(connection: AbstractConnection) -> Any:
    """One answer; an error that Redis sent is a value here, because the answers behind it must be read too."""
    try:
        return await connection.read_response()
    except (ResponseError, BusyLoadingError) as error:
        return error


def unavailable(error: RedisError) -> PartitionUnavailable | None:
    """What an error in Redis' answer says of Redis rather than of the command; None where it is the command's.

    Redis has not done what it answers so.
    """
    text = str(error)
    if isinstance(error, BusyLoadingError):
        return PartitionUnavailable(f"Redis is reading its data: {text}")
    if isinstance(error, OutOfMemoryError) or "OOM" in text:
        return Overloaded("Redis has no memory left")
    if text.startswith(("BUSY", "TRYAGAIN")):
        return Overloaded(f"Redis is busy: {text}")
    if text.startswith(("READONLY", "MISCONF", "NOREPLICAS", "MASTERDOWN", "NOPERM", "NOAUTH")):
        return PartitionFrozen(f"Redis takes no writes: {text}")
    return None
