"""What the engine does when its books are wrong or nothing can be planned: it says so, and goes on.

Nothing of this happens by itself: tests damage the engine's inner state.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from headrace.core.kvcache.tiers import TierConfig
from headrace.core.kvcache.transfers import Direction, Tier
from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.events import IncidentKind
from headrace.core.scheduler.order import Order
from headrace.core.scheduler.preemption import Preemption
from headrace.errors import InvariantBroken
from headrace.machine import Tick
from headrace.testing.engines import GREEDY, simulated_engine, simulated_spec, undisturbed
from headrace.types import FinishReason, Request, RequestId

if TYPE_CHECKING:
    from headrace.testing.harness import EngineHarness

NUM_BLOCKS = 16
BLOCK_SIZE = 4
SPEC = simulated_spec(num_blocks=NUM_BLOCKS, block_size=BLOCK_SIZE)


def engine_with(
    *,
    audit_steps: int = 1,
    shed_stalled: bool = True,
    max_setbacks: int = 3,
    steps_in_flight: int = 1,
    preemption: Preemption = Preemption.LEAST_REGRET,
) -> EngineHarness:
    config = SchedulerConfig(
        max_num_seqs=4,
        max_num_batched_tokens=16,
        audit_steps=audit_steps,
        shed_stalled=shed_stalled,
        max_setbacks=max_setbacks,
        max_steps_in_flight=steps_in_flight,
        preemption=preemption,
        order=Order.ARRIVAL,
    )
    return simulated_engine(SPEC, config)


def request_of(name: str, length: int = 10, max_tokens: int = 12) -> Request:
    prompt = tuple((ord(name[0]) * 31 + i * 7) % 1000 for i in range(length))
    return Request(id=RequestId(name), prompt=prompt, max_tokens=max_tokens, sampling=GREEDY)


def assert_ended_well(engine: EngineHarness, *requests: Request) -> None:
    for request in requests:
        alone = undisturbed(request, SPEC)
        assert tuple(engine.tokens[request.id]) == alone.tokens
        assert engine.finishes[request.id] is alone.finish


@pytest.mark.parametrize("steps_in_flight", [1, 2])
def test_leaked_blocks_are_quarantined_and_service_goes_on(steps_in_flight: int):
    engine = engine_with(steps_in_flight=steps_in_flight)
    a, b = request_of("a"), request_of("b")
    engine.submit(a)
    engine.submit(b)
    kv = engine.core.scheduler.kv
    leaked = set(kv.ledger.take(2))
    engine.run_until_idle()
    (incident,) = engine.incidents
    assert incident.kind is IncidentKind.QUARANTINE
    assert incident.num_blocks == 2
    assert_ended_well(engine, a, b)
    assert kv.counts().quarantined == 2
    assert engine.reports[-1].kv_blocks_quarantined == 2
    used = {block for plan in engine.plans[2:] for row in plan.rows for block in row.blocks}
    assert not used & leaked


def test_a_leak_is_found_when_the_engine_is_idle_even_without_audits():
    engine = engine_with(audit_steps=0)
    engine.submit(request_of("a"))
    engine.core.scheduler.kv.ledger.take(1)
    with pytest.raises(InvariantBroken, match="1 references, 1"):  # the harness walks; we do not
        engine.finish_step()
    core = engine.core
    core.scheduler.end(core.scheduler.running.sequences[0])
    core.handle(Tick(), engine.now)
    assert core.scheduler.kv.counts().quarantined == 1


@pytest.mark.interpreted
def test_a_fence_that_never_opened_is_quarantined():
    engine = engine_with()
    engine.submit(request_of("a", max_tokens=30))
    kv = engine.core.scheduler.kv
    (block,) = kv.ledger.take(1)
    kv.slices.leaving.leave((block,), after=engine.core.scheduler.in_flight[0].id)
    engine.core.scheduler.kv.step_done = lambda step: None  # type: ignore[method-assign]
    engine.finish_step()
    assert [incident.num_blocks for incident in engine.incidents] == [1]
    assert kv.counts().quarantined == 1
    assert kv.slices.leaving.oldest_fence == float("inf")


def test_only_those_end_whose_blocks_others_may_have_written_into():
    engine = engine_with()
    a, b = request_of("a"), request_of("b")
    engine.submit(a)
    engine.submit(b)
    scheduler = engine.core.scheduler
    engine.finish_step()
    victim = scheduler.running.sequences[0]
    scheduler.kv._pool.give_back(victim.table.blocks[-1:], kept=())  # free, and in use
    engine.run_until_idle()
    assert engine.finishes[a.id] is FinishReason.ERROR
    assert "1 requests end of it" in engine.outputs[a.id][-1].reason
    assert_ended_well(engine, b)
    assert engine.reports[-1].shed_total == 1


def test_blocks_that_are_being_transferred_are_accounted_for():
    tiers = TierConfig(transfer_blocks=3, block_seconds={Tier.HOST: 1e-6})
    engine = simulated_engine(SPEC, SchedulerConfig(max_num_seqs=4, audit_steps=1), tiers=tiers)
    num_loads = 0
    for round_ in range(12):
        engine.submit(request_of("abcd"[round_ % 4] + str(round_), length=30, max_tokens=2))
        for _ in range(200):
            loads = [t for t in engine.store.pending if t.direction is Direction.LOAD]
            num_loads += len(loads)
            assert engine.core._watch.repair() == []
            if engine.store.pending:
                engine.finish_transfer()
            elif engine.num_in_flight:
                engine.finish_step()
            else:
                break
    assert num_loads > 0
    assert not engine.incidents


def test_who_waits_for_content_that_nobody_computes_is_woken():
    engine = engine_with()
    a, b = request_of("a"), request_of("b")
    engine.submit(a)
    engine.submit(b)
    engine.finish_step()
    scheduler = engine.core.scheduler
    c = request_of("c")
    sequence = engine.core._door.enter(c, engine.now)
    engine.core._live[c.id] = sequence
    scheduler.add(sequence)
    scheduler.waiting.park(sequence, b"nobody computes this")
    engine.run_until_idle()
    assert_ended_well(engine, a, b, c)


def test_a_stall_names_the_blocker_sheds_it_and_serves_the_rest():
    engine = engine_with()
    big = request_of("big", length=50, max_tokens=4)
    small = request_of("small")
    held = request_of("held", length=20, max_tokens=2)
    engine.submit(held)
    engine.submit(big)
    engine.submit(small)
    kv = engine.core.scheduler.kv
    for _ in range(kv.num_free - 4):  # big fitted when it came, and never will again
        kv.ledger.take(1)
    engine.run_until_idle()
    kinds = [incident.kind for incident in engine.incidents]
    assert kinds == [IncidentKind.QUARANTINE, IncidentKind.STALL]
    stall = engine.incidents[-1]
    assert stall.request_id == big.id
    assert "waits for free blocks" in stall.reason
    assert engine.finishes[big.id] is FinishReason.ERROR
    assert_ended_well(engine, small, held)


def test_with_the_detector_off_a_stall_ends_the_engine_and_names_the_blocker():
    engine = engine_with(shed_stalled=False)
    engine.submit(request_of("held", length=20, max_tokens=1))
    engine.submit(request_of("big", length=50, max_tokens=4))
    kv = engine.core.scheduler.kv
    for _ in range(kv.num_free):
        kv.ledger.take(1)
    with pytest.raises(InvariantBroken, match=r"nothing can be planned: .* waits for free blocks"):
        engine.run_until_idle()


def test_what_no_longer_fits_is_refused_at_once():
    engine = engine_with()
    engine.submit(request_of("a"))
    kv = engine.core.scheduler.kv
    for _ in range(8):
        kv.ledger.take(1)
    engine.run_until_idle()
    engine.submit(request_of("big", length=40))
    assert engine.rejects[RequestId("big")].code == "overloaded"
    engine.submit(request_of("small"))
    assert RequestId("small") not in engine.rejects


@pytest.mark.parametrize("preemption", list(Preemption))
def test_who_was_sent_back_again_and_again_is_spared(preemption: Preemption):
    engine = engine_with(max_setbacks=2, preemption=preemption)
    for name in ("a", "b", "c"):
        engine.submit(request_of(name, max_tokens=40))
    engine.finish_step()
    running = engine.core.scheduler.running.sequences
    victims = engine.core.scheduler._victims
    usual = next(victims.in_turn(running))
    usual.num_setbacks = 2
    assert next(victims.in_turn(running)) is not usual
    for sequence in running:
        sequence.num_setbacks = 2
    assert next(victims.in_turn(running)) is usual  # somebody must


def test_computing_again_without_end_is_a_livelock_and_ends_the_worst():
    engine = engine_with()
    engine.submit(request_of("a"))
    scheduler, watch = engine.core.scheduler, engine.core._watch
    step = scheduler.in_flight[0]
    step.rows = [row._replace(samples=False) for row in step.rows]
    step.num_again = step.num_prefill
    scheduler.running.sequences[0].num_setbacks = 7
    rounds = 2 * NUM_BLOCKS * BLOCK_SIZE // step.num_prefill
    for _ in range(rounds):
        assert watch.stepped(step) == []
    (remedy,) = watch.stepped(step)
    assert remedy.incident.kind is IncidentKind.LIVELOCK
    assert remedy.incident.request_id == scheduler.running.sequences[0].request.id
