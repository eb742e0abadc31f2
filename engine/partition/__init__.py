"""A sale's state in Redis: its keys, its script, and the way commands get there."""
