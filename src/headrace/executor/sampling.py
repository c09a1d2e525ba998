"""The sampling rule: from one row of logits to one token.

The logits of a row, float32 [V], pass these stages in this order, which is vLLM's (its v1
sampler: processors that can change the argmax, penalties, temperature, min_p, top_k, top_p):

1. ``min_tokens``: stop tokens get -inf while too little was generated, and under a constraint all
   tokens that it does not admit (see constraints.py);
2. ``logit_bias``: added;
3. repetition penalty: over prompt and output tokens, a positive logit is divided by it and a
   negative one multiplied (Keskar et al. 2019);
4. frequency penalty times the token's count in the output, and presence penalty where the count
   is not 0: subtracted;
5. temperature: below 1e-5 the token of the highest logit is taken (the lowest id among equals)
   and nothing that follows applies; otherwise logits are divided by it;
6. ``min_p``: tokens less probable than ``min_p`` times the most probable one are dropped;
7. ``top_k``: the k best of the rest are kept;
8. ``top_p``: of those, as few of the best as have together at least ``top_p`` of their mass;
9. one uniform number u: the kept tokens are laid out by rising id, each as wide as its
   probability, and the token that covers the point u is drawn.

"Best" is by falling logit, then rising id, so exactly one answer is right. u is
``philox.uniforms(seed, choice, position)`` with the position that the drawn token will have in
the sequence, prompt included. Log-probabilities are reported of the logits before stage 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.types import TokenLogprobs

if TYPE_CHECKING:
    from headrace.types import SamplingParams, TokenId

F32: TypeAlias = npt.NDArray[np.float32]
F64: TypeAlias = npt.NDArray[np.float64]
Ids: TypeAlias = npt.NDArray[np.int64]

GREEDY_BELOW = 1e-5  # temperature; as vLLM's _SAMPLING_EPS
_SPAN = 256  # tokens summed or compared together before single ones are looked at
_FIRST_GUESS = 64  # best tokens tried first for top_p; most rows need no more


class SamplingFailed(Exception):
    """No token can be drawn for this row. The message is fit for the client."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Penalised:
    """Distinct tokens of a sequence with their counts in its output (0: prompt only)."""

    ids: Ids
    counts: Ids


def is_greedy(sampling: SamplingParams) -> bool:
    """Tell whether the token of the highest logit is taken."""
    return sampling.temperature < GREEDY_BELOW


def has_penalties(sampling: SamplingParams) -> bool:
    """Tell whether tokens of the sequence change its logits."""
    return (
        sampling.repetition_penalty != 1
        or sampling.frequency_penalty != 0
        or sampling.presence_penalty != 0
    )


def adjust(
    logits_V: F32,
    sampling: SamplingParams,
    *,
    forbidden: tuple[TokenId, ...],
    penalised: Penalised | None,
) -> None:
    """Carry out stages 1 to 4 in place. Raises IndexError for tokens outside the vocabulary."""
    if forbidden:
        logits_V[list(forbidden)] = -np.inf
    for token, bias in sampling.logit_bias:
        logits_V[token] += np.float32(bias)
    if penalised is None:
        return
    values = logits_V[penalised.ids].astype(np.float64)
    repetition = sampling.repetition_penalty
    values = np.where(values > 0, values / repetition, values * repetition)
    values -= sampling.frequency_penalty * penalised.counts
    values -= sampling.presence_penalty * (penalised.counts > 0)
    logits_V[penalised.ids] = values.astype(np.float32)


def best(logits_V: F32) -> TokenId:
    """Return the token of the highest logit. Raises SamplingFailed if there is none."""
    token = int(logits_V.argmax())
    if not math.isfinite(logits_V[token]):
        raise SamplingFailed(
            "no token can be drawn: all are forbidden"
            if logits_V[token] == -np.inf
            else "the model's logits are not finite numbers"
        )
    return token


def draw(logits_V: F32, sampling: SamplingParams, uniform: float) -> TokenId:
    """Carry out stages 5 to 9. ``logits_V`` is overwritten. Raises SamplingFailed."""
    token = best(logits_V)
    if is_greedy(sampling):
        return token
    logits_V -= logits_V[token]
    logits_V /= np.float32(sampling.temperature)
    if sampling.min_p > 0:
        logits_V[logits_V < np.float32(math.log(sampling.min_p))] = -np.inf
    kept = _filter(logits_V, sampling)
    if kept is None:
        return _cover(np.exp(logits_V, out=logits_V), uniform)
    kept.sort()
    return int(kept[_cover(np.exp(logits_V[kept]), uniform)])


