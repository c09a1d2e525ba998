"""Where a request goes: what the Router knows of replicas, and the policy that picks one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import ReplicaId, ReportLoad, Request, Seconds


@dataclass(slots=True, kw_only=True)
class ReplicaView:
    """One replica as this router sees it. Load is counted at dispatch, never scraped."""

    replica: ReplicaId
    progress_at: Seconds  # when it last did a step, had nothing to do, or got its first request
    outstanding: int = 0  # requests sent there that have not ended
    report: ReportLoad | None = None


class Choice(NamedTuple):
    """A replica, and the reason for the journal."""

    replica: ReplicaId
    reason: str


class Placement(Protocol):
    """Picks a replica. Pure: the same views give the same choice."""

    def choose(self, request: Request, candidates: Sequence[ReplicaView]) -> Choice:
        """Pick one of ``candidates`` (at least one), which all have room."""
        ...


class LeastOutstanding:
    """The replica with the fewest requests of ours; the first to become ready among equals."""

    def choose(self, request: Request, candidates: Sequence[ReplicaView]) -> Choice:
        """Pick the least loaded."""
        best = min(candidates, key=_outstanding)
        return Choice(best.replica, f"least outstanding: {best.outstanding}")


def _outstanding(view: ReplicaView) -> int:
    return view.outstanding
