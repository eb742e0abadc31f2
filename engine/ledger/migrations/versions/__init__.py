"""Steps of the schema, each `vNNNN_what.py`, its revision the `vNNNN`. A released step is never edited."""
