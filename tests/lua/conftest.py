"""A shop for each test."""

import pytest

from engine.partition.partitions import Partitions
from tests.lua.shop import Shop


@pytest.fixture
def shop(partitions: Partitions) -> Shop:
    return Shop(partitions)
