"""What Alembic runs: `engine/ledger/migrate.py` hands it an open connection."""

from alembic import context

context.configure(connection=context.config.attributes["connection"], target_metadata=None, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()
