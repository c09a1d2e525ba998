"""Hedging: a request that waits at a replica, not begun, much longer than was predicted, is moved.

Dean and Barroso ("The Tail at Scale", CACM 56(2), 2013) send a request to two replicas and let the
first to begin cancel the other: tied requests. Here no copy runs. The attempt is cancelled where it
waits and fenced by its id, and the request goes to another replica, once in its life. rebalance.py
evens out queues when a replica joins; this is for replicas that have become slow (a gray failure)
or were predicted wrongly.

An engine does not say which requests it has begun. Those have not that came after its last step,
and of the others without a first token the newest, as many as it said that wait there. Where that
is wrong (engines have an order of their own), a step's work is lost and nothing else. Whoever is
late by some time is expected to be late by as much again, whatever the model says. Moves are paid
from the budget of retries, of which they leave some.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from headrace.core.balancer.candidates import takers_of
from headrace.core.balancer.predicted_ttft import seconds_to_first_token
from headrace.core.router.roles import fitting

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.core.balancer.policy import ReplicaView
    from headrace.core.costs.step_time import StepCosts
    from headrace.core.router.events import RouterEffect
    from headrace.core.router.fleet import Fleet, Member
    from headrace.core.router.limits import RouterLimits
    from headrace.core.router.requests import Attempt
    from headrace.core.router.streams import Streams
    from headrace.types import ReplicaId, Seconds, Tokens

MIN_LATE: Seconds = 0.1
"""Nobody is late by less: reports and heartbeats, which make us look, are no finer."""

CLEARLY = 2.0
"""Elsewhere it must come in less than half of the time that it is still expected to take here."""

MAX_PRICED = 16  # requests at one look, so that a look stays cheap where all are late
LEFT_ALONE: Seconds = 5.0
"""Nothing new goes for so long to a replica that some have left because its step takes too long:
what was moved away is missing from its load, and would draw others to the same place. In the twin
the mean TTFT of 24 runs with a gray replica is 152 ms with it, 156 ms where it begins with as long
as the step took so far and doubles, 178 ms without hedging."""


class Hedges(Protocol):
    """What Oversight asks of hedging."""

    def look(self, member: Member, now: Seconds, effects: list[RouterEffect]) -> None:
        """A replica has spoken of itself: move what waits there in vain."""
        ...


class NoHedging:
    """Implements Hedges: whoever waits, waits."""

    def look(self, member: Member, now: Seconds, effects: list[RouterEffect]) -> None:
        """See Hedges."""


class Hedging:
    """Implements Hedges."""

    def __init__(self, limits: RouterLimits, fleet: Fleet, streams: Streams) -> None:
        self._after = limits.hedge_after
        self._limits = limits
        self._fleet = fleet
        self._streams = streams

    def look(self, member: Member, now: Seconds, effects: list[RouterEffect]) -> None:
        """See Hedges. The newest first: most work is before them."""
        if member.view.report is None or self._streams.queue:
            return
        moved: Tokens = 0
        for attempt, here in list(islice(self._late(member, now), MAX_PRICED)):
            there = self._best_elsewhere(attempt, moved, now)
            if there is None or there[1] * CLEARLY >= here:
                continue
            reason = f"about {here:.2g} s left here, {there[1]:.2g} s at {there[0]}"
            done = self._streams.recall(attempt, reason, now, hedged=True)
            if not done:
                break
            effects.extend(done)
            moved += attempt.uncached
        if moved:
            _leave_alone(member, now)

    def _late(self, member: Member, now: Seconds) -> Iterator[tuple[Attempt, Seconds]]:
        """Yield who waits too long, and for how long it still will."""
        for attempt, ahead in _queued(member):
            here = self._left_here(attempt, member.view, ahead, now)
            if here and not attempt.tracked.hedged:
                yield attempt, here

    def _left_here(
        self, attempt: Attempt, view: ReplicaView, ahead: Tokens, now: Seconds
    ) -> Seconds:
        """Return how long it is still expected to wait, 0 if it is not late."""
        promised = attempt.promised
        if promised is None:
            promised = _seconds(attempt, view, attempt.ahead, self._fleet.step_times.pool)
        late = now - attempt.sent_at - promised
        if late <= max((self._after - 1) * promised, MIN_LATE):
            return 0.0
        return max(late, _seconds(attempt, view, ahead))

    def _best_elsewhere(
        self, attempt: Attempt, moved: Tokens, now: Seconds
    ) -> tuple[ReplicaId, Seconds] | None:
        """Where it would begin first, and when, behind ``moved`` tokens that go there too."""
        tracked, fleet = attempt.tracked, self._fleet
        known = (*tracked.tried, attempt.replica)
        takers = fleet.availability.open(now).takers
        others = [view for view in takers.order if view.replica not in known]
        if not others:
            return None
        found_there = fleet.candidates(tracked, takers_of(others))
        candidates = fitting(tracked, found_there, fleet, self._limits)
        length = tracked.prompt_tokens
        found = [
            (view.replica, seconds_to_first_token(view, length - cached + moved, length))
            for view, cached in candidates
        ]
        return min(found, key=lambda item: item[1], default=None)


def build_hedging(limits: RouterLimits, fleet: Fleet, streams: Streams) -> Hedges:
    """Return what the limits ask for."""
    return Hedging(limits, fleet, streams) if limits.hedge_after else NoHedging()


def _leave_alone(member: Member, now: Seconds) -> None:
    if now - member.view.progress_at > member.view.longest_step:
        member.busy_until = max(member.busy_until, now + LEFT_ALONE)


def _seconds(
    attempt: Attempt, view: ReplicaView, ahead: Tokens, costs: StepCosts | None = None
) -> Seconds:
    """Return the time to its first token there, behind so many prompt tokens, if it has room."""
    before = replace(view, prefill_tokens=ahead, outstanding=0)
    return seconds_to_first_token(before, attempt.uncached, attempt.tracked.prompt_tokens, costs)


def _queued(member: Member) -> Iterator[tuple[Attempt, Tokens]]:
    """Yield what has not begun there, the newest first, with the prompt tokens before each."""
    view, report = member.view, member.view.report
    said = 0 if report is None else report.waiting
    left = said * member.outstanding // max(1, view.outstanding)  # our share
    ahead = view.prefill_tokens
    for attempt in reversed(member.attempts.values()):
        came_later = attempt.sent_at > view.progress_at
        if not came_later and left <= 0:
            return
        if attempt.answered:
            continue
        left -= not came_later
        ahead -= attempt.uncached
        yield attempt, ahead
