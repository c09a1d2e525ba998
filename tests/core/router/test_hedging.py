"""Requests that wait in vain, by examples: when they move, where to, and when they stay."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from routing import (
    FACTS,
    R0,
    R1,
    R2,
    arrived,
    delivered,
    failed,
    places,
    ready_router,
    report,
    request,
    token,
)

from headrace.core.balancer.policy import Choice
from headrace.core.balancer.predicted_ttft import PredictedTtft
from headrace.core.router.events import (
    CancelAt,
    ClientGone,
    GoOn,
    LoadReported,
    Outputs,
    ReplicaBeat,
    RequestArrived,
    RouterEffect,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.types import FinishReason, ReplicaId, RequestId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate
    from headrace.types import Request

PROMPT = tuple(range(200))


class Favourite:
    """A policy that sends all to R0 where it may, and promises a first token within 0.1 s."""

    name = "favourite"

    def __init__(self, promised: float | None = 0.1) -> None:
        self._promised = promised

    def choose(
        self, request: Request, prompt_tokens: int, candidates: Sequence[Candidate]
    ) -> Choice:
        names = [view.replica for view, _ in candidates]
        return Choice(R0 if R0 in names else names[0], "the test says so", (), self._promised)


def pool(
    limits: RouterLimits | None = None,
    *replicas: ReplicaId,
    promised: float | None = 0.1,
    paying: int = 20,
) -> Router:
    """A router with a budget, whose replicas have reported."""
    names = replicas or (R0, R1)
    router = ready_router(limits, *names, policy=Favourite(promised))
    payers = [f"paying{number}" for number in range(paying)]
    router.handle(arrived(*payers), 0.0)
    router.handle(ClientGone(tuple(map(RequestId, payers))), 0.0)
    for replica in names:
        router.handle(LoadReported(replica, report(step=1, running=0)), 0.0)
    return router


def ask(router: Router, *names: str, now: float) -> None:
    for name in names:
        effects = router.handle(RequestArrived((request(name, prompt=PROMPT),)), now)
        assert places(effects) == [("r0", name)]


def waiting(num: int, step: int = 1) -> LoadReported:
    """R0 says that so many wait there."""
    return LoadReported(R0, replace(report(step=step), waiting=num))


def moves(effects: Sequence[RouterEffect]) -> list[str]:
    return [effect.request_id for effect in effects if isinstance(effect, GoOn) and effect.hedged]


def test_a_request_that_waits_in_vain_goes_where_it_begins_sooner() -> None:
    router = pool()
    ask(router, "a", "b", now=1.0)
    go_on, cancel, *rest = router.handle(waiting(1), 2.0)
    assert isinstance(go_on, GoOn)
    assert (go_on.request_id, go_on.replica, go_on.hedged) == ("b", R0, True)
    assert go_on.reason.startswith("about 0.9 s left here, ")
    assert cancel == CancelAt(R0, RequestId("b"))
    assert places(rest) == [("r1", "b~2")]
    router.check_integrity()


def test_a_heartbeat_is_a_moment_to_look_as_well() -> None:
    router = pool()
    ask(router, "a", "b", now=1.0)
    assert moves(router.handle(waiting(1), 1.1)) == []
    assert moves(router.handle(ReplicaBeat(R0), 2.0)) == ["b"]


def test_the_stream_is_one_whatever_the_first_replica_still_says() -> None:
    router = pool()
    ask(router, "a", "b", now=1.0)
    router.handle(waiting(1), 2.0)
    assert router.handle(Outputs(R0, (token("b", 99),)), 2.0) == []  # it crossed our cancel
    assert router.handle(failed("b"), 2.0) == []
    assert delivered(router.handle(Outputs(R1, (token("b~2", 5),)), 2.1)) == [("b", (5,))]
    done = token("b~2", 6, finish=FinishReason.STOP)
    assert delivered(router.handle(Outputs(R1, (done,)), 2.2)) == [("b", (6,))]
    assert router.handle(Outputs(R0, (token("b", 99, finish=FinishReason.STOP),)), 2.3) == []
    router.check_integrity()


def test_who_has_begun_stays() -> None:
    router = pool()
    ask(router, "a", "b", now=1.0)
    assert moves(router.handle(waiting(0, step=2), 2.0)) == []


def test_who_came_after_the_last_step_has_not_begun() -> None:
    router = pool()
    ask(router, "a", now=1.0)
    router.handle(waiting(0, step=2), 1.1)
    ask(router, "b", now=1.2)
    assert moves(router.handle(ReplicaBeat(R0), 2.0)) == ["b"]


def test_who_has_a_first_token_stays() -> None:
    router = pool()
    ask(router, "a", "b", now=1.0)
    router.handle(Outputs(R0, (token("a"), token("b"))), 1.5)
    assert moves(router.handle(waiting(2), 3.0)) == []


def test_who_waits_as_was_predicted_stays() -> None:
    router = pool(promised=5.0)
    ask(router, "a", "b", now=1.0)
    assert moves(router.handle(waiting(2), 10.9)) == []
    assert moves(router.handle(waiting(2), 11.1)) == ["b", "a"]


def test_nobody_is_late_by_less_than_a_tenth_of_a_second() -> None:
    router = pool(promised=0.001)
    ask(router, "a", now=1.0)
    assert moves(router.handle(waiting(1), 1.1)) == []
    assert moves(router.handle(waiting(1), 1.102)) == ["a"]


def test_without_a_clearly_better_place_it_stays() -> None:
    router = pool()
    ask(router, "a", now=1.0)
    router.handle(LoadReported(R1, report(step=2, running=0, seconds=100.0, computed=100)), 1.0)
    assert moves(router.handle(waiting(1), 1.3)) == []


def test_the_only_replica_keeps_all() -> None:
    router = pool(None, R0)
    ask(router, "a", "b", now=1.0)
    assert moves(router.handle(waiting(2), 9.0)) == []


def test_nobody_moves_twice() -> None:
    router = pool(None, R0, R1, R2)
    ask(router, "a", now=1.0)
    assert places(router.handle(waiting(1), 2.0)) == [("r1", "a~2")]
    load = LoadReported(R1, waiting(1, step=2).report)
    assert moves(router.handle(load, 9.0)) == []


def test_moves_and_retries_share_a_budget_and_moves_leave_some() -> None:
    router = pool(paying=20)  # 2 and 3 to begin with
    names = [f"q{number}" for number in range(12)]
    ask(router, *names, now=1.0)
    num_moved = len(moves(router.handle(waiting(12), 2.0)))
    assert num_moved == 3  # 0.1 * 32 = 3.2
    assert len(moves(router.handle(waiting(9), 3.0))) == 0
    retried = [places(router.handle(failed(name), 3.0)) for name in names[:4]]
    assert [len(each) for each in retried] == [1, 1, 1, 0]


def test_what_moves_together_is_not_sent_to_one_place_without_end() -> None:
    """What has moved is before who would follow."""
    router = pool(RouterLimits(retry_share=1.0))
    names = [f"q{number}" for number in range(5)]
    ask(router, *names, now=1.0)
    moved = moves(router.handle(waiting(5), 1.25))  # 0.15 s to go; there 0.03, 0.06, 0.09
    assert moved == ["q4", "q3"]


def test_nothing_new_goes_for_a_while_to_a_replica_that_stands_still() -> None:
    router = pool()
    ask(router, "a", "b", now=1.0)
    router.handle(waiting(1), 2.0)  # no step for a second
    assert places(router.handle(arrived("c"), 6.9)) == [("r1", "c")]
    assert places(router.handle(arrived("d"), 7.1)) == [("r0", "d")]


def test_a_replica_that_steps_as_it_should_goes_on_getting_new_ones() -> None:
    router = pool()
    ask(router, "a", "b", now=1.0)
    assert moves(router.handle(waiting(1, step=2), 2.0)) == ["b"]
    assert places(router.handle(arrived("c"), 2.1)) == [("r0", "c")]


def test_policies_that_predict_nothing_are_measured_by_the_model() -> None:
    router = pool(promised=None)
    ask(router, "a", "b", now=1.0)
    assert moves(router.handle(waiting(2), 1.1)) == []
    assert moves(router.handle(waiting(2), 2.0)) == ["b", "a"]


def test_who_never_reports_is_not_looked_at() -> None:
    router = ready_router(RouterLimits(retry_share=1.0), R0, R1, policy=Favourite())
    ask(router, "a", "b", now=1.0)
    assert moves(router.handle(ReplicaBeat(R0), 9.0)) == []


@pytest.mark.parametrize("limits", [RouterLimits(hedge_after=0.0), RouterLimits(retry_share=0.0)])
def test_it_can_be_switched_off(limits: RouterLimits) -> None:
    router = pool(limits)
    ask(router, "a", "b", now=1.0)
    assert moves(router.handle(waiting(2), 9.0)) == []


def test_the_default_policy_moves_what_waits_at_a_replica_that_became_slow() -> None:
    router = ready_router(
        RouterLimits(retry_share=1.0), R0, R1, policy=PredictedTtft(), facts=FACTS
    )
    for replica in (R0, R1):
        router.handle(LoadReported(replica, report(step=1, running=0)), 0.0)
    for number in range(6):
        asked = request(f"q{number}", prompt=tuple(range(1000 * number, 1000 * number + 200)))
        router.handle(RequestArrived((asked,)), 1.0)
    there = _at(router, R0)
    assert len(there) == 3
    done = tuple(token(name, finish=FinishReason.STOP) for name in _at(router, R1))
    router.handle(Outputs(R1, done), 1.2)
    assert moves(router.handle(waiting(2), 3.0)) == there[:0:-1]


def _at(router: Router, replica: ReplicaId) -> list[str]:
    members = router._fleet.members  # nothing that it says tells who is where
    return [str(name) for name in members[replica].attempts]
