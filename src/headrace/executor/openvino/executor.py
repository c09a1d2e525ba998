"""The executor that serves a CPU: one call of a compiled graph runs a whole mixed step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING

import numpy as np

from headrace.core.scheduler.plan import Row, StepResult
from headrace.errors import ExecutorFault
from headrace.executor.calibration import calibrate
from headrace.executor.openvino import graph
from headrace.executor.openvino.inputs import (
    StepInputs,
    check_inputs,
    padded,
    quick_size,
    step_inputs,
)
from headrace.types import BlockId, SequenceId

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt
    import openvino as ov

    from headrace.clock import Clock
    from headrace.core.scheduler.plan import StepPlan
    from headrace.executor.base import ExecutorSpec
    from headrace.executor.openvino.kv_blocks import KvBlocks
    from headrace.executor.sampler import Drawn, Sampler
    from headrace.types import TokenId

_WARM_UP_SIZES = (1, 2, 64)  # tokens; oneDNN's kernels for one row, few rows and many rows differ


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationTime:
    """Where a step's time goes: one operation of the graph."""

    kind: str
    kernel: str
    microseconds: float


class OpenVinoExecutor:
    """Implements Executor with one inference request.

    The request's inputs are ``kv_blocks`` and ``tensors``, of which each step writes the latter.
    ``weights`` is whatever owns the memory that the compiled graph's constants share. With
    ``pads_steps`` steps are filled up to sizes that the processor likes (see ``quick_size``); the
    filling is written into one block that the caches have beyond those of the spec.
    """

    def __init__(
        self,
        *,
        spec: ExecutorSpec,
        request: ov.InferRequest,
        tensors: Mapping[str, ov.Tensor],
        kv_blocks: KvBlocks,
        sampler: Sampler,
        clock: Clock,
        weights: object,
        pads_steps: bool,
    ) -> None:
        self._spec = spec
        self._request: ov.InferRequest | None = request
        self._kv_blocks = kv_blocks
        self._sampler = sampler
        self._clock = clock
        self._weights: object | None = weights
        self._pads_steps = pads_steps
        self._tensors = tensors

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
        logits_SV = self._infer(inputs)
        drawn: Drawn = self._sampler.draw(inputs.draws, logits_SV)
        rows = inputs.drawing_rows
        for row, token in zip(rows, drawn.tokens, strict=True):
            tokens[row] = token
        return StepResult(
            tokens=tokens,
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
        self._request = None
        self._weights = None

    def profile(self) -> list[OperationTime]:
        """Return the mean time of each operation so far; empty unless built with ``profile``."""
        if self._request is None:
            return []
        return [
            OperationTime(
                kind=str(entry.node_type),
                kernel=str(entry.exec_type),
                microseconds=entry.real_time / timedelta(microseconds=1),
            )
            for entry in self._request.get_profiling_info()
        ]

    def warm_up(self) -> None:
        """Run steps of several sizes: kernels are built, weights packed, and then times taken.

        Writes into the first blocks, which nobody uses yet. Raises ExecutorFault.
        """
        room = min(self._spec.max_model_len, self._spec.num_blocks * self._spec.block_size)
        for size in _WARM_UP_SIZES:
            num_tokens = min(size, room)
            blocks = tuple(BlockId(i) for i in range(self._spec.num_blocks))
            row = Row(SequenceId(0), 0, (0,) * num_tokens, blocks, samples=True)
            self._infer(step_inputs([row], lambda _: 0, self._spec.block_size))
        self._spec = replace(self._spec, calibration=calibrate(self))

    def _infer(self, inputs: StepInputs) -> npt.NDArray[np.float32]:
        """Return logits [S, V] of the sampled rows: a view that the next step overwrites."""
        if self._request is None:
            raise ExecutorFault("the executor was closed")
        if self._pads_steps:
            size, scratch = quick_size(inputs.tokens.size), BlockId(self._spec.num_blocks)
            inputs = padded(inputs, size, scratch, self._spec.block_size)
        arrays = {
            graph.TOKENS: inputs.tokens,
            graph.POSITIONS: inputs.positions,
            graph.SAMPLED: inputs.sampled,
            graph.PAST_LENS: inputs.past_lens,
            graph.ROW_BEGINS: inputs.row_begins,
            graph.BLOCKS: inputs.blocks,
            graph.BLOCK_BEGINS: inputs.block_begins,
            graph.LONGEST: np.array(inputs.longest, np.int32),
        }
        try:
            for name, values in arrays.items():
                tensor = self._tensors[name]
                tensor.shape = values.shape  # keeps its memory while that is large enough
                tensor.data[...] = values
            self._request.infer()
            logits_SV: npt.NDArray[np.float32] = self._request.get_output_tensor(0).data
        except RuntimeError as error:
            raise ExecutorFault(f"OpenVINO failed in a step: {error}") from error
        return logits_SV
