"""Where a request fetches its prefix from, and what that has to do with drains."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from routing import FACTS, R0, R1, R2, report, token

from headrace.core.balancer.policy import Choice
from headrace.core.kvcache.chain import prompt_chain
from headrace.core.router.events import (
    ClientGone,
    Dispatch,
    DrainReplica,
    KvListed,
    LoadReported,
    Outputs,
    ReplicaEmptied,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.machine import Tick
from headrace.types import (
    KvSource,
    ReplicaId,
    Request,
    RequestId,
    TierFigures,
    block_key,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate

PROMPT = tuple(range(1000))  # 62 blocks and 8 tokens
CHAIN = prompt_chain(b"root".ljust(32), PROMPT, FACTS.block_size)
BLOCK_SECONDS = 1e-4  # to compute one takes 16 x 0.1 ms by the prior


class Fixed:
    """A policy that says where, without any reason of its own."""

    name = "fixed"

    def __init__(self, replica: ReplicaId) -> None:
        self.replica = replica
        self.seen: dict[ReplicaId, int] = {}

    def choose(
        self, request: Request, prompt_tokens: int, candidates: Sequence[Candidate]
    ) -> Choice:
        self.seen = {view.replica: cached for view, cached in candidates}
        return Choice(self.replica, "because")


def facts_of(replica: ReplicaId):
    return replace(FACTS, lends_at=f"{replica}.kv", peer_block_seconds=BLOCK_SECONDS)


def pool(limits: RouterLimits | None = None, *, to: ReplicaId = R1, lends: bool = True) -> Router:
    """Three replicas, of which R0 has the prompt; requests go where the test says."""
    router = Router(limits, Fixed(to))
    for replica in (R0, R1, R2):
        router.handle(ReplicaReady(replica, facts_of(replica) if lends else FACTS), 0.0)
    holds(router, R0, 62)
    return router


def holds(router: Router, replica: ReplicaId, num_blocks: int) -> None:
    router.handle(KvListed(replica, 1, tuple(map(block_key, CHAIN[:num_blocks]))), 0.0)


def ask(router: Router, name: str = "a", now: float = 0.0, max_tokens: int = 100) -> Dispatch:
    request = Request(
        id=RequestId(name),
        prompt=PROMPT,
        max_tokens=max_tokens,
        chain=CHAIN,
        chain_root=b"root".ljust(32),
    )
    (dispatch,) = router.handle(RequestArrived((request,)), now)
    assert isinstance(dispatch, Dispatch)
    return dispatch


def test_what_another_replica_has_is_fetched_from_there_and_the_choice_says_so():
    router = pool()
    dispatch = ask(router)
    assert dispatch.request.source == KvSource(R0, "r0.kv", 62)
    assert str(dispatch.choice.reason) == (
        "because; 992 tokens from r0: 0.0082 s, to compute them 0.14 s"
    )
    view = next(view for view in router.replicas if view.replica == R1)
    assert view.prefill_tokens == 8
    router.check_integrity()


def test_what_a_prompt_under_way_will_leave_cannot_be_fetched_yet():
    router = pool(to=R2)
    router.handle(KvListed(R0, 2, ()), 0.0)
    holds(router, R2, 0)  # it tells what it has
    ask(router, "first")
    router._placer.chooser.policy = Fixed(R1)
    assert ask(router, "second").request.source is None


def test_all_choices_of_a_request_name_the_source():
    router = pool()
    request = Request(id=RequestId("a#0"), prompt=PROMPT, max_tokens=9, chain=CHAIN)
    effects = router.handle(RequestArrived((request, replace(request, id=RequestId("a#1")))), 0.0)
    sources = [effect.request.source for effect in effects if isinstance(effect, Dispatch)]
    assert sources == [KvSource(R0, "r0.kv", 62)] * 2


def test_who_has_the_most_is_asked_and_of_equals_the_least_busy():
    router = pool(to=R2)
    holds(router, R1, 40)
    dispatch = ask(router)
    assert dispatch.request.source == KvSource(R0, "r0.kv", 62)
    holds(router, R1, 62)
    router = pool(to=R0)
    ask(router, "load")
    router._placer.chooser.policy = Fixed(R2)
    holds(router, R1, 62)
    source = ask(router, "b").request.source
    assert source is not None
    assert source.replica == R1


def test_the_chosen_replica_asks_only_for_more_than_it_has():
    router = pool()
    holds(router, R1, 62)
    assert ask(router).request.source is None
    router = pool()
    holds(router, R1, 60)
    dispatch = ask(router)
    assert dispatch.request.source == KvSource(R0, "r0.kv", 62)
    assert "32 tokens from r0" in str(dispatch.choice.reason)


def test_nothing_is_fetched_where_computing_is_quicker():
    router = pool()
    slow = TierFigures(peer_block_seconds=0.01)
    router.handle(LoadReported(R1, replace(report(step=1), tiers=slow)), 0.0)
    assert ask(router).request.source is None


def test_nothing_is_fetched_where_it_is_switched_off_or_nobody_lends():
    assert ask(pool(RouterLimits(kv_transfer=False))).request.source is None
    assert ask(pool(lends=False)).request.source is None


def test_a_replica_that_is_not_trusted_or_gone_is_no_source():
    router = pool(RouterLimits(silent_after=3.0))
    router.handle(ReplicaLost(R0, "reset"), 0.0)
    assert ask(router).request.source is None


def drained(router: Router) -> Dispatch:
    """A stream that R0 has answered moves away at the end of its drain."""
    router._placer.chooser.policy = Fixed(R0)
    ask(router, now=0.0)
    router.handle(Outputs(R0, (token("a", *range(30)),)), 1.0)
    router._placer.chooser.policy = Fixed(R1)
    effects = router.handle(DrainReplica(R0, 0.0), 2.0)
    effects = [*effects, *router.handle(Tick(), 2.0)]
    assert not [effect for effect in effects if isinstance(effect, ReplicaEmptied)]
    wakeup = router.next_wakeup()
    assert wakeup is None or wakeup > 2.0
    (dispatch,) = [effect for effect in effects if isinstance(effect, Dispatch)]
    return dispatch


def test_a_stream_that_leaves_a_draining_replica_takes_its_blocks_along():
    dispatch = drained(pool())
    assert dispatch.replica == R1
    assert dispatch.request.source == KvSource(R0, "r0.kv", 1029 // 16)


@pytest.mark.parametrize("end", ["answer", "client", "loss"])
def test_a_draining_replica_is_empty_only_when_who_left_needs_it_no_more(end: str):
    router = pool()
    drained(router)
    match end:
        case "answer":
            effects = router.handle(Outputs(R1, (token("a~2", 7),)), 3.0)
        case "client":
            effects = router.handle(ClientGone((RequestId("a"),)), 3.0)
        case _:
            router._placer.chooser.policy = Fixed(R2)
            effects = router.handle(ReplicaLost(R1, "reset"), 3.0)
            (again,) = [effect for effect in effects if isinstance(effect, Dispatch)]
            assert again.request.source == KvSource(R0, "r0.kv", 1029 // 16)
            effects = router.handle(Outputs(R2, (token("a~3", 7),)), 4.0)
    assert effects[-1] == ReplicaEmptied(R0)
    router.check_integrity()


def test_without_transfers_a_drained_replica_is_empty_at_once():
    router = pool(RouterLimits(kv_transfer=False))
    router._placer.chooser.policy = Fixed(R0)
    ask(router, now=0.0)
    router.handle(Outputs(R0, (token("a", 1),)), 1.0)
    router._placer.chooser.policy = Fixed(R1)
    effects = router.handle(DrainReplica(R0, 0.0), 2.0)
    assert ReplicaEmptied(R0) in [*effects, *router.handle(Tick(), 2.0)]


def test_a_stream_whose_replica_died_has_nobody_to_follow():
    router = pool()
    router._placer.chooser.policy = Fixed(R0)
    ask(router)
    router.handle(Outputs(R0, (token("a", 1, 2),)), 1.0)
    router._placer.chooser.policy = Fixed(R1)
    effects = router.handle(ReplicaLost(R0, "reset"), 2.0)
    (dispatch,) = [effect for effect in effects if isinstance(effect, Dispatch)]
    assert dispatch.request.source is None
