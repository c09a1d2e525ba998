"""Short words for policies' tests: views, requests, and who was chosen."""

from __future__ import annotations

from hashlib import sha256
from typing import TYPE_CHECKING

from headrace.core.balancer.policy import Candidate, ReplicaFacts, ReplicaView
from headrace.core.costs.step_time import StepCosts
from headrace.types import ReplicaId, Request, RequestId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.core.balancer.policy import Policy

FACTS = ReplicaFacts(block_size=16, num_blocks=1000, max_num_seqs=8, max_num_batched_tokens=256)
COSTS = StepCosts(step=0.01, prefill_token=0.001, output_token=0.001)


def view(
    name: str,
    *,
    outstanding: int = 0,
    prefill: int = 0,
    decoding: int = 0,
    context: int = 0,
    costs: StepCosts = COSTS,
    facts: ReplicaFacts = FACTS,
    life: int = 0,
) -> ReplicaView:
    return ReplicaView(
        replica=ReplicaId(name),
        progress_at=0.0,
        facts=facts,
        outstanding=outstanding or decoding,
        prefill_tokens=prefill,
        decoding=decoding,
        context_tokens=context,
        costs=costs,
        life=life,
    )


def idle(number: int) -> list[Candidate]:
    """So many replicas with nothing to do and nothing cached."""
    return [Candidate(view(f"r{n}"), 0) for n in range(number)]


def loaded(*outstanding: int) -> list[Candidate]:
    """Replicas with so many requests each, none of which has a token yet."""
    return [Candidate(view(f"r{n}", outstanding=each), 0) for n, each in enumerate(outstanding)]


def load(candidates: Sequence[Candidate], *outstanding: int) -> Sequence[Candidate]:
    """Give the same replicas other loads."""
    for candidate, number in zip(candidates, outstanding, strict=True):
        candidate.view.outstanding = number
    return candidates


def asks(first_block: int = 0, *more_blocks: int, session: str = "") -> Request:
    """A prompt of these blocks; the first 0: too short for a block."""
    blocks = (first_block, *more_blocks) if first_block else ()
    digests = [b""]
    for block in blocks:
        digests.append(sha256(digests[-1] + block.to_bytes(32, "little")).digest())
    chain = tuple(digests[1:])
    return Request(id=RequestId("a"), prompt=(1,), max_tokens=4, chain=chain, session=session)


def chosen(policy: Policy, candidates: Sequence[Candidate], request: Request | None = None) -> str:
    return str(policy.choose(request or asks(), 640, candidates).replica)


def chosen_often(
    policy: Policy, candidates: Sequence[Candidate], request: Request | None = None
) -> list[str]:
    return [chosen(policy, candidates, request) for _ in range(400)]
