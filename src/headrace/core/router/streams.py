"""Streams: the life of accepted requests from their first attempt to their one end.

A request ends exactly once: by an Output with ``finish``, by Fail, or because nobody wants it. An
attempt that is given up is unknown from then on, so that whatever its replica still says of it
reaches nobody (fencing); its request goes on behind the last token that was delivered.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from headrace.core.router.backoff import BackOff
from headrace.core.router.events import CancelAt, Deliver, Fail, GoOn
from headrace.core.router.held import Held
from headrace.core.router.pace import whole_seconds
from headrace.core.router.retries import RETRIES_TO_BEGIN_WITH, RetryBudget
from headrace.core.router.waiting import Deadlines, WaitingQueue
from headrace.errors import DeadlineExceeded, InvariantBroken, ReplicaLost
from headrace.types import FinishReason, Output

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.core.router.admission import Refusal
    from headrace.core.router.events import AttemptFailed, Outputs, RouterEffect
    from headrace.core.router.fleet import Fleet, Member
    from headrace.core.router.lanes import Group
    from headrace.core.router.limits import RouterLimits
    from headrace.core.router.pace import Pace
    from headrace.core.router.requests import Attempt, Tracked
    from headrace.types import ReplicaId, RequestId, Seconds


_WITHOUT_TRUTH = (FinishReason.ERROR, FinishReason.DEADLINE, FinishReason.ABORT)
"""Ends that may come before a replica has looked into its cache."""


def deadline_failure(request_id: RequestId) -> Fail:
    """Return the end of a request that has no time left."""
    return Fail(request_id, DeadlineExceeded.code, "the request's time is over")


class Streams:
    """All accepted requests that have not ended."""

    def __init__(self, limits: RouterLimits, fleet: Fleet, pace: Pace, seed: int) -> None:
        self.alive: dict[RequestId, Tracked] = {}
        self.queue = WaitingQueue(
            max_requests=limits.max_waiting,
            max_wait=limits.max_wait,
            is_fair=limits.fair_queue,
        )
        self.deadlines = Deadlines()
        self.held = Held(self.queue)
        self.back_off = BackOff(limits, fleet, self.held, seed)
        self._limits = limits
        self._fleet = fleet
        self._pace = pace
        self._budget = RetryBudget(limits.retry_share)

    def admit(self, members: dict[RequestId, Tracked], now: Seconds) -> None:
        """Accept a group: it waits for its place."""
        self.alive.update(members)
        self.queue.append(members, now)
        self._budget.earn(len(members))
        for tracked in members.values():
            self._pace.note_prompt(tracked.prompt_tokens)
            if tracked.request.deadline is not None:
                self.deadlines.add(tracked.request.deadline, tracked.id)

    def next_at(self) -> Seconds | None:
        """Return when a deadline passes or somebody has waited too long, or earlier."""
        first = self.deadlines.next_at()
        due = self.queue.due_at()
        if first is None or due is None:
            return due if first is None else first
        return min(first, due)

    def deliver(
        self, event: Outputs, member: Member, now: Seconds, effects: list[RouterEffect]
    ) -> int:
        """Pass on the tokens of attempts that are still wanted; return how many ended well."""
        attempts = member.attempts
        wanted, num_tokens, num_ended = [], 0, 0
        for output in event.outputs:
            attempt = attempts.get(output.request_id)
            if attempt is None:
                continue  # cancelled meanwhile, or given up
            tokens = output.tokens
            attempt.tokens.extend(tokens)
            num_tokens += len(tokens)
            if output.finish is not None or not attempt.answered:
                self._turn(attempt, output, now)
                num_ended += output.finish not in (None, FinishReason.ERROR)
            client = attempt.renames
            wanted.append(Output._make((client, *output[1:])) if client else output)
        member.view.context_tokens += num_tokens
        if wanted:
            effects.append(Deliver(tuple(wanted)))
        return num_ended

    def forget(self, ids: Iterable[RequestId], now: Seconds, effects: list[RouterEffect]) -> None:
        """Drop requests that nobody wants; their replicas are told."""
        for request_id in ids:
            tracked = self.alive.get(request_id)
            if tracked is None:
                continue
            if (attempt := tracked.attempt) is not None:
                effects.append(CancelAt(attempt.replica, attempt.id))
            self._end(tracked, now)

    def fail(self, tracked: Tracked, failure: Fail, now: Seconds) -> Fail:
        """End a request that no replica works on, or whose replica was told; return ``failure``."""
        self._end(tracked, now)
        return failure

    def end_groups(
        self, groups: Iterable[Group], refusal: Refusal, now: Seconds
    ) -> list[RouterEffect]:
        """End groups that wait."""
        return [
            self.fail(tracked, Fail(tracked.id, *refusal), now)
            for group in groups
            for tracked in list(group.members.values())
        ]

    def lose(
        self, attempt: Attempt, reason: str, now: Seconds, *, cancel: bool
    ) -> list[RouterEffect]:
        """Give up an attempt because its replica is gone, or (``cancel``) may be."""
        tracked = attempt.tracked
        tracked.num_losses += 1
        may_go_on = tracked.num_losses <= self._limits.max_migrations
        return self._give_up(attempt, reason, now, cancel=cancel, may_go_on=may_go_on)

    def move(self, attempt: Attempt, reason: str, now: Seconds) -> list[RouterEffect]:
        """Give up an attempt at a replica that lives, and is to be empty."""
        may_go_on = self._limits.max_migrations > 0
        effects = self._give_up(attempt, reason, now, cancel=True, may_go_on=may_go_on)
        self._follow(attempt)
        return effects

    def hand_over(self, attempt: Attempt, now: Seconds) -> list[RouterEffect]:
        """Let a stream go on where further tokens are made, behind its first ones."""
        reason = "its prompt is computed"
        effects = self._give_up(attempt, reason, now, cancel=True, may_go_on=True)
        self._follow(attempt)
        return [replace(e, planned=True) if isinstance(e, GoOn) else e for e in effects]

    def _follow(self, attempt: Attempt) -> None:
        """A stream that left a replica which lends may fetch its blocks from there."""
        tracked, facts = attempt.tracked, self._fleet.members[attempt.replica].view.facts
        waits = tracked.attempt is None and tracked.id in self.alive
        if self._limits.kv_transfer and facts.lends_at and attempt.answered and waits:
            self._fleet.followers.follow(tracked, attempt.replica)

    def recall(
        self, attempt: Attempt, reason: str, now: Seconds, *, hedged: bool = False
    ) -> list[RouterEffect]:
        """Take an attempt back that has not been answered; the same replica may get it again.

        ``hedged``: because it waits in vain. Another replica gets it, the budget pays for it, and
        nothing is done if that has no more for it.
        """
        tracked = attempt.tracked
        if hedged and not self._budget.spend(leave=RETRIES_TO_BEGIN_WITH):
            return []
        tried = tracked.tried
        effects = self._give_up(attempt, reason, now, cancel=True, may_go_on=True)
        if not hedged:
            tracked.tried = tried
            return effects
        tracked.hedged = True
        return [replace(e, hedged=True) if isinstance(e, GoOn) else e for e in effects]

    def retry(self, attempt: Attempt, event: AttemptFailed, now: Seconds) -> list[RouterEffect]:
        """Try again elsewhere what its replica could not do, or fail with what it said.

        What was answered is bounded by its losses, as if its replica had died; the rest is paid
        from the budget.
        """
        tracked, limits = attempt.tracked, self._limits
        tracked.num_retries += 1
        tracked.num_losses += tracked.answered
        may_go_on = (
            event.retryable
            and tracked.num_retries <= limits.max_retries
            and (not tracked.answered or tracked.num_losses <= limits.max_migrations)
            and (event.retry_after is None or self._has_another(tracked, event.replica, now))
            and (tracked.answered or self._budget.spend())
        )
        if may_go_on:
            effects = self._give_up(attempt, event.reason, now, cancel=False, may_go_on=True)
            if tracked.attempt is None:
                self.back_off.pause(tracked, now)
            return effects
        wait = event.retry_after if event.busy_for is None else event.busy_for
        retry_after = None if wait is None else whole_seconds(wait, limits.max_busy)
        failure = Fail(tracked.id, event.code, event.reason, retry_after)
        return [self.fail(tracked, failure, now)]

    def check_integrity(self) -> None:
        """Raise InvariantBroken unless every request is in one place."""
        self.queue.check_integrity()
        placed = [t for t in self.alive.values() if t.attempt is not None]
        num_waiting = len(self.queue) + len(self.held)
        if len(placed) + num_waiting != len(self.alive):
            raise InvariantBroken(
                f"{len(placed)} at replicas + {num_waiting} waiting != {len(self.alive)}"
            )
        known = sum(len(member.attempts) for member in self._fleet.members.values())
        if known != len(placed):
            raise InvariantBroken(f"{known} attempts at replicas, {len(placed)} of requests")
        for tracked in self.alive.values():
            left = tracked.left
            if left is not None and tracked.id not in self._fleet.followers.of(left):
                raise InvariantBroken(f"{tracked.id}: nobody knows that it left {left}")
        for tracked in placed:
            attempt = tracked.attempt
            if attempt is None or attempt.tokens is not tracked.tokens:
                raise InvariantBroken(f"{tracked.id}: its attempt has other tokens")
        if len(self.deadlines) > 2 * len(self.alive) + 64:
            raise InvariantBroken(f"{len(self.deadlines)} deadlines of {len(self.alive)} requests")

    def _turn(self, attempt: Attempt, output: Output, now: Seconds) -> None:
        """Take note of an output that is the first or the last of an attempt."""
        finish = output.finish
        if finish not in _WITHOUT_TRUTH:
            self._fleet.prefixes.compare(attempt, output.cached_tokens, now)
        if not attempt.answered:
            attempt.tracked.answered = True
            self._fleet.followers.settle(attempt.tracked)
            self._fleet.note_answer(attempt)
        if finish is not None:
            self._end(attempt.tracked, now)

    def _give_up(
        self, attempt: Attempt, reason: str, now: Seconds, *, cancel: bool, may_go_on: bool
    ) -> list[RouterEffect]:
        tracked, replica = attempt.tracked, attempt.replica
        told: list[RouterEffect] = [CancelAt(replica, attempt.id)] if cancel else []
        if not tracked.num_tokens_left:  # only its end is missing
            self._end(tracked, now)
            return [*told, Deliver((Output(tracked.id, (), FinishReason.LENGTH, 0),))]
        deadline = tracked.request.deadline
        if deadline is not None and deadline <= now:
            return [*told, self.fail(tracked, deadline_failure(tracked.id), now)]
        if not may_go_on:
            message = f"replica {replica} was lost: {reason}"
            failure = Fail(tracked.id, ReplicaLost.code, message, 1.0)
            return [*told, self.fail(tracked, failure, now)]
        self._fleet.release(attempt)
        tracked.attempt = None
        tracked.tried = (*tracked.tried, replica)
        self.queue.take_back(tracked, now)
        has_begun = tracked.answered and not tracked.tokens
        return [GoOn(tracked.id, replica, reason, len(tracked.tokens), has_begun=has_begun), *told]

    def _has_another(self, tracked: Tracked, replica: ReplicaId, now: Seconds) -> bool:
        tried = (*tracked.tried, replica)
        members = self._fleet.availability.open(now).members
        return any(member.view.replica not in tried for member in members)

    def _end(self, tracked: Tracked, now: Seconds) -> None:
        del self.alive[tracked.id]
        self._fleet.followers.settle(tracked)
        if tracked.attempt is not None:
            self._fleet.release(tracked.attempt)
            tracked.attempt = None  # which knows this one: nothing is left to a collector
            self._pace.note_end(now)
        elif not self.held.remove(tracked):
            self.queue.remove(tracked)
        self.deadlines.sweep(self.alive)
