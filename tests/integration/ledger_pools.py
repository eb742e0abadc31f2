"""Pools on a ledger of the test's own: one as the persister has it, one as readers have it."""

from collections.abc import AsyncIterator

import pytest

from engine.ledger.connect import WRITER_SETTINGS, LedgerPool, open_pool


@pytest.fixture
async def writing(database_url: str) -> AsyncIterator[LedgerPool]:
    pool = await open_pool(database_url, 8, WRITER_SETTINGS)
    yield pool
    await pool.close()


@pytest.fixture
async def reading(database_url: str) -> AsyncIterator[LedgerPool]:
    pool = await open_pool(database_url, 8)
    yield pool
    await pool.close()
