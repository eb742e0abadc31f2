"""define, change_stock, transitions and the schedule; and what holds of the journal."""

import asyncio
import time

import msgspec
import pytest

from engine.domain.commands import (
    ApplySchedule,
    ChangeStock,
    Close,
    Delete,
    GetAvailability,
    GetSale,
    NotePersisted,
    Open,
    Pause,
    Resume,
    StockChange,
)
from engine.domain.outcomes import Outcome
from engine.partition.keyspace import partition_keys
from tests.lua.shop import Shop, definition, sku


async def test_a_sale_is_made_once_for_its_command(shop: Shop) -> None:
    command = definition(sku("A", 10, withheld=2, channels=[("douyin", 3), ("jd", 0)]))
    first, again = await shop.ask(command), await shop.ask(command)
    assert (first[0].outcome, first[0].detail) == (Outcome.DONE, [True])
    assert (again[0].outcome, again[0].detail) == (Outcome.DONE, [True])
    snapshot = await shop.sale()
    levels = dict(snapshot.levels)["A"]
    assert (levels.allocated, levels.withheld, levels.pools) == (10, 2, {"shared": 5, "douyin": 3})
    assert (snapshot.state.status, snapshot.state.version, snapshot.state.sequence) == ("draft", 1, 1)


async def test_a_quantity_sets_what_is_allocated_and_the_difference_is_shared(shop: Shop) -> None:
    await shop.open(sku("A", 10, channels=[("douyin", 4)]))
    await shop.ask(definition(sku("A", 15, channels=[("douyin", 99)]), command_id="2"))
    assert (await shop.levels("A")).pools == {"shared": 11, "douyin": 4}
    short = (await shop.ask(definition(sku("A", 3), command_id="3")))[0]
    assert (short.outcome, short.detail[0]) == (Outcome.CONFLICT, "A")
    await shop.ask(definition(sku("A", 4), command_id="4"))
    assert (await shop.levels("A")).pools == {"shared": 0, "douyin": 4}


async def test_a_definition_that_is_in_force_already_changes_nothing(shop: Shop) -> None:
    await shop.open(sku("A", 10, withheld=2, channels=[("douyin", 3)]), command_id="1")
    await shop.move("m", ("A", "withheld", "shared", 1))
    before = await shop.sale()
    same = definition(sku("A", 10, withheld=2, channels=[("douyin", 3)]), command_id="1")
    again = msgspec.structs.replace(same, command_id="2")
    assert [(reply.outcome, reply.detail) for reply in await shop.ask(again)] == [(Outcome.DONE, [False])]
    now = await shop.sale()
    assert (now.levels, now.state.version, now.state.sequence) == (before.levels, before.state.version, 3)
    assert (await shop.ask(ChangeStock("more", "x", [StockChange("A", "", "shared", 5)])))[0].outcome is Outcome.DONE
    await shop.ask(msgspec.structs.replace(same, command_id="3"))  # now its quantity is another than is in force
    after = await shop.sale()
    assert (after.state.version, dict(after.levels)["A"].allocated) == (before.state.version + 2, 10)


async def test_a_sku_left_out_is_removed_unless_it_is_held_or_settled(shop: Shop) -> None:
    await shop.open(sku("A", 1), sku("B", 1))
    await shop.hold("u", "k", ("A", 1))
    refused = (await shop.ask(definition(sku("B", 1), command_id="2")))[0]
    assert (refused.outcome, refused.detail[0]) == (Outcome.CONFLICT, "A")
    assert (await shop.ask(definition(sku("A", 1), command_id="3")))[0].outcome is Outcome.DONE
    assert [name for name, _ in (await shop.sale()).levels] == ["A"]
    assert (await shop.hold("u", "k2", ("B", 1))).outcome is Outcome.SKU_NOT_FOUND


async def test_a_refused_definition_changes_nothing(shop: Shop) -> None:
    await shop.open(sku("A", 1), sku("B", 5))
    before = await shop.sale()
    refused = (await shop.ask(definition(sku("A", 9), sku("C", 1, withheld=2), command_id="2")))[0]
    assert (refused.outcome, refused.detail[0]) == (Outcome.INVALID, "C")
    after = await shop.sale()
    assert (after.levels, after.state.sequence) == (before.levels, before.state.sequence)


