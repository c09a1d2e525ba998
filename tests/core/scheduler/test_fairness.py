"""What tenants are charged, and that nobody is left behind: the bound of fairness.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from playing import merged, num_tokens, of_tenant, poisson, rehearsal, request_of

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.fairness import MAX_IDLE, Account, Ledger
from headrace.core.scheduler.order import Order

if TYPE_CHECKING:
    from playing import Arrival

    from headrace.core.scheduler.scheduler import Scheduler
    from headrace.testing.rehearsal import Rehearsal

RANK = 1


def ledger_of(*tenants: str) -> tuple[Ledger, list[Account]]:
    ledger = Ledger(capacity=1000)
    return ledger, [ledger.enter(tenant, 1.0, RANK) for tenant in tenants]


def accounts(played: Rehearsal) -> dict[str, float]:
    """Service of every tenant that has requests."""
    scheduler: Scheduler = played.core.scheduler
    return {
        sequence.account.tenant: sequence.account.service
        for sequence in (*scheduler.running, *scheduler.waiting)
    }


def test_weight_divides_what_is_charged():
    ledger = Ledger(capacity=1000)
    light, heavy = ledger.enter("light", 1.0, RANK), ledger.enter("heavy", 4.0, RANK)
    light.charge(1.0)
    heavy.charge(1.0)
    assert (light.service, heavy.service) == (1.0, 0.25)


def test_who_comes_back_from_idling_starts_level_with_who_is_served():
    ledger, (busy, idle) = ledger_of("busy", "idle")
    ledger.leave(idle)
    for _ in range(10):
        busy.charge(1.0)
        ledger.serve(busy)
    assert ledger.enter("idle", 1.0, RANK).service == busy.service


def test_what_a_tenant_had_beyond_others_is_not_forgiven_by_a_short_pause():
    ledger, (greedy, other) = ledger_of("greedy", "other")
    ledger.serve(other)
    greedy.charge(5.0)
    ledger.leave(greedy)
    assert ledger.enter("greedy", 1.0, RANK).service == 5.0


def test_classes_are_accounted_apart():
    ledger, (account,) = ledger_of("a")
    account.charge(5.0)
    ledger.serve(account)
    assert ledger.enter("a", 1.0, 2).service == 0.0
    assert ledger.enter("b", 1.0, RANK).service == 5.0


def test_without_fairness_all_tenants_are_one():
    ledger = Ledger(capacity=1000, fair=False)
    assert ledger.enter("a", 1.0, RANK) is ledger.enter("b", 7.0, RANK)


def test_accounts_of_the_idle_are_bounded():
    ledger = Ledger(capacity=1000)
    for i in range(5 * MAX_IDLE):
        account = ledger.enter(f"t{i}", 1.0, RANK)
        account.charge(1.0)
        ledger.leave(account)
    assert len(ledger._accounts) <= MAX_IDLE + 1


def backlog(tenant: str, prompt: int, output: int, *, weight: float = 1.0, count: int = 150):
    return [
        (0.0, request_of(f"{tenant}{i}", prompt, output, tenant=tenant, weight=weight))
        for i in range(count)
    ]


MAX_SEQS = 6
sizes = st.tuples(st.integers(1, 300), st.integers(1, 60), st.sampled_from([0.5, 1.0, 3.0]))


@settings(max_examples=12, deadline=None)
@given(tenants=st.lists(sizes, min_size=2, max_size=3), depth=st.sampled_from([1, 2]))
def test_two_tenants_with_a_backlog_are_never_further_apart_than_running_requests_take(
    tenants: list[tuple[int, int, float]], depth: int
):
    """R_j(u) / w_j of fairness.py: ``MAX_SEQS`` requests from their start to their end."""
    loads = [
        backlog(f"t{i}-", prompt, output, weight=weight)
        for i, (prompt, output, weight) in enumerate(tenants)
    ]
    config = SchedulerConfig(max_num_seqs=MAX_SEQS, max_steps_in_flight=depth)
    gaps: list[float] = []

    def watch(_now: float, _plan: object) -> None:
        services = accounts(played)
        if len(services) == len(tenants) and played.core.scheduler.waiting.by_rank[RANK] > 100:
            gaps.append(max(services.values()) - min(services.values()))

    played = rehearsal(config, watch=watch)
    played.play(merged(*loads), until=8)

    def at_most(prompt: int, output: int, weight: float) -> float:
        step = 0.008 + 512 * 8e-4 + MAX_SEQS * 2e-3
        decode = 1.5e-3 + 0.5 * step * 400 / (2048 * 16) + 400e-6
        chunk = prompt * 9e-4 + (prompt / 16 + 2) * decode
        return MAX_SEQS * (chunk + output * decode) / weight + step / weight

    assert gaps
    assert max(gaps) <= max(at_most(*tenant) for tenant in tenants)


def largest_gap(load: list[Arrival], until: float) -> float:
    gaps: list[float] = []

    def watch(_now: float, _plan: object) -> None:
        services = accounts(played)
        if len(services) == 2:
            gaps.append(abs(services["short"] - services["long"]))

    played = rehearsal(SchedulerConfig(max_num_seqs=8), watch=watch)
    played.play(load, until=until)
    return max(gaps)


def test_the_gap_does_not_grow_with_time():
    largest = []
    for until in (20, 80):
        load = merged(backlog("short", 16, 8, count=1500), backlog("long", 200, 100, count=300))
        largest.append(largest_gap(load, until))
    assert largest[1] <= 1.5 * largest[0]


def test_weights_divide_the_device():
    load = merged(backlog("one", 64, 64), backlog("three", 64, 64, weight=3.0))
    played = rehearsal(SchedulerConfig(max_num_seqs=8))
    played.play(load, until=40)
    one, three = (num_tokens(of_tenant(played, tenant)) for tenant in ("one", "three"))
    assert three / one == pytest.approx(3.0, rel=0.15)


def test_nobody_gets_credit_for_having_been_idle():
    late = [(30.0, each) for _, each in backlog("late", 64, 64)]
    played = rehearsal(SchedulerConfig(max_num_seqs=8))
    played.play(merged(backlog("early", 64, 64, count=500), late), until=45)
    early, late_tokens = (
        sum(1 for s in of_tenant(played, tenant) for at in s.times if at > 32)
        for tenant in ("early", "late")
    )
    assert early / late_tokens == pytest.approx(1.0, rel=0.2)


def test_a_tenant_of_little_weight_is_not_starved():
    load = merged(backlog("small", 64, 16, weight=0.01), backlog("big", 64, 64, weight=100.0))
    played = rehearsal(SchedulerConfig(max_num_seqs=8))
    played.play(load)
    assert all(story.finish for story in played.stories.values())


def test_a_tenant_with_one_request_is_served_beside_a_flood_of_another():
    flood = backlog("flood", 64, 64)
    played = rehearsal(SchedulerConfig(max_num_seqs=8))
    played.play(merged(flood, [(5.0, request_of("one", 64, 8, tenant="one"))]), until=20)
    assert of_tenant(played, "one")[0].ttft < 2.0


def test_two_clients_that_overload_get_equal_service_and_no_throughput_is_lost():
    """1.5 and 3.0 requests/s of 256 + 256 tokens: the overload of Sheng et al. (OSDI 2024)."""

    def load(tenant: str, rate: float):
        def make(index: int, _rng: object, _now: float):
            return request_of(f"{tenant}{index}", 256, 256, tenant=tenant)

        return poisson(rate, 120, make, seed=len(tenant))

    arrivals = merged(load("a", 1.5), load("bb", 3.0))
    service: dict[Order, list[int]] = {}
    for order, fair in ((Order.DUE, True), (Order.ARRIVAL, False)):
        played = rehearsal(SchedulerConfig(max_num_seqs=32, order=order, fair=fair))
        played.play(arrivals, until=120)
        service[order] = [
            num_tokens(s) + 256 * sum(1 for each in s if each.times)
            for s in (of_tenant(played, "a"), of_tenant(played, "bb"))
        ]
    a, b = service[Order.DUE]
    assert a / b == pytest.approx(1.0, abs=0.1)
    assert service[Order.ARRIVAL][1] > 1.4 * service[Order.ARRIVAL][0]  # what it is about
    assert a + b >= 0.98 * sum(service[Order.ARRIVAL])
