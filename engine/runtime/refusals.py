"""The one exception by which a start is called off for a reason that a person can act on."""

from __future__ import annotations


class StartRefused(Exception):
    """The engine cannot start or go on; the message is one line that says why and what to do."""
