"""Fleet: the replicas a Router knows, what it has sent there, and what that weighs.

Load is counted at dispatch and released by events. It decides neither where a request goes nor
what becomes of it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from headrace.core.balancer.candidates import Candidates
from headrace.core.balancer.policy import Candidate, ReplicaView
from headrace.core.costs.step_time import StepTimes
from headrace.core.router.availability import Availability
from headrace.core.router.followers import Followers
from headrace.core.router.gossip import NO_LOAD, Load
from headrace.core.router.prefixes import Prefixes
from headrace.core.router.requests import Attempt
from headrace.errors import InvariantBroken
from headrace.types import Role

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.core.balancer.candidates import Takers
    from headrace.core.health import FailureDetector
    from headrace.core.router.events import LoadReported, ReplicaReady
    from headrace.core.router.requests import Tracked
    from headrace.types import KvSource, ReplicaId, Request, RequestId, Seconds, Tokens


@dataclass(slots=True)
class Member:
    """A connected replica. The counts in its view are ours and those of other gateways."""

    view: ReplicaView
    attempts: dict[RequestId, Attempt] = field(default_factory=dict)
    busy_until: Seconds = 0.0  # it said that it is full
    others: Load = NO_LOAD  # what other gateways have there

    @property
    def own(self) -> Load:
        """What we have there."""
        view, others = self.view, self.others
        return Load(
            view.outstanding - others.outstanding,
            view.prefill_tokens - others.prefill_tokens,
            view.decoding - others.decoding,
            view.context_tokens - others.context_tokens,
        )

    @property
    def outstanding(self) -> int:
        """Our requests; with the next three, what the FailureDetector looks at."""
        return len(self.attempts)

    @property
    def decoding(self) -> int:
        """Of those, the ones that were answered."""
        return self.view.decoding - self.others.decoding

    @property
    def progress_at(self) -> Seconds:
        """As in the view."""
        return self.view.progress_at

    @property
    def longest_step(self) -> Seconds:
        """As in the view."""
        return self.view.longest_step

    def hear(self, others: Load, now: Seconds) -> None:
        """Other gateways have so much there now."""
        view = self.view
        if not view.outstanding:
            view.progress_at = now  # it had nothing to do until now
        total = Load(
            view.outstanding, view.prefill_tokens, view.decoding, view.context_tokens
        ).changed(self.others, others)
        view.outstanding, view.prefill_tokens, view.decoding, view.context_tokens = total
        self.others = others


class Fleet:
    """All connected replicas, in the order in which they became ready.

    ``drains`` says for each draining replica when its streams must move on, None once it was
    said to be empty.
    """

    def __init__(
        self, health: FailureDetector, *, max_outstanding: int, discounts: bool = True
    ) -> None:
        self.members: dict[ReplicaId, Member] = {}
        self.prefixes = Prefixes(discounts=discounts)
        self.drains: dict[ReplicaId, Seconds | None] = {}
        self.step_times = StepTimes()
        self.elsewhere: dict[ReplicaId, Load] = {}  # at other gateways
        self.followers = Followers()
        self.has_roles = False  # some replica is not for everything
        self._health = health
        self._num_lives = 0
        self.availability = Availability(
            self.members, self.drains, health, max_outstanding=max_outstanding
        )

    def add(self, event: ReplicaReady, now: Seconds) -> None:
        """Take in a replica that was not there."""
        replica = event.replica
        self._num_lives += 1
        view = ReplicaView(
            replica=replica, progress_at=now, facts=event.facts, life=self._num_lives
        )
        view.costs = self.step_times.pool
        member = self.members[replica] = Member(view)
        member.hear(self.elsewhere.get(replica, NO_LOAD), now)
        self.prefixes.add(event)
        self._health.add(replica, member, now)
        self._note_roles()

    def remove(self, replica: ReplicaId) -> None:
        """Forget a replica that has no attempts left. Its drain ends with it."""
        del self.members[replica]
        self.drains.pop(replica, None)
        self.prefixes.drop(replica)
        self.step_times.drop(replica)
        self._health.remove(replica)
        self._note_roles()

    def candidates(self, tracked: Tracked, takers: Takers) -> Candidates:
        """Return ``takers`` with what they are believed to have of a prompt."""
        claims = tracked.claims = self._claims(tracked)
        if not claims:
            return Candidates(takers, claims)
        discount = self.prefixes.discount
        believed = {
            replica: tokens
            for replica, claim in claims.items()
            if (tokens := int(claim * discount(replica)))
        }
        return Candidates(takers, believed)

    def send(
        self,
        group: Iterable[Tracked],
        candidate: Candidate,
        now: Seconds,
        source: KvSource | None = None,
        promised: Seconds | None = None,
    ) -> list[Request]:
        """Count requests with one prompt in at a replica; return what to send.

        The first computes the prompt's blocks or fetches them from ``source``, the others share
        them. ``promised``: the time to the first token that was predicted.
        """
        requests: list[Request] = []
        for tracked in group:
            if requests:
                shared = self._tokens_of(tracked, candidate.view, len(tracked.keys))
                candidate = Candidate(candidate.view, shared)
            request = self._send(tracked, candidate, now, promised)
            if source is not None:
                request = replace(request, source=source)
                # what it will find there says nothing of the index
                self.members[candidate.view.replica].attempts[request.id].claimed = None
            requests.append(request)
        return requests

    def note_answer(self, attempt: Attempt) -> None:
        """An attempt's first Output: its prompt is computed."""
        view = self.members[attempt.replica].view
        attempt.answered = True
        view.prefill_tokens -= attempt.uncached
        view.decoding += 1
        self._unexpect(attempt)

    def release(self, attempt: Attempt) -> None:
        """Count an attempt out."""
        member = self.members[attempt.replica]
        del member.attempts[attempt.id]
        view = member.view
        view.outstanding -= 1
        view.context_tokens -= attempt.tracked.prompt_tokens + len(attempt.tokens)
        if attempt.answered:
            view.decoding -= 1
        else:
            view.prefill_tokens -= attempt.uncached
            self._unexpect(attempt)

    def note_load(self, event: LoadReported, now: Seconds) -> bool:
        """Take a known replica's report; return whether it shows progress."""
        view = self.members[event.replica].view
        report, last = event.report, view.report
        if last is not None:
            view.costs = self.step_times.observe(event.replica, last, report)
            for replica, member in self.members.items():
                costs = self.step_times.renewed(replica, member.view.costs)
                if costs is not member.view.costs:
                    member.view.costs = costs
                    self._health.watch(replica, now, given=False)
        idle = report.running + report.waiting == 0
        progress = idle or last is None or report.step != last.step
        if progress:
            view.progress_at = now
        view.report = report
        return progress

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless every load is the sum of its attempts."""
        self.prefixes.index.check_integrity()
        for member in self.members.values():
            view, attempts = member.view, list(member.attempts.values())
            counted = member.own
            summed = Load(
                len(attempts),
                sum(attempt.uncached for attempt in attempts if not attempt.answered),
                sum(attempt.answered for attempt in attempts),
                sum(a.tracked.prompt_tokens + len(a.tokens) for a in attempts),
            )
            if counted != summed:
                raise InvariantBroken(f"{view.replica}: counted {counted}, summed {summed}")
        if not self.drains.keys() <= self.members.keys():
            raise InvariantBroken("the drain of a replica that is gone")

    def _send(
        self, tracked: Tracked, candidate: Candidate, now: Seconds, promised: Seconds | None
    ) -> Request:
        view = candidate.view
        member = self.members[view.replica]
        if not member.attempts:
            view.progress_at = now
        unwatched = len(member.attempts) == view.decoding - member.others.decoding
        request = tracked.next_request()
        context = tracked.prompt_tokens + len(tracked.tokens)
        attempt = Attempt(
            id=request.id,
            tracked=tracked,
            replica=view.replica,
            uncached=max(1, context - candidate.cached_tokens),
            expected=self.prefixes.send(view.replica, tracked.keys),
            claimed=_claim(tracked, view.replica),
            tokens=tracked.tokens,
            renames=tracked.id if tracked.num_attempts else None,
            sent_at=now,
            ahead=view.prefill_tokens,
            promised=promised,
        )
        tracked.claims = None
        tracked.attempt = member.attempts[attempt.id] = attempt
        tracked.num_attempts += 1
        view.outstanding += 1
        view.prefill_tokens += attempt.uncached
        view.context_tokens += context
        if unwatched:
            self._health.watch(view.replica, now)
        return request

    def _note_roles(self) -> None:
        roles = (member.view.facts.role for member in self.members.values())
        self.has_roles = any(role is not Role.MIXED for role in roles)

    def _unexpect(self, attempt: Attempt) -> None:
        if attempt.expected:
            self.prefixes.index.unexpect(attempt.replica, attempt.expected)
            attempt.expected = ()

    def _claims(self, tracked: Tracked) -> dict[ReplicaId, Tokens]:
        """Return how much of a prompt the index says is where, if there is any."""
        depths = self.prefixes.match(tracked.keys)
        if not depths:
            return {}
        members = self.members
        return {
            replica: self._tokens_of(tracked, members[replica].view, depth)
            for replica, depth in depths.items()
        }

    def _tokens_of(self, tracked: Tracked, view: ReplicaView, depth: int) -> Tokens:
        """At least one token is always computed: it gives the first one drawn."""
        if not depth:
            return 0
        size = view.facts.block_size
        tokens = depth * size if size else tracked.prompt_tokens * depth // len(tracked.keys)
        return max(0, min(tokens, tracked.prompt_tokens - 1))


def _claim(tracked: Tracked, replica: ReplicaId) -> Tokens | None:
    """What the index says of a prompt that nobody has gone on with, nor shares."""
    if tracked.claims is None or tracked.tokens:
        return None
    return tracked.claims.get(replica, 0)
