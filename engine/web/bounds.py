"""Bounds of time and size that hold for every connection, whichever protocol serves it."""

BODY_SECONDS_MAX = 10.0
"""A body that takes longer is taken for cut off."""
IDLE_SECONDS_MAX = 75.0
"""How long a connection may be silent, or take over a request's head: longer than a reverse proxy's usual 60."""
LINGER_SECONDS_MAX = 2.0
"""How long the rest of a refused body is read and thrown away, so that its sender gets to see the answer."""
LINE_BYTES_MAX = 8190
HEADER_BYTES_MAX = 8190
HEADERS_MAX = 100
