"""Who killed a replica, by examples: the guilty are found, and the innocent go on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import pairwise

import pytest
from routing import R0, R1, R2, places, ready_router, request, token

from headrace.core.router.events import (
    ClientGone,
    Dispatch,
    DrainReplica,
    Fail,
    GoOn,
    Outputs,
    ReplicaLost,
    ReplicaReady,
    RequestArrived,
    RouterEffect,
)
from headrace.core.router.machine import Router, RouterLimits
from headrace.core.router.quarantine import MAX_REMEMBERED, Quarantine, fingerprint
from headrace.errors import PoisonRequest
from headrace.machine import Tick
from headrace.types import Constraint, ConstraintKind, FinishReason, RequestId, SamplingParams

POISON = (6, 6, 6)
LIMITS = RouterLimits(max_migrations=16)


def ask(router: Router, name: str, *, prompt: tuple[int, ...] = (1, 2), now: float = 0.0) -> None:
    router.handle(RequestArrived((request(name, prompt=prompt, max_tokens=100),)), now)


def lose(router: Router, now: float, replica: str = "r0") -> list[RouterEffect]:
    """A replica dies and is back at once."""
    effects = list(router.handle(ReplicaLost(R0 if replica == "r0" else R1, "it crashed"), now))
    router.check_integrity()
    return [*effects, *router.handle(ReplicaReady(R0 if replica == "r0" else R1), now)]


def poisoned(effects: list[RouterEffect]) -> list[str]:
    return [e.request_id for e in effects if isinstance(e, Fail) and e.code == PoisonRequest.code]


def test_a_request_of_which_two_replicas_died_is_not_sent_to_a_third() -> None:
    router = ready_router(LIMITS, R0)
    ask(router, "a", prompt=POISON)
    assert poisoned(lose(router, 1.0)) == []
    effects = lose(router, 2.0)
    assert (
        Fail(
            RequestId("a"),
            "request_rejected_poison",
            "2 replicas died while they ran this request (the last: it crashed); it is not sent to "
            "another one: change it, or report it to who runs this server",
        )
        in effects
    )
    assert places(effects) == []
    assert router.num_alive == 0


def test_the_same_request_sent_again_is_refused_at_once_for_ten_minutes() -> None:
    router = ready_router(LIMITS, R0)
    ask(router, "a", prompt=POISON)
    lose(router, 1.0)
    lose(router, 2.0)
    (fail,) = router.handle(RequestArrived((request("b", prompt=POISON),)), 100.0)
    assert fail == Fail(
        RequestId("b"),
        "request_rejected_poison",
        "replicas died while they ran this request; it is refused for another 502 s: change it, "
        "or report it to who runs this server",
    )
    assert places(router.handle(RequestArrived((request("c"),)), 100.0)) == [("r0", "c")]
    effects = router.handle(RequestArrived((request("d", prompt=POISON),)), 602.0)
    assert places(effects) == [("r0", "d")]


def test_a_stream_that_came_further_is_not_suspected_of_the_death_before() -> None:
    router = ready_router(LIMITS, R0)
    ask(router, "a")
    name = "a"
    for number in range(6):
        ((_, name),) = places(lose(router, float(number)))
        router.handle(Outputs(R0, (token(name, *range(16)),)), number + 0.5)
    assert router.num_alive == 1


def test_a_stream_that_dies_at_one_place_again_and_again_is_condemned() -> None:
    router = ready_router(LIMITS, R0)
    ask(router, "a")
    router.handle(Outputs(R0, (token("a", *range(40)),)), 0.5)
    ((_, name),) = places(lose(router, 1.0))
    router.handle(Outputs(R0, (token(name, *range(15)),)), 1.5)
    assert poisoned(lose(router, 2.0)) == ["a"]


def test_who_came_to_the_second_death_by_chance_goes_on() -> None:
    router = ready_router(LIMITS, R0)
    ask(router, "a", prompt=POISON)
    lose(router, 1.0)
    ask(router, "b", now=1.5)
    effects = lose(router, 2.0)
    assert poisoned(effects) == ["a"]
    assert places(effects) == [("r0", "b~2")]
    assert places(lose(router, 3.0)) == [("r0", "b~3")]  # the death before counts no more for it


def play(guilty: int, num: int, limits: RouterLimits) -> tuple[Counter[str], list[str], int]:
    """``num`` requests run together, and one kills each replica that begins it; others end.

    Return how often each was sent, who failed, and how many replicas died.
    """
    router = ready_router(limits, R0)
    effects: list[RouterEffect] = []
    for number in range(num):
        prompt = POISON if number == guilty else (number,)
        asked = request(f"q{number}", prompt=prompt, max_tokens=100)
        effects += router.handle(RequestArrived((asked,)), 0.0)
    sent: Counter[str] = Counter()
    failed: list[str] = []
    now, deaths = 0.0, 0
    while router.num_alive and now < 600:
        now += 1.0
        here = [e for e in effects if isinstance(e, Dispatch)]
        sent.update(e.client_id for e in here)
        failed += [e.request_id for e in effects if isinstance(e, Fail)]
        if any(e.request.prompt[:3] == POISON for e in here):
            deaths += 1
            effects = lose(router, now)
        elif here:
            done = tuple(token(e.request.id, finish=FinishReason.STOP) for e in here)
            effects = list(router.handle(Outputs(R0, done), now))
        else:
            effects = list(router.handle(Tick(), now))
        router.check_integrity()
    failed += [e.request_id for e in effects if isinstance(e, Fail)]
    assert router.num_alive == 0
    return sent, failed, deaths


@pytest.mark.parametrize("num", range(1, 9))
@pytest.mark.parametrize("limits", [LIMITS, RouterLimits()], ids=["many", "default"])
def test_of_a_batch_only_the_guilty_one_is_condemned(num: int, limits: RouterLimits) -> None:
    for guilty in range(num):
        sent, failed, deaths = play(guilty, num, limits)
        assert failed == [f"q{guilty}"]
        assert deaths == (2 if num == 1 else 3)
        assert max(sent.values()) <= 3


def test_of_a_crowd_nobody_is_condemned_and_migrations_are_the_bound() -> None:
    sent, failed, deaths = play(4, 20, RouterLimits())
    assert deaths == 4
    assert len(failed) == 20
    assert set(sent.values()) == {4}


def test_a_trial_ends_when_its_request_has_passed_the_place() -> None:
    router = ready_router(LIMITS, R0)
    for name in "ab":
        ask(router, name)
    lose(router, 1.0)
    ((_, first),) = places(lose(router, 2.0))
    assert first == "a~3"
    assert router.num_waiting == 1
    assert places(router.handle(Outputs(R0, (token(first, *range(15)),)), 3.0)) == []
    assert places(router.handle(Outputs(R0, (token(first, 1),)), 3.1)) == [("r0", "b~3")]


def test_a_trial_ends_when_its_client_leaves() -> None:
    router = ready_router(LIMITS, R0)
    for name in "abc":
        ask(router, name)
    lose(router, 1.0)
    lose(router, 2.0)
    router.handle(ClientGone((RequestId("b"),)), 2.5)
    assert places(router.handle(ClientGone((RequestId("a"),)), 3.0)) == [("r0", "c~3")]
    router.check_integrity()


def test_nobody_is_held_for_more_than_ten_seconds() -> None:
    router = ready_router(LIMITS, R0)
    for name in "ab":
        ask(router, name)
    lose(router, 1.0)
    lose(router, 2.0)
    assert places(router.handle(Tick(), 11.9)) == []
    assert places(router.handle(Tick(), 12.0)) == [("r0", "b~3")]


def test_who_dies_on_trial_beside_one_that_was_let_go_is_tried_again() -> None:
    router = ready_router(LIMITS, R0)
    for name in "ab":
        ask(router, name)
    lose(router, 1.0)
    lose(router, 2.0)
    router.handle(Tick(), 12.0)  # b has waited long enough
    effects = lose(router, 13.0)
    assert poisoned(effects) == []
    assert places(effects) == [("r0", "b~4")]
    effects = lose(router, 14.0)
    assert poisoned(effects) == ["b"]
    assert places(effects) == [("r0", "a~4")]


def test_replicas_that_were_told_to_end_die_of_nobody() -> None:
    router = ready_router(LIMITS, R0, R1)
    ask(router, "a")
    for number, (here, there) in enumerate(pairwise([R0, R1] * 4)):
        dismissed = ReplicaLost(here, "it is no member any more", dismissed=True)
        assert places(router.handle(dismissed, float(number))) == [(there, f"a~{number + 2}")]
        router.handle(ReplicaReady(here), number + 0.5)


def test_replicas_that_drain_die_of_nobody() -> None:
    router = ready_router(LIMITS, R0)
    ask(router, "a")
    for number in range(4):
        router.handle(DrainReplica(R0, 100.0), float(number))
        lose(router, number + 0.5)
    assert router.num_alive == 1


def test_a_prompt_that_nobody_tokenised_is_not_suspected() -> None:
    router = ready_router(RouterLimits(), R0)
    ask(router, "a", prompt=())
    effects = [lose(router, float(number)) for number in range(3)]
    assert all(any(isinstance(e, GoOn) for e in each) for each in effects)


def test_it_can_be_switched_off() -> None:
    router = ready_router(RouterLimits(poison_deaths=0), R0)
    ask(router, "a", prompt=POISON)
    assert [len(places(lose(router, float(number)))) for number in range(4)] == [1, 1, 1, 0]
    assert places(router.handle(RequestArrived((request("b", prompt=POISON),)), 9.0))


def test_another_replica_may_run_others_beside_the_one_on_trial() -> None:
    router = ready_router(LIMITS, R0, R2)
    for name in "ab":
        ask(router, name)
    router.handle(ReplicaLost(R2, "x"), 0.5)
    ask(router, "c", now=0.6)
    assert router.num_alive == 3
    router.check_integrity()


def test_two_requests_are_the_same_but_for_their_seeds() -> None:
    plain = request("a", prompt=POISON, sampling=SamplingParams(seed=3))
    assert fingerprint(plain) == fingerprint(
        request("b", prompt=POISON, sampling=SamplingParams(seed=5, choice=1), max_tokens=9)
    )
    others = (
        replace(plain, prompt=(6, 6)),
        replace(plain, tenant="other"),
        replace(plain, chain_root=b"salt"),
        request("a", prompt=POISON, sampling=SamplingParams(top_k=3)),
        replace(plain, constraint=Constraint(ConstraintKind.REGEX, "a+")),
    )
    assert len({fingerprint(plain), *map(fingerprint, others)}) == 6


def test_what_is_remembered_is_bounded_and_the_last_asked_for_stays() -> None:
    quarantine = Quarantine()
    for number in range(MAX_REMEMBERED):
        quarantine.add(request("a", prompt=(number,)), 0.0)
    assert quarantine.left(request("a", prompt=(0,)), 1.0) == 599.0
    quarantine.add(request("a", prompt=POISON), 1.0)
    assert len(quarantine) == MAX_REMEMBERED
    assert quarantine.left(request("a", prompt=(0,)), 1.0) == 599.0
    assert quarantine.left(request("a", prompt=(1,)), 1.0) == 0.0
    assert quarantine.left(request("a", prompt=POISON), 601.0) == 0.0
    assert len(quarantine) == MAX_REMEMBERED - 1
