"""Executor: runs a StepPlan on a device. The only way the engine knows a model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from headrace.core.costs.step_model import StepObservation
    from headrace.core.scheduler.plan import StepPlan, StepResult
    from headrace.types import BlockId, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutorSpec:
    """What an executor offers; fixed once it is built."""

    model_identity: str  # names weights and arithmetic; part of every block digest
    vocab_size: int
    max_model_len: Tokens
    block_size: Tokens
    num_blocks: int
    block_bytes: int  # one block over all layers, keys and values
    calibration: tuple[StepObservation, ...] = ()  # steps it ran before it was ready


class Executor(Protocol):
    """One device (or group of devices) with a model and KV caches of ``num_blocks`` blocks.

    All methods block and are called from one thread only, but for ``read_blocks`` and
    ``write_blocks``: those may be called from another thread while a step runs, to write blocks
    that no step in flight touches, and to read any (of a block that a step writes meanwhile the
    copy is worth nothing). Nothing here knows text, requests or scheduling. Methods raise
    ExecutorFault when the device fails as a whole.
    """

    @property
    def spec(self) -> ExecutorSpec:
        """What this executor offers."""
        ...

    def execute(self, plan: StepPlan) -> StepResult:
        """Run one step. Steps are run in the order in which they were planned."""
        ...

    def read_blocks(self, blocks: Sequence[BlockId]) -> npt.NDArray[np.uint8]:
        """Return copies of whole blocks, shape [len(blocks), block_bytes]."""
        ...

    def write_blocks(self, blocks: Sequence[BlockId], content: npt.NDArray[np.uint8]) -> None:
        """Overwrite whole blocks with bytes that ``read_blocks`` of the same spec returned."""
        ...

    def close(self) -> None:
        """Release the device. Idempotent."""
        ...
