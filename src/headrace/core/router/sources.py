"""Sources: which neighbour a request fetches the beginning of its prompt from.

Where another replica holds more of a prompt than the chosen one, what that lacks may come from
there instead of being computed. It does if that is predicted to be quicker: by what blocks took
lately at the chosen replica against its step times. The engine decides again when it comes to it,
and whatever goes wrong on the way is computed: a source is a hint. What a prompt under way will
leave at a replica cannot be fetched yet, and does not count.

A stream that left a living replica (a drain, a hand-over) follows its blocks, of which the index
knows only those of the prompt: that replica has computed all but the last token.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from headrace.core.costs.transfer import fetch_seconds
from headrace.core.health import ReplicaState
from headrace.types import KvSource

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Candidate, Choice, ReplicaView
    from headrace.core.router.fleet import Fleet, Member
    from headrace.core.router.requests import Tracked
    from headrace.types import ReplicaId, Seconds, Tokens

_LENDING = (ReplicaState.READY, ReplicaState.DRAINING)


class Fetch(NamedTuple):
    """What is to be fetched: ``num_tokens`` beyond what the chosen replica has."""

    source: KvSource
    num_tokens: Tokens
    seconds: Seconds
    recompute: Seconds

    def explain(self, choice: Choice) -> Choice:
        """Return the choice with the reason for this."""
        reason = (
            f"{choice.reason}; {self.num_tokens} tokens from {self.source.replica}: "
            f"{self.seconds:.2g} s, to compute them {self.recompute:.2g} s"
        )
        return choice._replace(reason=reason)


class Sources:
    """Of one Router's fleet. Not ``is_on``: nothing is ever fetched."""

    def __init__(self, fleet: Fleet, *, is_on: bool) -> None:
        self._fleet = fleet
        self._is_on = is_on

    def find(self, tracked: Tracked, chosen: Candidate) -> Fetch | None:
        """Return what a chosen replica should fetch for a request, None if nothing."""
        view = chosen.view
        size = view.facts.block_size
        if not (self._is_on and view.facts.lends_at and size and len(self._fleet.members) > 1):
            return None
        if _most(tracked, view) * size - chosen.cached_tokens < size:
            return None
        return self._best(tracked, chosen, self._holders(tracked))

    def _holders(self, tracked: Tracked) -> list[tuple[Member, int]]:
        """Return who lends how many of a request's first blocks."""
        fleet, members, keys = self._fleet, self._fleet.members, tracked.keys
        index = fleet.prefixes.index
        depths = {
            replica: index.num_held(replica, keys[:depth])
            for replica, depth in fleet.prefixes.match(keys).items()
        }
        left = None if tracked.left is None else members.get(tracked.left)
        if left is not None and left.view.facts.block_size:
            depths[left.view.replica] = _most(tracked, left.view)
        return [
            (members[replica], depth) for replica, depth in depths.items() if self._lends(replica)
        ]

    def _best(
        self, tracked: Tracked, candidate: Candidate, holders: Sequence[tuple[Member, int]]
    ) -> Fetch | None:
        """Return what a candidate would fetch, from who has most, the least busy one of several."""
        view, facts = candidate.view, candidate.view.facts
        size = facts.block_size
        limit = _most(tracked, view)
        best = max(
            (
                (min(depth, limit), -lender.view.outstanding, lender)
                for lender, depth in holders
                if lender.view.replica != view.replica and lender.view.facts.block_size == size
            ),
            key=itemgetter(0, 1),
            default=None,
        )
        num_tokens = 0 if best is None else best[0] * size - candidate.cached_tokens
        if best is None or num_tokens < size:
            return None
        seconds = fetch_seconds(num_tokens / size, _block_seconds(view))
        steps = num_tokens / (facts.max_num_batched_tokens or num_tokens)
        recompute = view.costs.seconds(steps=steps, prefill=num_tokens, outputs=0)
        if seconds >= recompute:
            return None
        lender = best[2].view
        source = KvSource(lender.replica, lender.facts.lends_at, best[0])
        return Fetch(source, num_tokens, seconds, recompute)

    def _lends(self, replica: ReplicaId) -> bool:
        member = self._fleet.members.get(replica)
        if member is None or not member.view.facts.lends_at:
            return False
        return self._fleet.availability.state(replica) in _LENDING


def _most(tracked: Tracked, view: ReplicaView) -> int:
    """Return how many blocks may be shared at most: the last token is always computed."""
    return (tracked.prompt_tokens + len(tracked.tokens) - 1) // view.facts.block_size


def _block_seconds(view: ReplicaView) -> Seconds:
    """Return what a block takes to come: as the replica last reported, else its first guess."""
    reported = 0.0 if view.report is None else view.report.tiers.peer_block_seconds
    return reported or view.facts.peer_block_seconds
