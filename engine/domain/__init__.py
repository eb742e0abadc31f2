"""Sales, orders, stock, money, outcomes and journal entries: pure values, with no I/O and no clock."""
