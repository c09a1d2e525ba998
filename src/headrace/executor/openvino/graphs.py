"""Compiled graphs of one model over the same KV caches, and which of them runs a step.

Usually there is one. With two, one multiplies with the file's own 4-bit weights, which is quicker
where memory is read for few tokens, and one with unpacked ones, which is quicker where many tokens
are multiplied. Where the one overtakes the other depends on the processor, and is found by trying.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import ExecutorFault
from headrace.executor.openvino import graph
from headrace.executor.openvino.inputs import padded, quick_size

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import numpy.typing as npt
    import openvino as ov

    from headrace.executor.openvino.inputs import StepInputs
    from headrace.types import BlockId, Seconds, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """One compiled graph: its inference request, whose inputs are the caches and ``tensors``.

    ``weights`` is whatever owns the memory that its constants share. With ``pads_steps`` steps are
    filled up to sizes that the processor likes (see ``quick_size``); the filling is written into
    the ``scratch`` block, which the caches have beyond those of the spec.
    """

    request: ov.InferRequest
    tensors: Mapping[str, ov.Tensor]
    weights: object
    pads_steps: bool
    scratch: BlockId
    block_size: Tokens

    def infer(self, inputs: StepInputs) -> npt.NDArray[np.float32]:
        """Return logits [S, V] of the sampled rows: a view that the next step overwrites."""
        if self.pads_steps:
            size = quick_size(inputs.tokens.size)
            inputs = padded(inputs, size, self.scratch, self.block_size)
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
                tensor = self.tensors[name]
                tensor.shape = values.shape  # keeps its memory while that is large enough
                tensor.data[...] = values
            self.request.infer()
            logits_SV: npt.NDArray[np.float32] = self.request.get_output_tensor(0).data
        except RuntimeError as error:
            raise ExecutorFault(f"OpenVINO failed in a step: {error}") from error
        return logits_SV


class Graphs:
    """The graphs of one executor, the one for few tokens first."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self._graphs = tuple(graphs)
        self.many: Tokens | None = None  # from so many tokens on the last one runs; None: never

    def infer(self, inputs: StepInputs) -> npt.NDArray[np.float32]:
        """Run a step on the graph that is quicker for it. Raises ExecutorFault."""
        if not self._graphs:
            raise ExecutorFault("the executor was closed")
        is_many = self.many is not None and inputs.tokens.size >= self.many
        return self._graphs[-1 if is_many else 0].infer(inputs)

    def compare(self, sizes: Sequence[Tokens], trial: Callable[[Graph, Tokens], Seconds]) -> None:
        """Find out from which of some rising sizes on the last graph is always quicker."""
        self.many = None
        if len(self._graphs) < 2:
            return
        for size in reversed(sizes):
            first, last = (trial(each, size) for each in (self._graphs[0], self._graphs[-1]))
            if last >= first:
                return
            self.many = size

    def each(self) -> tuple[Graph, ...]:
        """Return all of them."""
        return self._graphs

    def close(self) -> None:
        """Let go of the graphs and their memory. Idempotent."""
        self._graphs = ()
