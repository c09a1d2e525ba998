"""Oversight: replicas come, go, drain, and lose and regain trust; their streams follow.

It tells Streams which attempts to give up and why; health.py says whom to trust.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from headrace.core.health import ReplicaState
from headrace.core.router.events import (
    DrainReplica,
    Fail,
    KvListed,
    KvReported,
    LoadReported,
    LoadSeen,
    ReplicaBeat,
    ReplicaEmptied,
    ReplicaJudged,
    ReplicaLost,
    ReplicaReady,
    ResumeReplica,
)
from headrace.core.router.hedging import build_hedging
from headrace.core.router.rebalance import surplus
from headrace.core.router.roles import takes_over
from headrace.core.router.suspicion import build_suspicion
from headrace.errors import PoisonRequest

if TYPE_CHECKING:
    from typing import TypeAlias

    from headrace.core.health import FailureDetector, Judgement
    from headrace.core.router.events import Outputs, RouterEffect
    from headrace.core.router.fleet import Fleet
    from headrace.core.router.hedging import Hedges
    from headrace.core.router.limits import RouterLimits
    from headrace.core.router.quarantine import Quarantine
    from headrace.core.router.requests import Attempt
    from headrace.core.router.streams import Streams
    from headrace.core.router.suspicion import Suspects
    from headrace.types import ReplicaId, Seconds

    Report: TypeAlias = LoadReported | LoadSeen | ReplicaBeat | KvReported | KvListed
    Change: TypeAlias = ReplicaReady | ReplicaLost | DrainReplica | ResumeReplica


class Oversight:
    """Of one Router's fleet."""

    def __init__(
        self,
        fleet: Fleet,
        health: FailureDetector,
        streams: Streams,
        *,
        hedging: Hedges,
        suspicion: Suspects,
    ) -> None:
        self._fleet = fleet
        self._health = health
        self._streams = streams
        self._hedging = hedging
        self._suspicion = suspicion

    def take(self, event: Report, now: Seconds, effects: list[RouterEffect]) -> None:
        """Take what a replica says of itself; of unknown ones nothing."""
        replica, prefixes = event.replica, self._fleet.prefixes
        member = self._fleet.members.get(replica)
        if member is None:
            return
        match event:
            case ReplicaBeat():
                self.judge(self._health.beat(replica, now), now, effects)
                if event.kv_changes is not None:
                    prefixes.latest(replica, event.kv_changes)
                self._hedging.look(member, now, effects)
            case LoadReported():
                progress = self._fleet.note_load(event, now)
                judgement = self._health.heard(replica, now, report=True, progress=progress)
                self.judge(judgement, now, effects)
                self._hedging.look(member, now, effects)
            case LoadSeen():
                member.view.past_us = event.past_us
                self._fleet.availability.look_again()
            case KvReported():
                self._health.heard(replica, now)
                prefixes.change(event)
            case KvListed():
                self._health.heard(replica, now)
                prefixes.listing(event)
            case _:
                assert_never(event)

    def change(self, event: Change, now: Seconds, effects: list[RouterEffect]) -> None:
        """Take in, give up, drain or bring back a replica."""
        fleet, replica = self._fleet, event.replica
        match event:
            case ReplicaReady():
                self._lose(replica, "it started anew", now, effects)
                fleet.add(event, now)
                effects.append(ReplicaJudged(replica, ReplicaState.READY, "connected"))
                for attempt in surplus(fleet, replica):
                    effects.extend(self._streams.recall(attempt, f"{replica} has joined", now))
            case ReplicaLost():
                self._lose(replica, event.reason, now, effects, dismissed=event.dismissed)
            case DrainReplica():
                if replica in fleet.members:
                    self._begin_drain(event, now, effects)
                else:
                    effects.append(ReplicaEmptied(replica))
            case ResumeReplica():
                if replica in fleet.drains:
                    del fleet.drains[replica]
                    effects.append(
                        ReplicaJudged(
                            replica, fleet.availability.state(replica), "its drain is off"
                        )
                    )
            case _:
                assert_never(event)

    def judge(self, judgement: Judgement | None, now: Seconds, effects: list[RouterEffect]) -> None:
        """Carry out a change of trust: streams leave a suspect, unanswered ones an ejected one."""
        if judgement is None:
            return
        replica, state, reason = judgement
        effects.append(ReplicaJudged(replica, self._fleet.availability.state(replica), reason))
        attempts = self._fleet.members[replica].attempts.values()
        gone = state is ReplicaState.SUSPECT
        out = state is ReplicaState.EJECTED
        for attempt in [each for each in attempts if gone or (out and not each.answered)]:
            effects.extend(self._streams.lose(attempt, reason, now, cancel=True))

    def try_least_bad(self, now: Seconds, effects: list[RouterEffect]) -> None:
        """Every replica is out: give the one that was to come back first a request."""
        self.judge(self._health.probe_least_bad(now), now, effects)

    def check(self, now: Seconds, effects: list[RouterEffect]) -> None:
        """Do what is due: judge the silent, end drains that are over, mend the prefix index."""
        for judgement in self._health.check(now):
            self.judge(judgement, now, effects)
        for replica, until in self._fleet.drains.items():
            if until is not None and until <= now:
                for attempt in list(self._fleet.members[replica].attempts.values()):
                    effects.extend(self._streams.move(attempt, "its drain is over", now))
        self._fleet.prefixes.settle(now, effects)

    def drains_due(self) -> list[Seconds]:
        """When streams must leave the replicas that drain and have some."""
        drains, members = self._fleet.drains.items(), self._fleet.members
        return [until for name, until in drains if until is not None and members[name].attempts]

    def resume(self, now: Seconds) -> None:
        """Let requests go that are held, where it is time."""
        self._streams.back_off.resume(now)
        self._suspicion.resume()

    def hand_over(self, event: Outputs, now: Seconds, effects: list[RouterEffect]) -> None:
        """Let streams go on elsewhere whose first tokens came from a replica for prompts."""
        member = self._fleet.members[event.replica]
        if not takes_over(member, self._fleet, now):
            return
        for output in event.outputs:
            attempt = member.attempts.get(output.request_id)
            if attempt is not None and attempt.tokens:
                effects.extend(self._streams.hand_over(attempt, now))

    def note_empty(self, effects: list[RouterEffect]) -> None:
        """Say which draining replicas have become empty: who left has come by its blocks too."""
        drains = self._fleet.drains
        for replica, until in drains.items():
            busy = self._fleet.members[replica].attempts or self._fleet.followers.of(replica)
            if until is not None and not busy:
                drains[replica] = None
                effects.append(ReplicaEmptied(replica))

    def _begin_drain(self, event: DrainReplica, now: Seconds, effects: list[RouterEffect]) -> None:
        """A second order changes the limit of the first, if it is not over."""
        drains, replica = self._fleet.drains, event.replica
        if replica not in drains:
            drains[replica] = now + event.limit
            reason = f"told to drain within {event.limit:.0f} s"
            effects.append(ReplicaJudged(replica, self._fleet.availability.state(replica), reason))
        elif drains[replica] is not None:
            drains[replica] = now + event.limit

    def _lose(
        self,
        replica: ReplicaId,
        reason: str,
        now: Seconds,
        effects: list[RouterEffect],
        *,
        dismissed: bool = False,
    ) -> None:
        member = self._fleet.members.get(replica)
        if member is None:
            return
        effects.append(ReplicaJudged(replica, ReplicaState.LOST, reason))
        attempts = list(member.attempts.values())
        if not dismissed and replica not in self._fleet.drains:
            self._blame(attempts, reason, now, effects)
        for attempt in list(member.attempts.values()):
            effects.extend(self._streams.lose(attempt, reason, now, cancel=False))
        self._suspicion.hold(now)
        if self._fleet.drains.get(replica) is not None:
            effects.append(ReplicaEmptied(replica))
        self._fleet.remove(replica)

    def _blame(
        self, attempts: list[Attempt], reason: str, now: Seconds, effects: list[RouterEffect]
    ) -> None:
        """End the request of which the replica died, if it is known."""
        verdict = self._suspicion.note_death(attempts, now)
        if verdict is None:
            return
        tracked, deaths = verdict
        said = (
            f"{deaths} replicas died while they ran this request (the last: {reason}); "
            "it is not sent to another one: change it, or report it to who runs this server"
        )
        effects.append(self._streams.fail(tracked, Fail(tracked.id, PoisonRequest.code, said), now))


def build_oversight(
    limits: RouterLimits,
    fleet: Fleet,
    health: FailureDetector,
    streams: Streams,
    quarantine: Quarantine,
) -> Oversight:
    """Wire what a Router asks for."""
    return Oversight(
        fleet,
        health,
        streams,
        hedging=build_hedging(limits, fleet, streams),
        suspicion=build_suspicion(limits, streams, quarantine),
    )
