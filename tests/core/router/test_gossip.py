"""What gateways tell each other: sums, what is lost or repeated, who is gone, and its effect."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from hypothesis import given
from hypothesis import strategies as st
from routing import R0, R1, arrived, ready_router, request, token

from headrace.core.router.events import PeersHeard
from headrace.core.router.gossip import Gossip, Load, PoolShare, Saying
from headrace.core.router.lanes import LaneKey
from headrace.core.router.machine import Router, RouterLimits
from headrace.core.router.seats import Seats
from headrace.types import FinishReason, ReplicaId

if TYPE_CHECKING:
    from collections.abc import Mapping

from headrace.core.balancer.predicted_ttft import PredictedTtft
from headrace.core.router.events import Dispatch, Outputs, ReplicaReady, RequestArrived

KEY = LaneKey(1, "a")


def saying(
    life: str,
    number: int,
    loads: Mapping[ReplicaId, Load] | None = None,
    *,
    service: Mapping[LaneKey, float] | None = None,
    held: Mapping[str, int] | None = None,
) -> Saying:
    share = PoolShare(loads or {}, service or {})
    return Saying(life=life, number=number, pools={"": share}, held=held or {})


def test_levels_of_several_gateways_add_up():
    gossip = Gossip("me")
    gossip.hear(saying("a", 1, {R0: Load(2, 100, 1, 200)}, held={"key/k": 3}), 0.0)
    news = gossip.hear(saying("b", 7, {R0: Load(1, 10, 0, 10), R1: Load(1)}, held={"key/k": 1}), 0)
    assert news[""].loads == {R0: Load(3, 110, 1, 210), R1: Load(1)}
    assert gossip.held("key/k") == 4
    assert gossip.held("key/other") == 0


def test_what_did_not_change_is_no_news_and_old_sayings_are_ignored():
    gossip = Gossip("me")
    gossip.hear(saying("a", 2, {R0: Load(2)}), 0.0)
    assert gossip.hear(saying("a", 3, {R0: Load(2)}), 0.1) == {}
    assert gossip.hear(saying("a", 1, {R0: Load(9)}), 0.2) == {}
    assert gossip.hear(saying("me", 9, {R0: Load(9)}), 0.2) == {}
    assert gossip.loads("") == {R0: Load(2)}


def test_a_silent_gateway_is_forgotten_and_its_successor_counts_beside_it_until_then():
    gossip = Gossip("me", forget_after=1.0)
    gossip.hear(saying("g1.old", 1, {R0: Load(5)}, held={"n": 5}), 0.0)
    news = gossip.hear(saying("g1.new", 1, {R0: Load(1)}, held={"n": 1}), 0.9)
    assert news[""].loads == {R0: Load(6)}
    assert gossip.expire(1.0) == {}
    assert gossip.expire(1.01)[""].loads == {R0: Load(1)}
    assert gossip.held("n") == 1
    assert gossip.lives == ("g1.new",)


def test_service_is_handed_on_once_by_its_growth():
    gossip = Gossip("me")
    heard = [
        gossip.hear(saying("a", number, service={KEY: amount}), 0.0).get("")
        for number, amount in ((1, 10.0), (3, 25.0), (2, 20.0), (4, 25.0))
    ]
    assert [None if each is None else each.service for each in heard] == [
        {KEY: 10.0},
        {KEY: 15.0},
        None,
        None,
    ]


def test_of_a_gateway_that_has_run_for_long_only_growth_counts():
    gossip = Gossip("me")
    assert gossip.hear(saying("a", 500, service={KEY: 1e6}), 0.0) == {}
    assert gossip.hear(saying("a", 501, service={KEY: 1e6 + 5}), 0.0)[""].service == {KEY: 5.0}


LOADS = st.dictionaries(
    st.sampled_from([R0, R1]), st.builds(Load, *[st.integers(0, 9)] * 4), max_size=2
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.integers(1, 5),
        LOADS,
        st.dictionaries(st.sampled_from(["k", "l"]), st.integers(0, 4)),
        st.floats(0, 0.7),
    ),
    max_size=40,
)


@given(STEPS)
def test_sums_are_those_of_the_newest_sayings_of_all_that_live(
    steps: list[tuple[str, int, dict[ReplicaId, Load], dict[str, int], float]],
):
    gossip, now = Gossip("me", forget_after=1.0), 0.0
    newest: dict[str, tuple[float, Saying]] = {}
    told: dict[ReplicaId, Load] = {}
    for life, number, loads, held, pause in steps:
        now += pause
        said = saying(life, number, loads, held=held)
        newest = {name: each for name, each in newest.items() if now - each[0] <= 1.0}
        for news in (gossip.expire(now), gossip.hear(said, now)):
            if "" in news:
                told.update(news[""].loads)
        if life not in newest or newest[life][1].number < number:
            newest[life] = (now, said)
        gossip.check_integrity()
        for replica in (R0, R1):
            parts = [each.pools[""].loads.get(replica, Load()) for _, each in newest.values()]
            expected = Load(*(sum(column) for column in zip(Load(), *parts, strict=True)))
            assert gossip.loads("").get(replica, Load()) == expected
            assert told.get(replica, Load()) == expected
        for name in ("k", "l"):
            assert gossip.held(name) == sum(s.held.get(name, 0) for _, s in newest.values())


def load_of(router: Router, replica: ReplicaId) -> int:
    return next(view.outstanding for view in router.replicas if view.replica == replica)


def test_a_router_counts_what_others_have_and_says_only_its_own():
    router = ready_router(None, R0, R1)
    router.handle(PeersHeard({R0: Load(3, 60, 1, 90)}, {}), 1.0)
    router.handle(arrived("q0"), 1.0)  # least requests: not where the others are
    assert [load_of(router, r) for r in (R0, R1)] == [3, 1]
    assert router.share().loads == {R1: Load(1, 2, 0, 2)}
    assert [each.outstanding for each in router.figures(1.0).replicas] == [0, 1]
    router.check_integrity()
    router.handle(Outputs(R1, (token("q0", finish=FinishReason.STOP),)), 2.0)
    router.handle(PeersHeard({R0: Load()}, {}), 2.0)
    assert [load_of(router, r) for r in (R0, R1)] == [0, 0]
    assert router.share().loads == {}
    router.check_integrity()


def test_load_heard_of_before_a_replica_is_connected_counts_when_it_is():
    router = ready_router(None, R0)
    router.handle(PeersHeard({R1: Load(4)}, {}), 0.5)
    router.handle(ReplicaReady(R1), 1.0)
    assert load_of(router, R1) == 4


def test_others_fill_a_replica_and_requests_wait_until_they_have_ended():
    router = ready_router(RouterLimits(max_outstanding=2), R0)
    router.handle(PeersHeard({R0: Load(2)}, {}), 0.0)
    assert not any(isinstance(e, Dispatch) for e in router.handle(arrived("q0"), 0.1))
    effects = router.handle(PeersHeard({R0: Load(1)}, {}), 0.2)
    assert [e.replica for e in effects if isinstance(e, Dispatch)] == [R0]


def test_others_work_makes_no_replica_look_stuck():
    router = ready_router(RouterLimits(stuck_after=1.0), R0)
    router.handle(PeersHeard({R0: Load(2)}, {}), 0.0)
    wakeup = router.next_wakeup()
    assert wakeup is None or wakeup > 100


def test_a_tenant_that_is_served_elsewhere_waits_longer_here():
    def order(service: Mapping[LaneKey, float]) -> list[str]:
        router = ready_router(RouterLimits(max_outstanding=1), R0)
        router.handle(arrived("first"), 0.0)
        for index in range(3):
            for tenant in ("a", "b"):
                each = replace(request(f"{tenant}{index}"), tenant=tenant)
                router.handle(RequestArrived((each,)), 0.1)
        router.handle(PeersHeard({}, service), 0.2)
        names: list[str] = []
        running = "first"
        for _ in range(6):
            done = Outputs(R0, (token(running, finish=FinishReason.STOP),))
            effects = router.handle(done, 1.0)
            (running,) = [str(e.request.id) for e in effects if isinstance(e, Dispatch)]
            names.append(running[0])
        return names

    assert "".join(order({})) == "ababab"
    assert "".join(order({KEY: 250.0})) == "bbabaa"  # nearly two requests of 2 + 128 tokens
    assert "".join(order({LaneKey(0, "a"): 260.0})) == "ababab"  # another class


def test_seats_count_those_of_others():
    elsewhere = {"k": 2}
    seats = Seats(lambda name: elsewhere.get(name, 0))
    assert seats.take("k", 3)
    assert not seats.take("k", 3)
    elsewhere["k"] = 1
    assert seats.take("k", 3)
    assert seats.taken == {"k": 2}
    seats.leave("k")
    seats.leave("k")
    assert seats.taken == {}


def test_gateways_break_ties_alike_without_a_word():
    """Rendezvous hashing on the first block: equal prefixes meet, other ones spread."""
    routers = [
        ready_router(None, *(ReplicaId(f"r{index}") for index in range(4)), policy=PredictedTtft())
        for _ in range(4)
    ]
    chosen: list[str] = []
    for prefix in range(32):
        places = set()
        for index, router in enumerate(routers):
            name = f"q{prefix}-{index}"
            chain = (prefix.to_bytes(32, "little"),)
            effects = router.handle(RequestArrived((request(name, chain=chain),)), float(prefix))
            (place,) = [e.replica for e in effects if isinstance(e, Dispatch)]
            places.add(place)
            router.handle(Outputs(place, (token(name, finish=FinishReason.STOP),)), float(prefix))
        assert len(places) == 1
        chosen += places
    assert {chosen.count(f"r{index}") for index in range(4)} <= set(range(3, 16))
