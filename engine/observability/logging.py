"""Logs: one line an event, on standard error, as JSON for machines or plain for people.

Events carry pseudonyms and numbers only. URLs of the stores hold passwords and are never logged.
"""

from __future__ import annotations

import logging
import sys

import structlog

from engine.settings import Settings

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def configure_logging(settings: Settings, process: str) -> None:
    """Set up structlog for this process, and let the standard library's loggers end in the same lines.

    `process` (`gateway`, `worker`, …) stands in every line. Called once, before anything logs.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    if settings.log_json:
        rendering: list[structlog.typing.Processor] = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ]
    else:
        rendering = [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())]
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[settings.log_level]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    _lead_standard_library(settings, shared, rendering, process)


def _lead_standard_library(
    settings: Settings,
    shared: list[structlog.typing.Processor],
    rendering: list[structlog.typing.Processor],
    process: str,
) -> None:
    def name_process(
        _logger: structlog.typing.WrappedLogger, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        # Context variables bound here do not reach other threads, from which libraries may log.
        event.setdefault("process", process)
        return event

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, name_process],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *rendering],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    # Libraries at `info` speak of every request; their warnings are what an operator wants.
    root.setLevel(max(LEVELS[settings.log_level], logging.WARNING))
