"""How long a step takes, learned from the executor's own steps.

::

    seconds = base + prefill_token * prefill + decode * decodes
                   + decode_context * context + prefill_context * pairs

``context`` counts the tokens that decodes attend to, ``pairs`` the (new token, context token) pairs
of chunks: both are attention, but a chunk reads its context once for many tokens.

Recursive least squares with forgetting, in its information form (Haykin, Adaptive Filter Theory,
ch. 13): sums of products are kept and solved every few steps; negative coefficients are held at 0.
What steps leave open (in pure decode, say, all but a sum) a prior decides; it follows what was
learned, so that an hour of decodes does not make it forget what a prompt costs. It knows no
sequences.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from headrace.core.costs.step_time import solve

if TYPE_CHECKING:
    from collections.abc import Iterable

    from headrace.types import Seconds, Tokens

KEEP = 0.995  # weight of all older steps at each new one: about 200 steps are felt
SOLVE_EVERY = 8  # steps between two solutions once there are SETTLED
SETTLED = 32
TYPICAL = (1.0, 64.0, 4.0, 1024.0, 16384.0)
"""The prior counts as one step with so much of each feature alone, at full weight."""

PRIOR_WEIGHT = 0.05
EVIDENT = 10.0  # times the prior's weight: from there on a feature's cost becomes the prior
FOLLOW = 0.2  # of the way that the prior then goes at each solution
OUTLIER = 3.0  # a step that takes so many times what was predicted counts as that many
SHORTEST: Seconds = 1e-6
LATE = 0.1  # of all steps may take longer than ``spread`` says
SPREAD_STEP = 0.02  # by which one step moves it: about 100 steps are felt
MAX_SPREAD = 1.3


class StepLoad(NamedTuple):
    """What a step computes."""

    prefill: Tokens = 0  # tokens of chunks
    decodes: int = 0
    context: Tokens = 0  # attended to by decodes
    pairs: int = 0  # (token, context token) of chunks

    def features(self) -> tuple[float, float, float, float, float]:
        """Return what the coefficients are multiplied with."""
        return 1.0, float(self.prefill), float(self.decodes), float(self.context), float(self.pairs)


class StepObservation(NamedTuple):
    """A step that was run."""

    load: StepLoad
    seconds: Seconds


def num_pairs(start: Tokens, num_tokens: Tokens) -> int:
    """Return how many pairs a chunk of ``num_tokens`` from ``start`` attends to."""
    return num_tokens * start + num_tokens * (num_tokens + 1) // 2


class StepCoefficients(NamedTuple):
    """Seconds for one of each feature. The defaults are of a 135M model on two cores."""

    base: Seconds = 0.008
    prefill_token: Seconds = 7e-4
    decode: Seconds = 1.2e-3
    decode_context: Seconds = 1e-6
    prefill_context: Seconds = 1e-7

    def of(self, load: StepLoad) -> Seconds:
        """Return how long a step takes."""
        return (
            self.base
            + self.prefill_token * load.prefill
            + self.decode * load.decodes
            + self.decode_context * load.context
            + self.prefill_context * load.pairs
        )


PRIOR = StepCoefficients()


class StepModel:
    """The fit of one executor. ``error`` is its usual relative error, known before each fit;
    ``spread`` what a step takes at most, but for one in ten, in multiples of what was predicted.
    """

    def __init__(
        self,
        prior: StepCoefficients = PRIOR,
        calibration: Iterable[StepObservation] = (),
    ) -> None:
        self.coefficients = prior
        self.error: float | None = None
        self.spread = 1.0
        self.num_observations = 0
        self._prior = prior
        self._squares = [[0.0] * 5 for _ in range(5)]
        self._products = [0.0] * 5
        for load, seconds in calibration:
            self.observe(load, seconds)
        self.error, self.spread = None, 1.0  # of a prior are of no interest

    def seconds(self, load: StepLoad) -> Seconds:
        """Predict how long a step takes."""
        return self.coefficients.of(load)

    def recompute_seconds(self, num_tokens: Tokens, start: Tokens) -> Seconds:
        """Predict what computing ``num_tokens`` from ``start`` adds to steps."""
        costs = self.coefficients
        return costs.prefill_token * num_tokens + costs.prefill_context * num_pairs(
            start, num_tokens
        )

    def prefill_within(self, seconds: Seconds, start: Tokens) -> Tokens:
        """Return how many tokens from ``start`` can be computed in addition in ``seconds``."""
        if seconds <= 0:
            return 0
        quadratic = self.coefficients.prefill_context / 2
        linear = self.coefficients.prefill_token + quadratic * (2 * start + 1)
        # The stable form of the quadratic formula: linear may be far larger than quadratic.
        root = (linear * linear + 4 * quadratic * seconds) ** 0.5
        return int(2 * seconds / max(linear + root, SHORTEST * seconds))

    def observe(self, load: StepLoad, seconds: Seconds) -> None:
        """Learn that a step took so long."""
        predicted = max(self.coefficients.of(load), SHORTEST)
        if seconds <= SHORTEST:
            return
        if self.num_observations > SETTLED:
            seconds = min(seconds, OUTLIER * predicted)
        self._note_error(abs(predicted - seconds) / seconds)
        self._note_spread(seconds / predicted)
        self.num_observations += 1
        weight = 1.0 / seconds  # between absolute and relative errors
        features = load.features()
        products, squares = self._products, self._squares
        for i, feature in enumerate(features):
            row = squares[i]
            weighted = weight * feature
            products[i] = KEEP * products[i] + weighted * seconds
            for j in range(i + 1):
                row[j] = KEEP * row[j] + weighted * features[j]
        if self.num_observations <= SETTLED or self.num_observations % SOLVE_EVERY == 0:
            self.coefficients = self._solve()

    def _note_error(self, error: float) -> None:
        self.error = error if self.error is None else 0.95 * self.error + 0.05 * error

    def _note_spread(self, ratio: float) -> None:
        """Follow a quantile (stochastic approximation, Robbins and Monro 1951)."""
        move = 1 - LATE if ratio > self.spread else -LATE
        self.spread = min(max(self.spread + SPREAD_STEP * move, 1.0), MAX_SPREAD)

    def _solve(self) -> StepCoefficients:
        """Return the least-squares coefficients, those held at 0 that would be negative."""
        squares = [[self._squares[max(i, j)][min(i, j)] for j in range(5)] for i in range(5)]
        products = list(self._products)
        weight = PRIOR_WEIGHT / max(self._prior.base, SHORTEST)
        for i, (size, cost) in enumerate(zip(TYPICAL, self._prior, strict=True)):
            squares[i][i] += weight * size * size
            products[i] += weight * size * size * cost
        solution = _not_negative(squares, products)
        self._prior = StepCoefficients(
            *(
                old + FOLLOW * (new - old)
                if squares[i][i] > (1 + EVIDENT) * weight * TYPICAL[i] ** 2
                else old
                for i, (old, new) in enumerate(zip(self._prior, solution, strict=True))
            )
        )
        return StepCoefficients(*solution)


def _not_negative(squares: list[list[float]], products: list[float]) -> list[float]:
    """Solve for coefficients; what would be negative is held at 0 and the rest solved again."""
    chosen = list(range(len(products)))
    solution = [0.0] * len(products)
    while chosen:
        found = solve(
            [[squares[i][j] for j in chosen] for i in chosen], [products[i] for i in chosen]
        )
        if min(found) >= 0:
            for i, value in zip(chosen, found, strict=True):
                solution[i] = value
            break
        chosen = [i for i, value in zip(chosen, found, strict=True) if value >= 0]
    return solution
