"""Rebalance: when a replica joins, requests that wait at the others are placed anew.

A request that was sent to a replica stays there, and after a burst a newcomer would stand idle
beside long queues. So of each replica's requests without a first token the newest come back, until
what is left is an even share of all such work. The oldest STEPS_KEPT steps' worth always stay: they
have begun, or are about to. Only replicas that say how much a step computes are looked at. Each
gateway evens out its own requests, and so all of them are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from headrace.core.router.fleet import Fleet, Member
    from headrace.core.router.requests import Attempt
    from headrace.types import ReplicaId, Tokens

STEPS_KEPT = 2
"""One that runs, and the next: by its end more would have come."""


def surplus(fleet: Fleet, joined: ReplicaId) -> list[Attempt]:
    """Return the attempts to take back because ``joined`` is there now, in order of dispatch."""
    members = fleet.availability.taking()
    share = sum(member.own.prefill_tokens for member in members) // max(1, len(members))
    others = (member for member in members if member.view.replica != joined)
    found = [attempt for member in others for attempt in _newest_above(member, share)]
    return found[::-1]


def _newest_above(member: Member, share: Tokens) -> Iterator[Attempt]:
    view = member.view
    budget = view.facts.max_num_batched_tokens
    if not budget:
        return
    excess = member.own.prefill_tokens - max(share, STEPS_KEPT * budget)
    for attempt in reversed(member.attempts.values()):
        if excess <= 0:
            return
        if not attempt.answered:
            excess -= attempt.uncached
            yield attempt
