"""What several gateways say of one pool, as one picture."""

from __future__ import annotations

from headrace.core.autoscaler.events import PoolLoad, ReplicaLoad
from headrace.core.autoscaler.gathering import Gathering
from headrace.types import ReplicaId

R0, R1 = ReplicaId("r0"), ReplicaId("r1")


def load(waiting: int, ttft: float | None, *replicas: ReplicaLoad) -> PoolLoad:
    return PoolLoad(
        waiting=waiting, waiting_tokens=10 * waiting, predicted_ttft=ttft, replicas=replicas
    )


def part(
    replica: ReplicaId, outstanding: int, *, kv: float = 0.0, computed: int = 0
) -> ReplicaLoad:
    return ReplicaLoad(
        replica=replica,
        outstanding=outstanding,
        prefill_tokens=100 * outstanding,
        kv_used=kv,
        prefill_rate=1.0,
        computed_tokens=computed,
        max_num_seqs=8,
    )


def test_work_is_added_up_and_what_all_see_alike_is_not():
    gathering = Gathering()
    gathering.load("g0", load(1, None, part(R0, 2, kv=0.5, computed=70)))
    whole = gathering.load("g1", load(2, 0.5, part(R0, 3, kv=0.4, computed=90), part(R1, 1)))
    assert (whole.waiting, whole.waiting_tokens, whole.predicted_ttft) == (3, 30, 0.5)
    first, second = whole.replicas
    assert (first.outstanding, first.prefill_tokens) == (5, 500)
    assert (first.kv_used, first.computed_tokens, first.max_num_seqs) == (0.5, 90, 8)
    assert second == part(R1, 1)
    assert gathering.reached == {R0}


def test_a_gateway_that_left_counts_no_more():
    gathering = Gathering()
    gathering.join("g0")
    assert gathering.reached == frozenset()
    gathering.load("g0", load(1, 0.1, part(R0, 2)))
    gathering.load("g1", load(5, 0.2, part(R0, 7)))
    gathering.leave("g1")
    assert gathering.load("g0", load(1, 0.1, part(R0, 2))) == load(1, 0.1, part(R0, 2))


def test_a_drain_is_done_when_every_gateway_says_so():
    gathering = Gathering()
    gathering.join("g0")
    gathering.join("g1")
    assert not gathering.emptied("g0", R0)  # nobody drains it
    gathering.drains(R0, on=True)
    assert not gathering.emptied("g1", R0)
    assert not gathering.emptied("g1", R0)
    assert gathering.emptied("g0", R0)
    gathering.drains(R0, on=False)
    gathering.drains(R0, on=True)
    assert not gathering.emptied("g0", R0)
    assert gathering.leave("g1") == [R0]  # its requests are gone with it
    gathering.drains(R0, on=True)
    assert gathering.leave("g0") == []  # without any gateway nobody can say
