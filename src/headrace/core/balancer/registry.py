"""Policies by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from headrace.core.balancer.bounded_hash import BoundedHash
from headrace.core.balancer.draws import Draws
from headrace.core.balancer.dynamo_kv import DynamoKv
from headrace.core.balancer.least_requests import LeastRequests
from headrace.core.balancer.llm_d_scores import LlmDScores
from headrace.core.balancer.llm_d_sticky import LlmDSticky
from headrace.core.balancer.lmetric import LMetric
from headrace.core.balancer.power_of_two import PowerOfTwo
from headrace.core.balancer.predicted_ttft import PredictedTtft
from headrace.core.balancer.prefix_tree import PrefixTree
from headrace.core.balancer.random_replica import RandomReplica
from headrace.core.balancer.round_robin import RoundRobin
from headrace.core.balancer.session_affinity import SessionAffinity
from headrace.core.balancer.sglang_cache_aware import SglangCacheAware
from headrace.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from headrace.core.balancer.policy import Policy, Random


class Entry(NamedTuple):
    """How a policy is made, and what it does in a few words."""

    build: Callable[[Random], Policy]
    summary: str


POLICIES: Final[Mapping[str, Entry]] = {
    PredictedTtft.name: Entry(PredictedTtft, "first token soonest, harm to others counted"),
    LeastRequests.name: Entry(lambda _: LeastRequests(), "fewest requests"),
    PowerOfTwo.name: Entry(PowerOfTwo, "fewer requests, of two at random"),
    RoundRobin.name: Entry(lambda _: RoundRobin(), "each in turn"),
    RandomReplica.name: Entry(RandomReplica, "any"),
    SessionAffinity.name: Entry(SessionAffinity, "where the session was"),
    BoundedHash.name: Entry(BoundedHash, "home of session or prompt, loads bounded"),
    PrefixTree.name: Entry(PrefixTree, "where most of the prompt was sent before"),
    SglangCacheAware.name: Entry(SglangCacheAware, "SGLang's gateway"),
    DynamoKv.name: Entry(DynamoKv, "NVIDIA Dynamo's KV router"),
    LlmDSticky.name: Entry(LlmDSticky, "llm-d, sticky until saturated"),
    LlmDScores.name: Entry(LlmDScores, "llm-d, sum of scores"),
    LMetric.name: Entry(LMetric, "prompt tokens to compute x requests"),
}
"""Ours first, then what sees load, neither, prompts, and what others publish."""

POLICY_LINES: Final = "\n".join(
    ["policies:", *(f"  {name:<20}{entry.summary}" for name, entry in POLICIES.items())]
)
"""What ``--policy list`` is answered with."""

NEAR = 0.3
"""Of 1: names less alike than that are no help."""

LIST: Final = "list"
POLICY_WORDS: Final = f"balancer; `{LIST}` shows all"


def build_policy(name: str, seed: int = 0) -> Policy:
    """Return a new policy. Equal seeds and calls give equal choices.

    Raises UsageError with near names, or all of them; for LIST with what each does.
    """
    if name == LIST:
        raise UsageError(POLICY_LINES)
    entry = POLICIES.get(name)
    if entry is None:
        near = [known for known in POLICIES if _likeness(name, known) > NEAR]
        near = sorted(near, key=lambda known: -_likeness(name, known))[:3]
        hint = f"did you mean {' or '.join(near)}?" if near else f"known are {', '.join(POLICIES)}"
        raise UsageError(f"there is no policy {name!r}; {hint}")
    return entry.build(Draws(seed))


def _likeness(left: str, right: str) -> float:
    """Return the share of letter pairs that two words have in common (Dice)."""
    words = (left.lower().replace("-", "_"), right)
    pairs = [{word[i : i + 2] for i in range(len(word) - 1)} for word in words]
    return 2 * len(pairs[0] & pairs[1]) / max(1, len(pairs[0]) + len(pairs[1]))
