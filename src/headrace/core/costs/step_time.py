"""How long a step takes: t = a + b * prompt tokens + c * output tokens, fitted to load reports.

An engine's counters say what many steps did together and how long they took; the difference of
two reports is one observation: seconds = a * steps + b * computed + c * drawn. Exponentially
weighted least squares with coefficients held at or above zero; a prior, worth a few reports,
decides what the reports leave open (in pure decode a and c cannot be told apart). It knows no
attention cost that grows with context, and no transfers.
"""

from __future__ import annotations

from itertools import product
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import ReplicaId, ReportLoad, Seconds, Tokens

KEEP = 0.98  # weight of all older observations at each new one: about 50 reports are felt
KEEP_OF_POOL = 0.995  # the pool hears every replica
PRIOR_REPORTS: tuple[float, float, float] = (4.0, 100.0, 20.0)
"""The prior counts as three reports: so many steps, prompt tokens and output tokens alone."""

PRIOR_FADES = 0.8  # what is left of its weight after each true report
PRIOR_STAYS = 1e-3  # of its weight, so that it goes on deciding what reports leave open


FEW_OBSERVATIONS = 10


class StepCosts(NamedTuple):
    """Seconds of a step, and of each token in it.

    The defaults are of the order of an 8-billion model on one data-centre GPU: its weights are
    read in 5 to 10 ms, and it computes some 10,000 prompt tokens a second. They order replicas
    until the first reports come.
    """

    step: Seconds = 0.01
    prefill_token: Seconds = 1e-4
    output_token: Seconds = 1e-4

    def seconds(self, *, steps: float, prefill: float, outputs: float) -> Seconds:
        """Return how long so many steps with so many tokens take together."""
        return self.step * steps + self.prefill_token * prefill + self.output_token * outputs

    def of_step(self, prefill: Tokens, decodes: int) -> Seconds:
        """Return how long one step takes."""
        return self.step + self.prefill_token * prefill + self.output_token * decodes


PRIOR = StepCosts()


class StepTimeModel:
    """The fit of one replica, or of a pool. ``error`` is its usual error, relative to the truth."""

    def __init__(self, prior: StepCosts = PRIOR, *, keep: float = KEEP) -> None:
        self.costs = prior
        self.error: float | None = None  # of predictions made before the truth was seen
        self.num_observations = 0
        self._keep = keep
        self._squares = [[0.0] * 3 for _ in range(3)]
        self._products = [0.0] * 3

    def observe(
        self, *, steps: int, prefill: Tokens, outputs: Tokens, seconds: Seconds, prior: StepCosts
    ) -> None:
        """Learn that ``steps`` >= 1 with those tokens took ``seconds`` in all."""
        self._note_error(seconds, steps=steps, prefill=prefill, outputs=outputs)
        self.num_observations += 1
        row = (float(steps), float(prefill), float(outputs))
        weight = 1.0 / steps  # the noise of a sum of steps grows with their number
        for i in range(3):
            self._products[i] = self._keep * self._products[i] + weight * row[i] * seconds
            for j in range(3):
                self._squares[i][j] = self._keep * self._squares[i][j] + weight * row[i] * row[j]
        self.costs = self.fit(prior)

    def _note_error(
        self, seconds: Seconds, *, steps: int, prefill: Tokens, outputs: Tokens
    ) -> None:
        if seconds <= 0:
            return
        predicted = self.costs.seconds(steps=steps, prefill=prefill, outputs=outputs)
        error = abs(predicted - seconds) / seconds
        self.error = error if self.error is None else 0.9 * self.error + 0.1 * error

    def fit(self, prior: StepCosts) -> StepCosts:
        """Return the costs that its observations and ``prior`` together say."""
        left = max(PRIOR_FADES**self.num_observations, PRIOR_STAYS)
        squares = [list(row) for row in self._squares]
        products = list(self._products)
        for i, (size, cost) in enumerate(zip(PRIOR_REPORTS, prior, strict=True)):
            weight = left * size * size / PRIOR_REPORTS[0]
            squares[i][i] += weight
            products[i] += weight * cost
        return StepCosts(*least_squares(squares, products))


