"""The order of the router's queue: classes, tenants in turn, who yields when it is full."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from routing import R0, places, ready_router, request, token

from headrace.core.router.events import Fail, Outputs, RequestArrived
from headrace.core.router.lanes import AGED_TURN, MAX_IDLE, Group, Lanes
from headrace.core.router.machine import Router, RouterLimits
from headrace.core.router.requests import Tracked
from headrace.types import FinishReason, PriorityClass, RequestId

if TYPE_CHECKING:
    from collections.abc import Iterator

INTERACTIVE, STANDARD, BATCH = PriorityClass


def group(name: str, *, since: float = 0.0, tokens: int = 100, **fields: object) -> Group:
    made = replace(request(name), **fields)  # type: ignore[arg-type]
    return Group({made.id: Tracked(made, made.id, tokens)}, since)


def lanes_of(*groups: Group, is_fair: bool = True) -> Lanes:
    lanes = Lanes(is_fair=is_fair)
    for each in groups:
        lanes.append(each)
        lanes.check_integrity()
    return lanes


def taken(lanes: Lanes) -> Iterator[Group]:
    while (head := lanes.head()) is not None:
        popped = lanes.pop()
        assert popped is head, "the head is not the head"
        lanes.check_integrity()
        yield popped


def names(lanes: Lanes) -> list[str]:
    return [str(each.first.id) for each in taken(lanes)]


def test_the_most_urgent_class_is_next_and_inside_it_who_came_first() -> None:
    classes = (BATCH, STANDARD, INTERACTIVE, BATCH, INTERACTIVE)
    groups = [group(f"q{i}", since=i, priority=each) for i, each in enumerate(classes)]
    assert names(lanes_of(*groups)) == ["q2", "q4", "q1", "q0", "q3"]
    assert names(lanes_of(*groups, is_fair=False)) == ["q0", "q1", "q2", "q3", "q4"]


def test_a_tenant_with_few_requests_does_not_wait_behind_one_with_many() -> None:
    crowd = [group(f"c{i}", since=i, tenant="crowd") for i in range(4)]
    lanes = lanes_of(*crowd, group("mine", since=9.0, tenant="me"))
    assert names(lanes) == ["c0", "mine", "c1", "c2", "c3"]


def test_who_has_waited_longest_gets_one_place_in_so_many() -> None:
    urgent = [group(f"u{i}", since=10.0 + i, priority=INTERACTIVE) for i in range(40)]
    lanes = lanes_of(group("old", priority=BATCH), *urgent)
    assert names(lanes).index("old") == AGED_TURN - 1


def test_a_pause_saves_nothing_up() -> None:
    lanes = lanes_of(*(group(f"a{i}", since=i, tenant="a") for i in range(9)))
    for _ in range(5):
        lanes.pop()
    for i in range(4):
        lanes.append(group(f"b{i}", since=10.0 + i, tenant="b"))
    order = names(lanes)
    assert order[:4] in (["a5", "b0", "a6", "b1"], ["b0", "a5", "b1", "a6"])


works = st.lists(st.integers(1, 3000), min_size=5, max_size=30)


@given(
    st.dictionaries(st.sampled_from("abcd"), st.tuples(works, st.sampled_from([0.5, 1.0, 3.0]))),
)
@settings(max_examples=60)
def test_while_two_tenants_wait_their_service_differs_by_a_request_of_each_at_most(
    tenants: dict[str, tuple[list[int], float]],
) -> None:
    """The bound of start-time fair queueing, but for the places that go to the oldest."""
    groups = [
        group(f"{name}{i}", tokens=tokens, tenant=name, weight=weight)
        for name, (all_tokens, weight) in tenants.items()
        for i, tokens in enumerate(all_tokens)
    ]
    lanes = lanes_of(*groups)
    served: Counter[str] = Counter()
    left = Counter(each.first.request.tenant for each in groups)
    for index, each in enumerate(taken(lanes), 1):
        name = each.first.request.tenant
        served[name] += int(each.work)
        left[name] -= 1
        waiting = [tenant for tenant in left if left[tenant]]
        most = max(each.work for each in groups)
        slack = 1 + index // AGED_TURN
        for one in waiting:
            for other in waiting:
                gap = served[one] / tenants[one][1] - served[other] / tenants[other][1]
                bound = most / tenants[one][1] + most / tenants[other][1]
                assert gap <= bound * slack
    assert not +left, "work-conserving: everybody is served"


@pytest.mark.interpreted
def test_tenants_that_come_once_are_not_remembered_for_ever() -> None:
    lanes = lanes_of(group("stays", since=1e9, tenant="stays"))
    for i in range(2 * MAX_IDLE):
        lanes.append(group(f"q{i}", since=float(i), tenant=f"t{i}"))
        lanes.pop()
    assert len(vars(lanes)["_lanes"]) <= MAX_IDLE + 2
    names(lanes)
    assert not vars(lanes)["_lanes"]


def test_members_leave_and_the_last_one_takes_its_group_along() -> None:
    both = Group({}, 0.0)
    for name in ("a", "b"):
        made = request(name)
        both.members[made.id] = Tracked(made, RequestId("a"), 10)
    lanes = lanes_of(both)
    for tracked in list(both.members.values()):
        assert lanes.head() is both
        lanes.remove(tracked)
        lanes.check_integrity()
    assert lanes.head() is None


def full(*waiting: tuple[str, PriorityClass, str], max_waiting: int = 3) -> Router:
    """Return a router whose only replica is full, with requests in its queue."""
    router = ready_router(RouterLimits(max_outstanding=1, max_waiting=max_waiting))
    come(router, "first", INTERACTIVE, "x")
    come(router, "second", INTERACTIVE, "x")  # the place that is for urgent ones
    for name, priority, tenant in waiting:
        assert come(router, name, priority, tenant) == []
    assert router.num_waiting == len(waiting)
    return router


def come(router: Router, name: str, priority: PriorityClass, tenant: str) -> list[str]:
    """Let a request arrive; return who is refused."""
    made = replace(request(name), priority=priority, tenant=tenant)
    effects = router.handle(RequestArrived((made,)), 1.0)
    router.check_integrity()
    return [str(each.request_id) for each in effects if isinstance(each, Fail)]


def test_a_full_queue_sends_away_who_is_less_urgent_the_newest_first() -> None:
    router = full(("b0", BATCH, "t"), ("b1", BATCH, "t"), ("s0", STANDARD, "t"))
    assert come(router, "i0", INTERACTIVE, "t") == ["b1"]
    assert come(router, "s1", STANDARD, "t") == ["b0"]
    assert come(router, "b2", BATCH, "t") == ["b2"]
    assert come(router, "i1", INTERACTIVE, "t") == ["s1"]


def test_a_full_queue_sends_away_who_has_most_of_it_until_shares_are_equal() -> None:
    router = full(*((f"c{i}", STANDARD, "crowd") for i in range(4)), max_waiting=4)
    assert come(router, "m0", STANDARD, "me") == ["c3"]
    assert come(router, "m1", STANDARD, "me") == ["c2"]
    assert come(router, "m2", STANDARD, "me") == ["m2"], "no more than an equal share"
    assert come(router, "c4", STANDARD, "crowd") == ["c4"]


def test_without_fairness_who_comes_last_is_refused() -> None:
    limits = RouterLimits(max_outstanding=1, max_waiting=1, fair_queue=False)
    router = ready_router(limits)
    assert come(router, "a", BATCH, "t") == []
    assert come(router, "b", BATCH, "t") == []
    assert come(router, "c", INTERACTIVE, "me") == ["c"]


@pytest.mark.parametrize(("priority", "is_placed"), [(INTERACTIVE, True), (STANDARD, False)])
def test_a_replica_keeps_places_for_urgent_requests(
    priority: PriorityClass, is_placed: bool
) -> None:
    router = ready_router(RouterLimits(max_outstanding=8))
    for index in range(8):
        come(router, f"b{index}", BATCH, "t")
    made = replace(request("a"), priority=priority)
    assert bool(places(router.handle(RequestArrived((made,)), 1.0))) is is_placed


def test_places_that_become_free_go_to_the_most_urgent() -> None:
    router = full(("b", BATCH, "t"), ("s", STANDARD, "t"), ("i", INTERACTIVE, "t"))
    order = []
    for name in ("first", "second", "i", "s"):
        effects = router.handle(Outputs(R0, (token(name, finish=FinishReason.LENGTH),)), 2.0)
        order += [attempt for _, attempt in places(effects)]
    assert order == ["i", "s", "b"]