def logprobs_of(logits_V: F32, token: TokenId, num_top: int) -> TokenLogprobs:
    """Return log-probabilities of ``token`` and the ``num_top`` best tokens."""
    peak = float(logits_V.max())
    normaliser = peak + math.log(float(np.exp(logits_V - np.float32(peak)).sum(dtype=np.float64)))
    top = rank(logits_V, num_top) if num_top else ()
    return TokenLogprobs(
        token,
        float(logits_V[token]) - normaliser,
        tuple((int(i), float(logits_V[i]) - normaliser) for i in top),
    )


def rank(values_V: F32, count: int) -> Ids:
    """Return the ``count`` best ids, best first.

    The count-th highest of the maxima of spans is a bound that at least ``count`` values reach,
    so only those are sorted. (A partition of the whole row costs several times more.)
    """
    starts = np.arange(0, values_V.size, _SPAN)
    if count < starts.size:
        maxima = np.maximum.reduceat(values_V, starts)
        maxima.partition(maxima.size - count)
        ids = np.flatnonzero(values_V >= maxima[maxima.size - count])
    else:
        ids = np.arange(values_V.size)
    order = np.argsort(-values_V[ids], kind="stable")[:count]
    ranked: Ids = ids[order]
    return ranked


def _filter(scaled_V: F32, sampling: SamplingParams) -> Ids | None:
    """Return the tokens that top_k and top_p keep (stages 7, 8), or None for all of them."""
    num_kept = min(sampling.top_k, scaled_V.size)
    if num_kept == 0 and sampling.top_p >= 1:
        return None
    if num_kept == 0:
        total = float(np.exp(scaled_V).sum(dtype=np.float64))
        return _top_p(scaled_V, sampling.top_p, total)
    ranked = rank(scaled_V, num_kept)
    if sampling.top_p >= 1:
        return ranked
    mass = np.exp(scaled_V[ranked]).cumsum(dtype=np.float64)
    return ranked[: _num_reaching(mass, sampling.top_p * mass[-1])]


def _top_p(scaled_V: F32, top_p: float, total: float) -> Ids:
    """Return as few of the best tokens as have ``top_p`` of the ``total`` mass."""
    ranked = rank(scaled_V, _FIRST_GUESS)
    mass = np.exp(scaled_V[ranked]).cumsum(dtype=np.float64)
    if mass[-1] >= top_p * total:
        return ranked[: _num_reaching(mass, top_p * total)]
    falling_V = -np.sort(-scaled_V)  # much quicker than sorting ids
    count = _num_reaching(np.exp(falling_V).cumsum(dtype=np.float64), top_p * total)
    last = falling_V[count - 1]
    better = np.flatnonzero(scaled_V > last)
    equal = np.flatnonzero(scaled_V == last)[: count - better.size]
    return np.concatenate([better, equal])


def _num_reaching(mass: F64, wanted: float) -> int:
    """Return how many leading tokens reach the mass ``wanted``; at least one."""
    return min(int(mass.searchsorted(wanted, side="left")) + 1, mass.size)


def _cover(weights: F32, uniform: float) -> int:
    """Return the index whose stretch of the running sum covers ``uniform`` of the total.

    Sums are taken in float64, over spans first: only one span is ever added up token by token.
    """
    starts = np.arange(0, weights.size, _SPAN)
    span_ends = np.add.reduceat(weights, starts, dtype=np.float64).cumsum()
    point = uniform * span_ends[-1]
    span = min(int(span_ends.searchsorted(point, side="right")), starts.size - 1)
    first = int(starts[span])
    inside = weights[first : first + _SPAN]
    before = span_ends[span - 1] if span else 0.0
    offset = int((inside.cumsum(dtype=np.float64) + before).searchsorted(point, side="right"))
    # Rounding may leave the point just past the last weight: take the last that is not 0.
    return first + (offset if offset < inside.size else int(np.flatnonzero(inside)[-1]))