class StepTimes:
    """A model for each replica; what one has not seen yet, it takes from the pool of all."""

    def __init__(self, prior: StepCosts = PRIOR) -> None:
        self._prior = prior
        self._pool = StepTimeModel(prior, keep=KEEP_OF_POOL)
        self._models: dict[ReplicaId, StepTimeModel] = {}

    @property
    def pool(self) -> StepCosts:
        """What a step costs somewhere: the guess for a replica that said nothing yet."""
        return self._pool.costs

    def observe(self, replica: ReplicaId, last: ReportLoad, report: ReportLoad) -> StepCosts:
        """Learn from two reports of one life of an engine; return that replica's costs."""
        model = self._models.setdefault(replica, StepTimeModel(self._pool.costs))
        steps = report.step - last.step
        prefill = report.computed_tokens_total - last.computed_tokens_total
        outputs = report.output_tokens_total - last.output_tokens_total
        seconds = report.step_seconds_total - last.step_seconds_total
        if steps > 0 and min(prefill, outputs) >= 0 and seconds >= 0:
            for each, prior in ((self._pool, self._prior), (model, self._pool.costs)):
                each.observe(
                    steps=steps, prefill=prefill, outputs=outputs, seconds=seconds, prior=prior
                )
        return model.costs

    def renewed(self, replica: ReplicaId, costs: StepCosts) -> StepCosts:
        """Return ``costs`` of a replica, made anew by what the pool has learned meanwhile.

        Only while it was observed seldom: one that looked bad at first, and so is never chosen,
        would have no other way to mend its estimate.
        """
        model = self._models.get(replica)
        if model is None:
            return self._pool.costs
        if model.num_observations < FEW_OBSERVATIONS:
            model.costs = model.fit(self._pool.costs)
            return model.costs
        return costs

    def error(self, replica: ReplicaId) -> float | None:
        """Return the usual relative error of a replica's model, None before its first report."""
        model = self._models.get(replica)
        return None if model is None else model.error

    def is_known(self, replica: ReplicaId) -> bool:
        """Whether a replica was observed often enough to be believed."""
        model = self._models.get(replica)
        return model is not None and model.num_observations >= FEW_OBSERVATIONS

    def drop(self, replica: ReplicaId) -> None:
        """Forget a replica; the pool remembers."""
        self._models.pop(replica, None)


def least_squares(squares: Sequence[Sequence[float]], products: Sequence[float]) -> list[float]:
    """Return x >= 0 that minimises x'Sx - 2p'x, S symmetric and positive definite.

    Tries every choice of coefficients held at 0: with three there are eight.
    """
    best, best_value = [0.0] * len(products), 0.0
    for free in product((True, False), repeat=len(products)):
        chosen = [index for index, is_free in enumerate(free) if is_free]
        solution = solve(
            [[squares[i][j] for j in chosen] for i in chosen], [products[i] for i in chosen]
        )
        if min(solution, default=0.0) < 0:
            continue
        value = -sum(products[i] * x for i, x in zip(chosen, solution, strict=True))
        if value < best_value:
            best, best_value = [0.0] * len(products), value
            for i, x in zip(chosen, solution, strict=True):
                best[i] = x
    return best


def solve(matrix: list[list[float]], right: list[float]) -> list[float]:
    """Return x with matrix x = right, by Gauss; the matrix is positive definite."""
    size = len(right)
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(size):
        for k in range(i + 1, size):
            factor = rows[k][i] / rows[i][i]
            rows[k] = [x - factor * y for x, y in zip(rows[k], rows[i], strict=True)]
    solution = [0.0] * size
    for i in reversed(range(size)):
        known = sum(rows[i][j] * solution[j] for j in range(i + 1, size))
        solution[i] = (rows[i][size] - known) / rows[i][i]
    return solution
