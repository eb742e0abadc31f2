"""The ledger's schema, one step a file under `versions/`. Alembic applies them; see `engine/ledger/migrate.py`."""
