"""Back-off: who failed waits before it is tried again where it failed.

Exponential, with full jitter (M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog,
2015): the n-th pause is drawn from 0 to base * 2^(n-1), at most MAX_PAUSE, so that those who failed
together do not come back together. A replica that said for how long it is busy is left alone for
that long first. Where another replica can take the request it goes there at once, and as soon as
one can. No pause is longer than half of the time that the request has left.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.balancer.draws import Draws

if TYPE_CHECKING:
    from headrace.core.router.fleet import Fleet
    from headrace.core.router.held import Held
    from headrace.core.router.limits import RouterLimits
    from headrace.core.router.requests import Tracked
    from headrace.types import ReplicaId, Seconds

MAX_PAUSE = 1.0  # seconds; by then a server that was restarted has often come back
MAX_DOUBLINGS = 16
_UNIT = 1 << 53


class BackOff:
    """Of one Router. With ``limits.retry_pause`` 0 nobody waits."""

    def __init__(self, limits: RouterLimits, fleet: Fleet, held: Held, seed: int) -> None:
        self._limits = limits
        self._fleet = fleet
        self._held = held
        self._draws = Draws(seed)
        self._seen: frozenset[ReplicaId] = frozenset()
        """Replicas that were open when those who are held were last looked at."""

    def pause(self, tracked: Tracked, now: Seconds) -> None:
        """Hold a request that has failed and come back, unless another replica can take it."""
        if not self._limits.retry_pause:
            return
        can_take = self._open(now)
        if not can_take <= set(tracked.tried):
            return
        self._seen &= can_take
        until = min(self._free_at(tracked, now) + self._draw(tracked), self._latest(tracked, now))
        if until > now:
            self._held.hold(tracked, until, now, may_move=True)

    def resume(self, now: Seconds) -> None:
        """Let those go whose pause is over, or for whom another replica can do something now."""
        self._held.resume(now)
        can_take = self._open(now)
        if can_take <= self._seen:
            return
        self._seen = can_take
        for rest in self._held:
            if rest.may_move and not can_take <= set(rest.tracked.tried):
                self._held.let_go(rest.tracked.id)

    def _open(self, now: Seconds) -> frozenset[ReplicaId]:
        members = self._fleet.availability.open(now).members
        return frozenset(member.view.replica for member in members)

    def _free_at(self, tracked: Tracked, now: Seconds) -> Seconds:
        """When the first of the replicas that it was tried at is no longer busy."""
        members = self._fleet.members
        times = [members[name].busy_until for name in tracked.tried if name in members]
        return max(now, min(times, default=now))

    def _draw(self, tracked: Tracked) -> Seconds:
        doublings = min(max(tracked.num_retries - 1, 0), MAX_DOUBLINGS)
        limit = min(MAX_PAUSE, self._limits.retry_pause * (1 << doublings))
        return limit * self._draws.below(_UNIT) / _UNIT

    def _latest(self, tracked: Tracked, now: Seconds) -> Seconds:
        left, deadline = self._limits.max_wait, tracked.request.deadline
        if deadline is not None:
            left = min(left, deadline - now)
        return now + left / 2
