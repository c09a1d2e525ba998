"""Roles: prompts go to replicas for prompts, further tokens to replicas for those.

A stream is handed over behind its first token, and takes its blocks along. A prompt of which a
replica for decodes has nearly all stays there: so do the next turns of a conversation. Where a role
has no living replica, any other does its work. What was tried at one is tried at another of its
role, if there is one, and else again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.core.balancer.candidates import as_candidates
from headrace.types import Role

if TYPE_CHECKING:
    from headrace.core.balancer.candidates import Candidates
    from headrace.core.router.fleet import Fleet, Member
    from headrace.core.router.limits import RouterLimits
    from headrace.core.router.requests import Tracked
    from headrace.types import Seconds


def fitting(
    tracked: Tracked, candidates: Candidates, fleet: Fleet, limits: RouterLimits
) -> Candidates:
    """Return the candidates whose role fits; none if the request had better wait for one.

    ``limits.local_prefill`` tokens at most are computed where they are decoded. Replicas that were
    tried are left out, unless no other fits.
    """
    fit = _of_role(tracked, candidates, fleet, limits) if fleet.has_roles else candidates
    if not tracked.tried:
        return fit
    untried = [each for each in fit if each.view.replica not in tracked.tried]
    return as_candidates(untried) if untried else fit


def _of_role(
    tracked: Tracked, candidates: Candidates, fleet: Fleet, limits: RouterLimits
) -> Candidates:
    length, local_prefill = tracked.prompt_tokens, limits.local_prefill
    if not tracked.tokens and local_prefill:
        local = [
            candidate
            for candidate in candidates
            if candidate.view.facts.role is Role.DECODE
            and length - candidate.cached_tokens <= local_prefill
        ]
        if local:
            return as_candidates(local)
    wanted = Role.DECODE if tracked.tokens else Role.PREFILL
    fit = [each for each in candidates if each.view.facts.role in (wanted, Role.MIXED)]
    if not fit and (tracked.tokens or not _lives(wanted, fleet)):
        return candidates
    return as_candidates(fit)


def takes_over(member: Member, fleet: Fleet, now: Seconds) -> bool:
    """Whether what a replica has answered had better go on elsewhere, and can."""
    if member.view.facts.role is not Role.PREFILL:
        return False
    others = fleet.availability.open(now).takers.order
    return any(view.facts.role is Role.DECODE for view in others)


def _lives(role: Role, fleet: Fleet) -> bool:
    return any(member.view.facts.role is role for member in fleet.availability.taking())
