"""Small engines on the simulated executor, and what they must say.

The executor checks that every row's context blocks hold exactly that row's tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan
from headrace.executor.base import ExecutorSpec
from headrace.executor.simulated import SLOT_BYTES, SimulatedExecutor
from headrace.testing.harness import EngineHarness
from headrace.types import BlockId, FinishReason, SamplingParams, SequenceId, StepId

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from headrace.core.kvcache.tiers import TierConfig
    from headrace.executor.constraints import Constraints
    from headrace.types import Request, TokenId, Tokens

GREEDY = SamplingParams(temperature=0)


def simulated_spec(
    *,
    num_blocks: int = 64,
    block_size: Tokens = 4,
    max_model_len: Tokens = 256,
    vocab_size: int = 1000,
) -> ExecutorSpec:
    """Return the spec of an executor with checked blocks."""
    return ExecutorSpec(
        model_identity="simulated",
        vocab_size=vocab_size,
        max_model_len=max_model_len,
        block_size=block_size,
        num_blocks=num_blocks,
        block_bytes=SLOT_BYTES * block_size,
    )


def simulated_engine(
    spec: ExecutorSpec | None = None,
    config: SchedulerConfig | None = None,
    constraints: Constraints | None = None,
    tiers: TierConfig | None = None,
    *,
    repeats: bool = False,
) -> EngineHarness:
    """Return a harness round a fresh engine, whose texts go in circles if it ``repeats``."""
    spec = spec or simulated_spec()
    core = build_engine_core(spec, config or SchedulerConfig(), tiers)
    executor = SimulatedExecutor(spec, check_kv=True, repeats=repeats, constraints=constraints)
    return EngineHarness(core, executor)


def cached_content(engine: EngineHarness) -> dict[bytes, npt.NDArray[np.uint8]]:
    """Return all that an engine's prefix cache holds, by digest: what it could lend."""
    index, executor = engine.core.scheduler.kv.index, engine.store.executor
    found = {}
    for block in map(BlockId, range(executor.spec.num_blocks)):
        content = index.content(block)
        if content is not None:
            found[content.digest] = executor.read_blocks([block])[0]
    return found


@dataclass(frozen=True, slots=True)
class Stream:
    """What a request gets if nothing disturbs it."""

    tokens: tuple[TokenId, ...]
    finish: FinishReason


def undisturbed(
    request: Request,
    spec: ExecutorSpec,
    constraints: Constraints | None = None,
    *,
    repeats: bool = False,
) -> Stream:
    """Return a request's stream, token by token, without any engine: the oracle."""
    executor = SimulatedExecutor(spec, repeats=repeats, constraints=constraints)
    num_prompt = len(request.prompt) - request.num_prior
    start = SequenceStart(
        sequence=SequenceId(0),
        sampling=request.sampling,
        prompt=request.prompt[:num_prompt],
        output=request.prompt[num_prompt:],
        min_tokens=request.min_tokens,
        stop_token_ids=request.stop_token_ids,
        constraint=request.constraint,
    )
    room = min(spec.max_model_len, spec.num_blocks * spec.block_size) - len(request.prompt)
    tokens: list[TokenId] = []
    row = Row(SequenceId(0), 0, request.prompt, (BlockId(0),), True)
    for index in range(min(request.max_tokens, room)):
        starts = () if index else (start,)
        drawn = executor.execute(StepPlan(step_id=StepId(index), rows=(row,), starts=starts))
        token = drawn.tokens[0]
        assert token is not None
        tokens.append(token)
        num_generated = request.num_prior + index  # before this token
        may_stop = num_generated >= request.min_tokens or request.constraint is not None
        if token in request.stop_token_ids and may_stop:
            return Stream(tuple(tokens), FinishReason.STOP)
    return Stream(tuple(tokens), FinishReason.LENGTH)
