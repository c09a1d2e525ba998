"""Policy: picks a replica for a request. What it sees, and what it must say of its choice."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

from headrace.core.costs.step_time import PRIOR, StepCosts
from headrace.types import Role

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import ReplicaId, ReportLoad, Request, Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaFacts:
    """What a replica says of itself when it is ready. 0: not known (foreign replicas)."""

    block_size: Tokens = 0
    num_blocks: int = 0
    max_num_seqs: int = 0
    max_num_batched_tokens: Tokens = 0
    weight: float = 1.0  # capacity beside the others': one of 2 gets twice the load
    canary: float = 0.0  # share of all requests that it is tried with; 0: it is no canary
    role: Role = Role.MIXED
    lends_at: str = ""  # where other replicas may fetch blocks; "": it neither lends nor fetches
    peer_block_seconds: Seconds = 0.0  # first guess of what a block takes to come from another
    lists_blocks: bool = True  # asked, it tells of all blocks that it has


@dataclass(slots=True, kw_only=True)
class ReplicaView:
    """One replica as this router sees it.

    Load is counted at dispatch and released by events, never scraped; what other gateways have
    there is in it, as old as their last gossip: ``prefill_tokens`` are
    uncached prompt tokens sent there whose request has no first token yet; ``decoding`` are
    requests that have one; ``context_tokens`` is the sum of the lengths of all requests there.
    """

    replica: ReplicaId
    progress_at: Seconds  # when it last did a step, had nothing to do, or got its first request
    facts: ReplicaFacts = field(default_factory=ReplicaFacts)
    outstanding: int = 0  # requests sent there that have not ended
    prefill_tokens: Tokens = 0
    decoding: int = 0
    context_tokens: Tokens = 0
    past_us: int = 0  # requests there that this router knows only from what its metrics say
    life: int = 0  # another number whenever a replica comes back, with nothing cached
    report: ReportLoad | None = None
    costs: StepCosts = PRIOR  # as its reports show

    @property
    def longest_step(self) -> Seconds:
        """What a step full of prompt and decodes should take there."""
        facts = self.facts
        return self.costs.of_step(facts.max_num_batched_tokens, facts.max_num_seqs)


class Candidate(NamedTuple):
    """A replica that may take the request, and how much of its prompt is believed to be there."""

    view: ReplicaView
    cached_tokens: Tokens


class Score(NamedTuple):
    """What a policy thought of one candidate: the lowest cost wins. ``cost`` is in its own unit."""

    replica: ReplicaId
    cost: float
    cached_tokens: Tokens


class Reason(Protocol):
    """A sentence, or what makes one: most are read by nobody."""

    def __str__(self) -> str: ...


class Choice(NamedTuple):
    """A replica, the reason for people to read, and all candidates with their costs.

    ``predicted_ttft`` is the time to the first token there, None where the policy predicts none.
    """

    replica: ReplicaId
    reason: Reason
    scores: tuple[Score, ...] = ()
    predicted_ttft: Seconds | None = None


class Random(Protocol):
    """Where chance comes from: seeded, so that a run can be told again."""

    def below(self, limit: int) -> int:
        """Return a whole number from 0 up to, not including, ``limit`` >= 1, each as likely."""
        ...


class Policy(Protocol):
    """Decides by what it is shown; may keep state that depends on earlier calls only."""

    @property
    def name(self) -> str:
        """As in ``--policy`` and in journals."""
        ...

    def choose(
        self, request: Request, prompt_tokens: Tokens, candidates: Sequence[Candidate]
    ) -> Choice:
        """Pick one of ``candidates`` (at least one), which all have room.

        ``prompt_tokens`` is the prompt's length, an estimate where nobody tokenised it.
        """
        ...
