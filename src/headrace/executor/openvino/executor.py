"""The executor that serves a CPU: one call of a compiled graph runs a whole mixed step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

from headrace.core.scheduler.plan import Row, StepResult
from headrace.executor.calibration import calibrate
from headrace.executor.openvino.inputs import check_inputs, step_inputs
from headrace.types import BlockId, SequenceId

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from headrace.clock import Clock
    from headrace.core.scheduler.plan import StepPlan
    from headrace.executor.base import ExecutorSpec
    from headrace.executor.openvino.graphs import Graph, Graphs
    from headrace.executor.openvino.kv_blocks import KvBlocks
    from headrace.executor.sampler import Drawn, Sampler
    from headrace.types import Seconds, TokenId, Tokens

_COMPARED_SIZES = (2, 4, 8, 16, 32, 128)
_NUM_TRIALS = 3
_WARM_UP_SIZES = (1, 2, 64)  # tokens; oneDNN's kernels for one row, few rows and many rows differ


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationTime:
    """Where a step's time goes: one operation of the graph."""

    kind: str
    kernel: str
    microseconds: float


class OpenVinoExecutor:
    """Implements Executor with compiled graphs that read and write ``kv_blocks``."""

    def __init__(
        self,
        *,
        spec: ExecutorSpec,
        graphs: Graphs,
        kv_blocks: KvBlocks,
        sampler: Sampler,
        clock: Clock,
    ) -> None:
        self._spec = spec
        self._graphs = graphs
        self._kv_blocks = kv_blocks
        self._sampler = sampler
        self._clock = clock

    @property
    def spec(self) -> ExecutorSpec:
        """What this executor offers."""
        return self._spec

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step. Raises ExecutorFault."""
        began = self._clock.now()
        self._sampler.begin_step(plan)
        self._kv_blocks.copy(plan.copies)
        tokens: list[TokenId | None] = [None] * len(plan.rows)
        if not plan.rows:
            return StepResult(tokens=tokens, seconds=self._clock.now() - began)
        inputs = step_inputs(plan.rows, self._sampler.last_token, self._spec.block_size)
        check_inputs(inputs, self._spec)
        logits_SV = self._graphs.infer(inputs)
        drawn: Drawn = self._sampler.draw(inputs.draws, logits_SV)
        rows = inputs.drawing_rows
        for row, token in zip(rows, drawn.tokens, strict=True):
            tokens[row] = token
        return StepResult(
            tokens=tokens,
            more=tuple((rows[i], further) for i, further in drawn.more),
            logprobs=tuple((rows[i], logprobs) for i, logprobs in drawn.logprobs),
            failures=tuple((rows[i], reason) for i, reason in drawn.failures),
            seconds=self._clock.now() - began,
        )

    def read_blocks(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        """Return copies of whole blocks, [len(blocks), block_bytes]."""
        return self._kv_blocks.read(blocks)

    def write_blocks(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        """Overwrite whole blocks with bytes that ``read_blocks`` returned."""
        self._kv_blocks.write(blocks, content)

    def close(self) -> None:
        """Let go of the graph and its memory. Idempotent."""
        self._graphs.close()

    def profile(self) -> list[OperationTime]:
        """Return the mean time of each operation so far; empty unless built with ``profile``."""
        return [
            OperationTime(
                kind=str(entry.node_type),
                kernel=str(entry.exec_type),
                microseconds=entry.real_time / timedelta(microseconds=1),
            )
            for each in self._graphs.each()
            for entry in each.request.get_profiling_info()
        ]

    def warm_up(self) -> None:
        """Run steps of several sizes: kernels are built, weights packed, and then times taken.

        Writes into the first blocks, which nobody uses yet. Raises ExecutorFault.
        """
        for each in self._graphs.each():
            for size in _WARM_UP_SIZES:
                self._trial(each, size)
        self._graphs.compare(_COMPARED_SIZES, self._quickest_trial)
        self._spec = replace(self._spec, calibration=calibrate(self))

    def _quickest_trial(self, graph: Graph, num_tokens: Tokens) -> Seconds:
        return min(self._trial(graph, num_tokens) for _ in range(_NUM_TRIALS))

    def _trial(self, graph: Graph, num_tokens: Tokens) -> Seconds:
        """Run a prompt of so many tokens; return how long it took."""
        room = min(self._spec.max_model_len, self._spec.num_blocks * self._spec.block_size)
        blocks = tuple(BlockId(i) for i in range(self._spec.num_blocks))
        row = Row(SequenceId(0), 0, (0,) * min(num_tokens, room), blocks, samples=True)
        began = self._clock.now()
        graph.infer(step_inputs([row], lambda _: 0, self._spec.block_size))
        return self._clock.now() - began
