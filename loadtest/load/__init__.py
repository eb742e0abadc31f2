"""Generators of load that are cheap enough to be trusted, and the bytes that they send."""
