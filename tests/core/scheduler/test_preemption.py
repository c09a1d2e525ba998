"""Who gives memory back, and what that costs against last in, first out."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from playing import STOP, VOCABULARY, quantile, rehearsal, request_of

from headrace.core.costs.step_model import StepModel
from headrace.core.kvcache.cache import KVCache
from headrace.core.kvcache.table import BlockTable
from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.fairness import Account
from headrace.core.scheduler.order import Patience
from headrace.core.scheduler.preemption import Headroom, Preemption, Victims
from headrace.core.scheduler.sequence import Sequence
from headrace.testing.rehearsal import forget_preempted
from headrace.types import SequenceId

if TYPE_CHECKING:
    from headrace.testing.rehearsal import Rehearsal

SIZE = 4


class Stage:
    """A cache, and sequences that run on it."""

    def __init__(
        self, policy: Preemption = Preemption.LEAST_REGRET, *, max_setbacks: int = 0
    ) -> None:
        self.kv = KVCache(num_blocks=256, block_size=SIZE)
        self.patience = Patience()
        self.victims = Victims(self.kv, StepModel(), policy, self.patience, max_setbacks)
        self.running: list[Sequence] = []

    def run(self, prompt: list[int] | int, max_tokens: int, rank: int = 1) -> Sequence:
        number = len(self.running)
        if isinstance(prompt, int):
            prompt = [1000 * (number + 1) + i for i in range(prompt)]
        table = BlockTable(prompt, SIZE, b"")
        self.kv.take_cached(table)
        assert self.kv.grow(table, len(prompt))
        self.kv.publish(table, len(prompt))
        sequence = Sequence(
            id=SequenceId(number),
            request=request_of(f"r{number}", prompt),
            tokens=prompt,
            table=table,
            max_tokens=max_tokens,
            beginning=None,
            account=Account("a", rank),
            rank=rank,
            num_computed=len(prompt),
        )
        self.running.append(sequence)
        return sequence

    def first(self, among: list[Sequence] | None = None) -> Sequence:
        return next(self.victims.in_turn(self.running if among is None else among))

    def waiting(self, prompt: list[int] | int) -> Sequence:
        if isinstance(prompt, int):
            prompt = [9000 + i for i in range(prompt)]
        return Sequence(
            id=SequenceId(99),
            request=request_of("waits", prompt),
            tokens=prompt,
            table=BlockTable(prompt, SIZE, b""),
            max_tokens=100,
            beginning=None,
            account=Account("a", 1),
        )


def test_last_in_takes_the_newest():
    stage = Stage(Preemption.LAST_IN)
    stage.run(40, 50)
    newest = stage.run(8, 9)
    assert stage.first() is newest


def test_of_equals_the_one_that_would_go_on_asking_is_the_victim():
    stage = Stage()
    asks = stage.run(40, 200)
    stage.run(40, 45)
    assert stage.first() is asks


def test_the_one_that_loses_least_is_the_victim_whatever_it_would_ask_for():
    stage = Stage()
    little = stage.run(20, 30)
    stage.run(40, 500)
    assert stage.first() is little


def test_what_others_hold_too_is_not_lost():
    stage = Stage()
    prefix = list(range(64))
    stage.run([*prefix, *range(100, 120)], 200)
    shares = stage.run([*prefix, *range(200, 208)], 200)
    stage.run(40, 200)
    assert stage.first() is shares


def test_the_batch_class_goes_first_whatever_it_loses():
    stage = Stage()
    stage.run(8, 500)
    batch = stage.run(80, 81, rank=2)
    assert stage.first() is batch


def test_a_class_whose_turn_it_is_has_no_disadvantage():
    stage = Stage()
    asks = stage.run(8, 500)
    stage.run(80, 81, rank=2)
    for _ in range(1000):
        stage.patience.note(wants=[True] * 3, got=[0.0, 0.1, 0.0], seconds=0.1)
    assert stage.patience.has_turn(2)
    assert stage.first([each for each in stage.running if each is not asks])
    assert stage.first() is not stage.running[1]


@given(
    prompts=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 6), st.integers(1, 9), st.integers(1, 2)),
        min_size=1,
        max_size=8,
    ),
    setbacks=st.lists(st.integers(0, 2), min_size=8, max_size=8),
    policy=st.sampled_from(Preemption),
)
def test_victims_in_turn_are_those_that_would_be_chosen_each_time_anew(
    prompts: list[tuple[int, int, int, int]], setbacks: list[int], policy: Preemption
):
    stage = Stage(policy, max_setbacks=2)
    for number, (prefix, shared, own, rank) in enumerate(prompts):
        tail = [1000 * (number + 1) + i for i in range(own)]
        sequence = stage.run([*[prefix] * (SIZE * shared), *tail], 60, rank=rank)
        sequence.num_setbacks = setbacks[number]
    left = list(stage.running)
    for victim in stage.victims.in_turn(stage.running):
        anew = Victims(stage.kv, StepModel(), policy, stage.patience, 2)
        candidates = anew.unspared(left) or left
        if policy is Preemption.LAST_IN:
            assert victim is candidates[-1]
        else:
            assert victim is min(candidates, key=anew._regret)
        left.remove(victim)
        stage.kv.release(victim.table, after=None)
    assert not left


def test_freed_are_the_blocks_that_nobody_shares_and_one_to_grow():
    stage = Stage()
    prefix = list(range(16))
    first = stage.run([*prefix, *range(100, 108)], 50)
    stranger = stage.waiting(4 * 9)
    assert stage.victims.suffice([first], stranger, 9 - (6 + 1))
    assert not stage.victims.suffice([first], stranger, 9 - (6 + 1) - 1)
    second = stage.run([*prefix, *range(200, 208)], 50)
    assert stage.victims.suffice([first, second], stranger, 9 - 2 * (2 + 1))
    assert not stage.victims.suffice([first, second], stranger, 9 - 2 * (2 + 1) - 1)


def test_what_a_newcomer_would_share_with_its_victim_is_lost_with_it():
    stage = Stage()
    prefix = list(range(16))
    first = stage.run([*prefix, *range(100, 108)], 50)
    newcomer = stage.waiting([*prefix, *range(200, 220)])  # 9 blocks, 4 of them held by `first`
    assert not stage.victims.suffice([first], newcomer, 9 - (6 + 1) - 1)


def test_headroom_doubles_with_preemptions_up_to_a_bound_and_shrinks_to_a_block():
    headroom = Headroom(SIZE, adapts=True)
    assert headroom.is_least
    for _ in range(30):
        headroom.preempted()
    assert headroom.tokens == Headroom._MOST
    for _ in range(700):
        headroom.stepped()
    assert Headroom._MOST * 0.4 < headroom.tokens < Headroom._MOST * 0.6
    for _ in range(10_000):
        headroom.stepped()
    assert headroom.is_least
    assert headroom.tokens == SIZE


def test_headroom_that_does_not_adapt_stays():
    headroom = Headroom(SIZE, adapts=False)
    headroom.preempted()
    assert headroom.is_least


def pressure(seed: int, num: int = 60, *, shared: bool = False) -> list[tuple[float, object]]:
    """Prompts of all lengths; outputs end where they end. Together twice what fits."""
    import random

    rng = random.Random(seed)
    prefixes = [[rng.randrange(VOCABULARY) for _ in range(160)] for _ in range(3)]
    arrivals = []
    for index in range(num):
        body = [rng.randrange(VOCABULARY) for _ in range(min(700, int(rng.lognormvariate(5, 0.8))))]
        prompt = [*prefixes[index % 3], *body] if shared else [*body, index]
        arrivals.append((index / 4, request_of(f"r{index}", prompt, 700, stop=(STOP,))))
    return arrivals


def under_pressure(seed: int, policy: Preemption, *, full: bool = False, shared: bool) -> Rehearsal:
    """``full``: what a preempted sequence had computed is lost, as with last in, first out."""
    config = SchedulerConfig(max_num_seqs=24, preemption=policy, itl=0.15)
    forgotten: set[tuple[int, int]] = set()
    played = rehearsal(
        config,
        num_blocks=220,
        watch=lambda _now, _plan: forget_preempted(played.core, forgotten) if full else None,
    )
    played.play(pressure(seed, shared=shared))  # type: ignore[arg-type]
    assert all(story.finish for story in played.stories.values())
    return played


def tax(played: Rehearsal) -> float:
    """Share of all computed tokens that had been computed before."""
    assert played.report is not None
    return played.report.recomputed_tokens_total / played.report.computed_tokens_total


@pytest.mark.parametrize("shared", [False, True])
def test_the_tax_is_at_most_half_of_last_in_first_out_and_nothing_gets_slower(shared: bool):
    ours = [under_pressure(s, Preemption.LEAST_REGRET, shared=shared) for s in (1, 2)]
    theirs = [under_pressure(s, Preemption.LAST_IN, full=True, shared=shared) for s in (1, 2)]
    assert min(map(tax, theirs)) > 0.05  # there is pressure
    assert sum(map(tax, ours)) <= 0.5 * sum(map(tax, theirs))
    for our, their in zip(ours, theirs, strict=True):
        assert our.now <= 1.01 * their.now
        ends = [
            quantile((s.times[-1] - s.arrived for s in each.stories.values()), 0.95)
            for each in (our, their)
        ]
        assert ends[0] <= 1.05 * ends[1]


def test_a_better_newcomer_takes_a_batch_place_only_if_it_then_fits():
    config = SchedulerConfig(max_num_seqs=8)
    from headrace.types import PriorityClass

    batch = request_of("batch", 64, 100, priority=PriorityClass.BATCH)
    load = [
        (0.0, request_of("runs", 160, 300)),
        (0.1, batch),
        (0.5, request_of("huge", 512 - 64, 4, priority=PriorityClass.INTERACTIVE)),
        (0.6, request_of("fits", 16 * 14, 4, priority=PriorityClass.INTERACTIVE)),
    ]
    played = rehearsal(config, num_blocks=32)
    played.play(load[:3], until=1.2)
    assert played.report is not None
    assert played.report.preemptions_total == 0  # in vain
    played = rehearsal(config, num_blocks=32)
    played.play([*load[:2], load[3]], until=1.2)
    assert played.report is not None
    assert played.report.preemptions_total == 1
    assert played.stories[load[3][1].id].ttft < 0.3


@pytest.mark.parametrize("depth", [1, 2])
def test_a_place_is_made_for_a_better_newcomer_with_one_and_two_steps_in_flight(depth: int):
    from headrace.types import PriorityClass

    batch = [(0.0, request_of(f"b{i}", 32, 400, priority=PriorityClass.BATCH)) for i in range(4)]
    quick = (1.0, request_of("quick", 32, 4, priority=PriorityClass.INTERACTIVE))
    played = rehearsal(SchedulerConfig(max_num_seqs=4, max_steps_in_flight=depth))
    played.play([*batch, quick])
    assert played.stories[quick[1].id].ttft < 0.1
    assert all(story.finish for story in played.stories.values())
