"""What Alembic runs: it gets an open connection from `engine/ledger/migrate.py`, or the URL from its command line."""

from alembic import context

context.configure(
    connection=context.config.attributes["connection"], target_metadata=None, transactional_ddl=True
)
with context.begin_transaction():
    context.run_migrations()