@pytest.mark.parametrize(
    ("if_match", "outcome"), [(0, Outcome.DONE), (2, Outcome.DONE), (1, Outcome.CONFLICT), (-1, Outcome.DONE)]
)
async def test_a_stale_version_is_a_conflict(shop: Shop, if_match: int, outcome: Outcome) -> None:
    await shop.open(sku("A", 1))
    assert (await shop.ask(definition(sku("A", 2), if_match=if_match, command_id="x")))[0].outcome is outcome


async def test_a_version_of_a_sale_that_is_not_there_is_a_conflict(shop: Shop) -> None:
    assert (await shop.ask(definition(sku("A", 2), if_match=-1)))[0].outcome is Outcome.CONFLICT


async def test_the_currency_is_fixed_by_the_first_hold(shop: Shop) -> None:
    await shop.open(sku("A", 1))
    assert (await shop.ask(definition(sku("A", 1), currency="EUR", command_id="2")))[0].outcome is Outcome.DONE
    await shop.hold("u", "k", ("A", 1))
    refused = (await shop.ask(definition(sku("A", 1), currency="CNY", command_id="3")))[0]
    assert (refused.outcome, refused.detail[0]) == (Outcome.CONFLICT, "currency")


async def test_transitions_go_their_way_and_no_other(shop: Shop) -> None:
    await shop.ask(definition(sku("A", 1)))
    outcomes = [
        reply.outcome for reply in await shop.ask(Pause(), Resume(), Open(), Open(), Resume(), Pause(), Pause())
    ]
    no, yes, again = Outcome.CONFLICT, Outcome.DONE, Outcome.REPEATED
    assert outcomes == [no, no, yes, again, again, yes, again]
    outcomes = [
        reply.outcome for reply in await shop.ask(Open(), Resume(), Close(), Close(), Open(), Pause(), Resume())
    ]
    assert outcomes == [no, yes, yes, again, no, no, no]
    assert (await shop.ask(definition(sku("A", 1), command_id="2")))[0].outcome is Outcome.SALE_CLOSED
    assert (await shop.move("d", ("A", "", "shared", 1))).outcome is Outcome.SALE_CLOSED


async def test_a_draft_opens_by_itself_and_closes_by_itself(shop: Shop) -> None:
    now_ms = int(time.time() * 1000)
    opens_at_ms, closes_at_ms = now_ms + 1000, now_ms + 2000
    await shop.ask(definition(sku("A", 5), opens_at_ms=opens_at_ms, closes_at_ms=closes_at_ms))
    tries = 0
    while (reply := await shop.hold("u", str(tries), ("A", 1))).outcome is Outcome.SALE_NOT_OPEN:
        tries += 1
        await asyncio.sleep(0.02)
    assert tries > 0
    held = await shop.order("u", str(tries))
    assert opens_at_ms <= held.created_at_ms < closes_at_ms
    while (reply := await shop.hold("u", "last", ("A", 1), expected_amount_minor=1)).outcome is not Outcome.SALE_CLOSED:
        assert reply.outcome is Outcome.PRICE_CHANGED
        await asyncio.sleep(0.02)
    assert time.time() * 1000 >= closes_at_ms
    levels = await shop.levels("A")
    assert (levels.allocated, levels.available, levels.held) == (1, 0, 1)
    assert (await shop.ask(ApplySchedule()))[0].outcome is Outcome.DONE


async def test_a_stock_document_is_applied_in_order_all_or_none_and_once(shop: Shop) -> None:
    await shop.open(sku("A", 10, withheld=4), sku("B", 1))
    changes = (
        ("A", "withheld", "douyin", 3),
        ("A", "douyin", "jd", 3),
        ("B", "", "withheld", 7),
        ("A", "shared", "", 6),
    )
    assert (await shop.move("doc", *changes)).outcome is Outcome.DONE
    assert (await shop.move("doc", *changes)).outcome is Outcome.REPEATED
    assert (await shop.move("doc", ("A", "", "shared", 1))).outcome is Outcome.IDEMPOTENCY_KEY_REUSED
    a, b = await shop.levels("A"), await shop.levels("B")
    assert (a.allocated, a.withheld, a.pools) == (4, 1, {"shared": 0, "douyin": 0, "jd": 3})
    assert (b.allocated, b.withheld) == (8, 7)
    version = (await shop.sale()).state.version
    refused = await shop.move("doc-2", ("A", "", "shared", 5), ("A", "withheld", "shared", 2))
    assert (refused.outcome, refused.detail[0]) == (Outcome.CONFLICT, "A")
    assert (await shop.levels("A")).allocated == 4
    assert (await shop.sale()).state.version == version
    assert (await shop.move("doc-2", ("X", "", "shared", 5))).outcome is Outcome.SKU_NOT_FOUND


