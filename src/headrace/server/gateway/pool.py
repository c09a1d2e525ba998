"""The pool as this gateway sees it: load for the controller, rows and figures for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.health import ReplicaState
from headrace.core.router.knowledge import KvKnowledge
from headrace.messages import PoolReplica, PoolReport
from headrace.monitoring import table
from headrace.monitoring.shapes import ReplicaRow
from headrace.server.gateway.state import PoolCounts

if TYPE_CHECKING:
    from headrace.core.balancer.policy import ReplicaView
    from headrace.core.router.figures import PoolFigures, ReplicaFigures
    from headrace.core.router.machine import Router
    from headrace.monitoring.engine_figures import EngineFigures
    from headrace.monitoring.metrics import Registry
    from headrace.server.gateway.decisions import Decisions, Judgement
    from headrace.server.gateway.replicas import Replicas
    from headrace.types import ReplicaId, ReportLoad, Seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """Reads what others keep; keeps nothing. ``model`` is what its replicas serve."""

    model: str
    router: Router
    replicas: Replicas
    decisions: Decisions
    engines: EngineFigures

    @property
    def policy(self) -> str:
        """The one that places requests now."""
        return self.decisions.policy

    def counts(self, now: Seconds) -> PoolCounts:
        """Count requests."""
        figures = self.router.figures(now)
        running = self.router.num_alive - self.router.num_waiting
        return PoolCounts(figures.waiting, figures.waiting_tokens, running)

    def rows(self, now: Seconds) -> list[ReplicaRow]:
        """Return every replica that the Router knows of or knew, and that may come back."""
        views = {view.replica: view for view in self.router.replicas}
        figures = {each.replica: each for each in self.router.figures(now).replicas}
        rows = [self._row(views[name], figures[name], now) for name in views]
        judged = self.decisions.judgements
        rows += [_lost_row(name, judged[name], now) for name in judged if name not in views]
        return rows

    def record(self, registry: Registry, now: Seconds) -> None:
        """Write down what is looked up only when somebody asks."""
        figures = self.router.figures(now)
        registry.put(table.ROUTER_WAITING, value=figures.waiting)
        registry.put(table.ROUTER_WAITING_TOKENS, value=figures.waiting_tokens)
        for each in figures.replicas:
            record_knowledge(registry, each)

    def _row(self, view: ReplicaView, figures: ReplicaFigures, now: Seconds) -> ReplicaRow:
        replica, report = view.replica, view.report
        judgement = self.decisions.judgements.get(replica)
        return ReplicaRow(
            replica=replica,
            state=figures.state,
            reason="" if judgement is None else judgement.reason,
            pid=self.replicas.pid(replica),
            seconds_in_state=0.0 if judgement is None else now - judgement.since,
            outstanding=figures.outstanding,
            prefill_tokens=figures.prefill_tokens,
            running=0 if report is None else report.running,
            waiting=0 if report is None else report.waiting,
            role=view.facts.role,
            kv_used=figures.kv_used,
            kv_tokens=view.facts.num_blocks * view.facts.block_size,
            cached_share=0.0 if report is None else _cached_share(report),
            index=figures.knowledge,
            index_accuracy=figures.accuracy,
            resident_bytes=self.engines.resident_bytes(replica),
        )


def record_knowledge(registry: Registry, figures: ReplicaFigures) -> None:
    """Write down what the prefix index is worth where one replica is concerned."""
    for knowledge in KvKnowledge:
        value = int(figures.knowledge is knowledge)
        registry.put(table.PREFIX_INDEX_STATE, figures.replica, knowledge, value=value)
    if figures.accuracy is not None:
        registry.put(table.PREFIX_INDEX_ACCURACY, figures.replica, value=figures.accuracy)


def pool_report(figures: PoolFigures, gateway: str) -> PoolReport:
    """Return the load, as the controller wants it."""
    return PoolReport(
        gateway=gateway,
        waiting=figures.waiting,
        waiting_tokens=figures.waiting_tokens,
        predicted_ttft=figures.predicted_ttft,
        replicas=tuple(
            PoolReplica(
                replica=each.replica,
                outstanding=each.outstanding,
                prefill_tokens=each.prefill_tokens,
                kv_used=each.kv_used,
                prefill_rate=each.prefill_rate,
                computed_tokens=each.computed_tokens,
                max_num_seqs=each.max_num_seqs,
            )
            for each in figures.replicas
        ),
    )


def _lost_row(replica: ReplicaId, judgement: Judgement, now: Seconds) -> ReplicaRow:
    return ReplicaRow(
        replica=replica,
        state=ReplicaState.LOST,
        reason=judgement.reason,
        seconds_in_state=now - judgement.since,
    )


def _cached_share(report: ReportLoad) -> float:
    total = report.prompt_tokens_total
    return report.cached_tokens_total / total if total else 0.0
