"""What the Router decided, written down: in the journal, in figures, in the log."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, assert_never

from headrace.core.router.events import (
    CancelAt,
    Dispatch,
    Drained,
    Fail,
    GoOn,
    KnowledgeChanged,
    PolicyFailed,
    ReplicaEmptied,
    ReplicaJudged,
    ReplicaState,
    WantSnapshot,
)
from headrace.monitoring import table
from headrace.monitoring.logging import event as log_event

if TYPE_CHECKING:
    from headrace.clock import Clock
    from headrace.monitoring.journal import Journal
    from headrace.monitoring.metrics import Registry
    from headrace.types import ReplicaId, Seconds

_LOG = logging.getLogger(__name__)
FALLBACK_POLICY = "least_requests"
_CALM = (ReplicaState.READY, ReplicaState.DRAINING, ReplicaState.PROBING)

Decision: TypeAlias = (
    Dispatch
    | CancelAt
    | GoOn
    | Fail
    | ReplicaJudged
    | ReplicaEmptied
    | WantSnapshot
    | KnowledgeChanged
    | PolicyFailed
    | Drained
)
"""Every effect of the Router but Deliver, which is no decision."""


class Judgement(NamedTuple):
    """What the Router thinks of a replica, why, and since when."""

    state: ReplicaState
    reason: str
    since: Seconds


class Decisions:
    """Notes each decision.

    ``policy`` is the one that places requests now; ``judgements`` has every replica that the
    Router spoke of and that is not gone for good.
    """

    def __init__(self, *, journal: Journal, registry: Registry, clock: Clock, policy: str) -> None:
        self.policy = policy
        self.judgements: dict[ReplicaId, Judgement] = {}
        self._dismissed: set[ReplicaId] = set()
        self._journal = journal
        self._registry = registry
        self._clock = clock

    def note(self, decision: Decision) -> None:
        """Write one down."""
        add = self._journal.add
        match decision:
            case Dispatch(replica, request, choice):
                self._registry.add(table.DISPATCHES, replica, self.policy)
                add("dispatch", request.id, "to ", replica, ": ", choice.reason)
            case CancelAt(replica, request_id):
                add("cancel", request_id, f"not wanted at {replica} any more")
            case GoOn():
                self._note_move(decision)
            case Fail(request_id, code, reason):
                self._registry.add(table.ROUTER_FAILURES, code)
                add("fail", request_id, f"{code}: {reason}")
            case ReplicaJudged(replica, state, reason):
                self._note_judgement(replica, state, reason)
            case ReplicaEmptied(replica):
                add("emptied", replica, "no request of ours is left there")
            case WantSnapshot() | KnowledgeChanged():
                self._note_index(decision)
            case PolicyFailed(policy, reason):
                self._registry.add(table.POLICY_FALLBACKS, policy)
                add("policy_failed", policy, reason)
                log_event(_LOG, logging.ERROR, "policy failed", policy=policy, reason=reason)
                self.policy = FALLBACK_POLICY
            case Drained():
                add("drained", "gateway", "every accepted request has ended")
            case _:
                assert_never(decision)

    def _note_index(self, decision: WantSnapshot | KnowledgeChanged) -> None:
        replica = decision.replica
        if isinstance(decision, WantSnapshot):
            self._registry.add(table.KV_SNAPSHOTS, replica)
            self._journal.add("snapshot", replica, "changes of its prefix cache were missed")
        else:
            reason = f"its prefix cache is known as {decision.knowledge}: {decision.reason}"
            self._journal.add("index", replica, reason)

    def _note_move(self, move: GoOn) -> None:
        if move.planned:
            self._registry.add(table.HANDOVERS, move.replica)
            self._journal.add("hand_over", move.request_id, f"from {move.replica}: {move.reason}")
            return
        if move.hedged:
            self._registry.add(table.HEDGES, move.replica)
            self._journal.add("hedge", move.request_id, f"away from {move.replica}: {move.reason}")
            return
        moved = move.num_tokens > 0 or move.has_begun
        metric = table.MIGRATIONS if moved else table.RETRIES
        self._registry.add(metric, move.replica)
        after = f" after {move.num_tokens} tokens" if moved else " before its first token"
        after = " in the middle" if move.has_begun else after
        self._journal.add(
            "go_on", move.request_id, f"away from {move.replica}{after}: {move.reason}"
        )
        log_event(
            _LOG,
            logging.WARNING if moved else logging.INFO,
            "request goes on elsewhere",
            id=move.request_id,
            replica=move.replica,
            tokens=move.num_tokens,
            reason=move.reason,
        )

    def dismiss(self, replica: ReplicaId) -> None:
        """A replica is told to end: that it is lost is no surprise, and then it is forgotten."""
        self._dismissed.add(replica)

    def forget(self, replica: ReplicaId) -> None:
        """A replica is gone for good."""
        self._dismissed.discard(replica)
        self.judgements.pop(replica, None)
        for metric in (table.REPLICA_STATE, table.REPLICA_READY):
            self._registry.drop(metric, replica)

    def _note_judgement(self, replica: ReplicaId, state: ReplicaState, reason: str) -> None:
        self.judgements[replica] = Judgement(state, reason, self._clock.now())
        for each in ReplicaState:
            self._registry.put(table.REPLICA_STATE, replica, each, value=int(each is state))
        if state is ReplicaState.EJECTED:
            self._registry.add(table.EJECTIONS, replica)
        self._journal.add("judged", replica, f"{state}: {reason}")
        is_calm = state in _CALM or replica in self._dismissed
        level = logging.INFO if is_calm else logging.WARNING
        log_event(_LOG, level, f"replica is {state}", replica=replica, reason=reason)
        if state is ReplicaState.LOST and replica in self._dismissed:
            self.forget(replica)