async def test_a_deleted_draft_is_gone_and_its_numbers_go_on(shop: Shop) -> None:
    await shop.ask(definition(sku("A", 1)))
    assert (await shop.ask(Delete()))[0].outcome is Outcome.DONE
    assert [reply.outcome for reply in await shop.ask(GetSale(), Open())] == [Outcome.SALE_NOT_FOUND] * 2
    assert (await shop.ask(definition(sku("B", 1), command_id="new")))[0].detail == [True]
    snapshot = await shop.sale()
    assert (snapshot.state.sequence, [name for name, _ in snapshot.levels]) == (3, ["B"])
    await shop.ask(Open())
    assert (await shop.ask(Delete()))[0].outcome is Outcome.CONFLICT


async def test_availability_is_what_a_channel_can_buy(shop: Shop) -> None:
    await shop.open(sku("A", 10, withheld=2, channels=[("douyin", 3)]))
    everyone, douyin, jd = await shop.ask(GetAvailability(""), GetAvailability("douyin"), GetAvailability("jd"))
    assert [reply.detail[2] for reply in (everyone, douyin, jd)] == [[["A", 8]], [["A", 8]], [["A", 5]]]


async def test_sequence_numbers_are_dense_and_records_are_named_by_their_last(shop: Shop) -> None:
    await shop.open(sku("A", 100))
    await asyncio.gather(*(shop.hold(f"u{n}", "k", ("A", 1)) for n in range(150)))
    journal = await shop.journal()
    assert [sequence for sequence, _, _ in journal] == list(range(1, 103))


async def test_the_journal_is_trimmed_only_behind_what_is_kept(shop: Shop) -> None:
    await shop.open(sku("A", 10_000))
    for n in range(1200):
        await shop.hold(f"u{n}", "k", ("A", 1))
    assert (await shop.ask(NotePersisted(5000, 10)))[0].outcome is Outcome.CONFLICT
    await shop.ask(NotePersisted(1100, 100))
    left = [sequence for sequence, _, _ in await shop.journal()]
    assert left[-1] == 1202
    assert left[0] <= 1001
    assert left == list(range(left[0], 1203))
    assert left[0] > 1
    await shop.ask(NotePersisted(50, 0))
    assert (await shop.sale()).state.persisted == 1100


async def test_a_sale_of_twenty_thousand_skus_is_made_changed_and_closed(shop: Shop) -> None:
    skus = [sku(f"S{n:05d}", 3, channels=[("douyin", 1)]) for n in range(20_000)]
    await shop.open(*skus)
    assert (await shop.hold("u", "k", ("S19999", 3))).outcome is Outcome.DONE
    assert (await shop.ask(Close()))[0].outcome is Outcome.DONE
    assert sum(levels.allocated for _, levels in (await shop.sale()).levels) == 3


async def test_a_refused_definition_makes_no_partition(shop: Shop) -> None:
    refused = (await shop.ask(definition(sku("A", 1), if_match=-1)))[0]
    assert refused.outcome is Outcome.CONFLICT
    assert await shop.partitions.connections.execute("EXISTS", *partition_keys(shop.sale_id)) == 0


async def test_an_operators_command_that_comes_twice_happens_once_whatever_others_did_between(shop: Shop) -> None:
    first = definition(sku("A", 10), command_id="first")
    await shop.ask(first)
    await shop.ask(Open("open"), Pause("pause"), Resume("resume"))
    await shop.ask(definition(sku("A", 20), command_id="second"))
    before = await shop.sale()
    replies = await shop.ask(first, Open("open"), Pause("pause"), Resume("resume"))
    assert [reply.outcome for reply in replies] == [Outcome.DONE] * 4
    after = await shop.sale()
    assert (after.state.sequence, after.state.status, after.levels) == (before.state.sequence, "open", before.levels)


async def test_a_deletion_that_comes_twice_spares_the_sale_that_was_made_since(shop: Shop) -> None:
    await shop.ask(definition(sku("A", 1), command_id="old"))
    assert (await shop.ask(Delete("delete")))[0].outcome is Outcome.DONE
    assert (await shop.ask(Delete("delete")))[0].outcome is Outcome.DONE
    await shop.ask(definition(sku("B", 1), command_id="new"))
    assert (await shop.ask(Delete("delete")))[0].outcome is Outcome.DONE
    assert (await shop.sale()).state.status == "draft"
