"""Orders of eviction: what they keep, that they know no future, and what they cost."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest
from caching import Ask, Cache, traffic

from headrace.core.kvcache.eviction import runs
from headrace.core.kvcache.eviction.config import EvictionConfig
from headrace.core.kvcache.eviction.foresight import ForesightOrder
from headrace.core.kvcache.eviction.guard import Guard
from headrace.core.kvcache.eviction.lru import LruOrder
from headrace.core.kvcache.eviction.marks import Kind, Mark, Owner, Visit, visit_of
from headrace.core.kvcache.eviction.odds import ReuseOdds
from headrace.errors import ConfigError
from headrace.types import BlockId

if TYPE_CHECKING:
    from headrace.core.kvcache.eviction.order import EvictionOrder

LRU, FORESIGHT = EvictionConfig(order="lru"), EvictionConfig(order="foresight")
ONE_VISIT = visit_of(0, Owner(), 1, 100)


def mark_of(number: int, *, visit: Visit = ONE_VISIT) -> Mark:
    return Mark(number.to_bytes(32, "little"), number, 1, visit)


@pytest.mark.parametrize("order", [LruOrder(8), ForesightOrder(8)], ids=["lru", "foresight"])
def test_what_was_added_first_goes_first_and_all_can_be_looked_at(order: EvictionOrder):
    for number in (3, 1, 2, 5):
        order.add([BlockId(number)], [mark_of(number)], 0.0)
    order.remove([BlockId(1)])
    assert BlockId(1) not in order
    with pytest.raises(KeyError):
        order.remove([BlockId(1)])
    assert list(order.victims(1.0)) == [3, 2, 5]
    assert [order.pop(1.0) for _ in range(3)] == [3, 2, 5]
    assert len(order) == 0
    with pytest.raises(KeyError):
        order.pop(1.0)


def hits(config: EvictionConfig, asks: list[Ask], num_blocks: int) -> int:
    cache = Cache(num_blocks, config)
    return sum(cache.serve(ask) for ask in asks)


def test_foresight_finds_more_than_lru_where_sessions_come_back_and_one_shots_do_not():
    asks = traffic(seed=1, num=500)
    assert hits(FORESIGHT, asks, 150) > 1.1 * hits(LRU, asks, 150)


def test_foresight_is_lru_to_the_block_where_nothing_can_be_learned():
    rng = Random(3)
    asks = [Ask(float(at), (rng.randrange(400),)) for at in range(3000)]
    lru, foresight = Cache(100, LRU), Cache(100, FORESIGHT)
    for ask in asks:
        assert lru.serve(ask) == foresight.serve(ask)
    assert lru.lost == foresight.lost


def test_foresight_goes_back_to_lru_when_what_it_learned_turns_out_wrong():
    """Sessions come back and one-shots do not, until it is the other way round."""
    cache = Cache(150, FORESIGHT)
    for ask in traffic(seed=1, num=700):
        cache.serve(ask)
    order = cache.kv.evictor._levels.plain
    assert isinstance(order, ForesightOrder)
    assert order.follows_odds
    last = 10_000.0
    lru = Cache(150, LRU)
    found = Counter[str]()
    for number in range(2000):
        at = last + number
        name = 10_000_000 + number
        asks = [Ask(at, (name, name + 1_000_000), Owner(session=f"t{number}"))]
        if number >= 40:
            asks.append(Ask(at, (name - 40 + 2_000_000,)))
        asks.append(Ask(at, (name + 2_000_000,)))
        for ask in asks:
            found["ours"] += cache.serve(ask)
            found["lru"] += lru.serve(ask)
    assert found["ours"] >= 0.99 * found["lru"] > 0


@pytest.mark.parametrize("config", [LRU, FORESIGHT], ids=["lru", "foresight"])
def test_decisions_of_the_past_do_not_change_with_the_future(config: EvictionConfig):
    asks = traffic(seed=5, num=400)
    now = len(asks) // 2
    future = asks[now:]
    order = [ask.at for ask in future]
    Random(9).shuffle(future)
    shuffled = asks[:now] + [ask._replace(at=at) for at, ask in zip(order, future, strict=True)]
    known, other = Cache(120, config), Cache(120, config)
    for index, (ask, twin) in enumerate(zip(asks, shuffled, strict=True)):
        known.serve(ask)
        other.serve(twin)
        if index == now - 1:
            assert known.lost == other.lost
            assert known.found == other.found
            assert known.lost
    assert known.lost != other.lost  # the shuffle was one


@pytest.mark.parametrize("config", [LRU, FORESIGHT], ids=["lru", "foresight"])
def test_two_runs_are_the_same(config: EvictionConfig):
    asks = traffic(seed=7, num=300)
    one, two = Cache(120, config), Cache(120, config)
    for ask in asks:
        one.serve(ask)
        two.serve(ask)
    assert one.lost == two.lost


@pytest.mark.interpreted
@pytest.mark.parametrize("num_blocks", [400, 1600])
def test_a_choice_looks_at_two_runs_of_each_kind_however_many_blocks_there_are(
    monkeypatch: pytest.MonkeyPatch, num_blocks: int
):
    """Operations, not time: worths compared for each evicted block."""
    count = Counter[str]()
    worth = ReuseOdds.worth

    def counted(odds: ReuseOdds, kind: Kind, age: float) -> float:
        count["worth"] += 1
        return worth(odds, kind, age)

    monkeypatch.setattr(ReuseOdds, "worth", counted)
    monkeypatch.setattr(Guard, "_judge", lambda guard: setattr(guard, "follows_odds", True))
    cache = Cache(num_blocks, FORESIGHT)
    for number in range(3 * num_blocks // 4):
        owner = Owner(session=f"s{number % 7}" if number % 2 else "")
        cache.serve(Ask(float(number), (5 * number, 5 * number + 1), owner))
    evicted = cache.kv.evictor.figures().evicted
    assert evicted > num_blocks / 3
    assert 0 < count["worth"] < 40 * evicted


def test_a_run_ends_where_another_visit_or_kind_begins():
    queues: runs.RunQueues[str] = runs.RunQueues()
    kind, other = mark_of(1).kind, mark_of(1, visit=visit_of(1, Owner(session="x"), 1, 0)).kind
    plan = [("a", kind, 1), ("b", kind, 1), ("c", other, 1), ("d", kind, 1), ("e", kind, 2)]
    numbers = [queues.add([item], k, visit, 0.0).number for item, k, visit in plan]
    assert numbers == [0, 0, 1, 2, 3]
    order = [item for run in queues.in_order(None, 0.0) for item in run.items]
    assert order == ["a", "b", "c", "d", "e"]
    assert all(one.number < two.number for one, two in pairwise(queues.in_order(None, 0.0)))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"order": "fifo"}, "one of lru, foresight"),
        ({"pinned_share": 1.5}, "pinned_share is 1.5"),
        ({"tenant_share": 0.0}, "tenant_share is 0.0"),
        ({"lookahead_blocks": -1}, "lookahead_blocks is -1"),
    ],
)
def test_settings_out_of_range_are_refused(fields: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        EvictionConfig(**fields)
