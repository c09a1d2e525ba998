"""What a Router tells of its pool."""

from __future__ import annotations

import pytest
from routing import R0, R1, arrived, ready_router, report, request, token

from headrace.core.balancer.policy import ReplicaFacts
from headrace.core.router.events import LoadReported, Outputs, ReplicaState, RequestArrived
from headrace.core.router.machine import Router, RouterLimits
from headrace.types import FinishReason


def test_an_empty_pool_predicts_nothing() -> None:
    figures = Router().figures(0.0)
    assert (figures.waiting, figures.predicted_ttft, figures.replicas) == (0, None, ())


def test_load_is_counted_at_dispatch_and_released_by_events() -> None:
    router = ready_router(None, R0)
    router.handle(arrived("a"), 0.0)
    view = router.replicas[0]
    assert (view.outstanding, view.prefill_tokens, view.decoding) == (1, 2, 0)
    assert view.context_tokens == 2
    router.handle(Outputs(R0, (token("a", 5, 6),)), 1.0)
    assert (view.outstanding, view.prefill_tokens, view.decoding) == (1, 0, 1)
    assert view.context_tokens == 4
    router.handle(Outputs(R0, (token("a", finish=FinishReason.STOP),)), 2.0)
    assert (view.outstanding, view.prefill_tokens, view.decoding) == (0, 0, 0)
    assert view.context_tokens == 0


def test_choices_of_one_prompt_compute_it_once() -> None:
    router = ready_router(None, R0)
    chain = (bytes(32), bytes([1]) * 32)
    choices = tuple(request(f"a#{n}", prompt=tuple(range(40)), chain=chain) for n in range(3))
    router.handle(RequestArrived(choices), 0.0)
    assert router.replicas[0].prefill_tokens == 40 + 8 + 8
    assert router.replicas[0].context_tokens == 120


def test_what_waits_is_said_in_requests_and_tokens() -> None:
    router = ready_router(RouterLimits(max_outstanding=1), R0)
    for name in "abc":
        router.handle(arrived(name), 0.0)
    figures = router.figures(0.0)
    assert (figures.waiting, figures.waiting_tokens) == (2, 4)
    assert figures.predicted_ttft == pytest.approx(0.01 + 8 * 1e-4 + 0.0)  # 2 there, 4 wait, mine


def test_replicas_are_told_with_state_and_rates() -> None:
    facts = ReplicaFacts(max_num_batched_tokens=100)
    router = ready_router(None, R0, R1, facts=facts)
    for index in range(200):  # 10 ms a step and 1 ms a token: 100 tokens in 110 ms
        tokens = index * (index + 1) // 2
        seconds = index * 0.01 + tokens * 0.001
        load = report(step=index + 1, seconds=seconds, computed=tokens)
        router.handle(LoadReported(R0, load), float(index))
    first, second = router.figures(0.0).replicas
    assert first.prefill_rate == pytest.approx(100 / 0.11, rel=0.02)
    assert (first.kv_used, first.state) == (0.75, ReplicaState.READY)
    assert second.prefill_rate == 0.0
