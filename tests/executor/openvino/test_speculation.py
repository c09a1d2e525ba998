"""Whole engines on OpenVINO in f32: drafts change no token, and no log-probability by much."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from executor_steps import EXACT, TinyModel, tokens_of

from headrace.config import read_environment
from headrace.core.scheduler.config import SchedulerConfig
from headrace.core.scheduler.drafts import Speculation
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.executor.openvino.build import build_openvino_executor
from headrace.executor.openvino.cpu import Precision
from headrace.executor.openvino.options import KvPrecision, OpenVinoOptions
from headrace.executor.simulated import StepTime
from headrace.model.pull import pull
from headrace.model.registry import resolve
from headrace.model.text import load_text_model
from headrace.testing.harness import EngineHarness
from headrace.types import Request, RequestId, SamplingParams

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from headrace.core.scheduler.plan import StepPlan, StepResult
    from headrace.executor.openvino.executor import OpenVinoExecutor
    from headrace.types import TokenLogprobs

TOLERANCE = 5e-4  # of log-probabilities
NEAR_TIE = 1e-3  # two tokens this near may change places

FEW_TOKENS = tuple((token, 9.0) for token in (65, 70, 75, 80))  # so that a random model repeats
GREEDY = SamplingParams(temperature=0, logprobs=1, logit_bias=FEW_TOKENS)
SEEDED = SamplingParams(temperature=0.7, top_p=0.9, seed=11, logprobs=1)
PENALISED = SamplingParams(
    temperature=0.3, seed=5, repetition_penalty=1.05, logprobs=1, logit_bias=FEW_TOKENS
)


class Steady:
    """An executor whose steps always take as long as a model says, so that plans do not vary."""

    def __init__(self, executor: OpenVinoExecutor) -> None:
        self.spec = executor.spec
        self._executor = executor

    def execute(self, plan: StepPlan) -> StepResult:
        result = self._executor.execute(plan)
        return replace(result, seconds=StepTime().of(plan.rows))


def run(
    executor: OpenVinoExecutor, requests: Sequence[Request], speculation: Speculation
) -> dict[RequestId, list[TokenLogprobs]]:
    """Return every request's tokens with their log-probabilities."""
    core = build_engine_core(executor.spec, SchedulerConfig(speculation=speculation))
    engine = EngineHarness(core, Steady(executor))  # type: ignore[arg-type]
    for request in requests:
        engine.submit(request)
    engine.run_until_idle()
    drafted = any(row.num_drafts for plan in engine.plans for row in plan.rows)
    assert drafted is (speculation is Speculation.LOOKUP)
    found = {
        request_id: [entry for output in outputs for entry in output.logprobs]
        for request_id, outputs in engine.outputs.items()
    }
    assert {i: [e.token for e in entries] for i, entries in found.items()} == engine.tokens
    return found


def assert_same(plain: Sequence[TokenLogprobs], drafted: Sequence[TokenLogprobs]) -> None:
    """Compare token by token up to a tie that fell the other way, if there is one."""
    assert len(plain) == len(drafted)
    for one, other in zip(plain, drafted, strict=True):
        if one.token != other.token:
            gap = abs(one.logprob - other.logprob)
            assert gap < NEAR_TIE, f"{one} without drafts, {other} with"
            return
        assert one.logprob == pytest.approx(other.logprob, abs=TOLERANCE)


@pytest.mark.parametrize("sampling", [GREEDY, PENALISED], ids=["greedy", "penalised"])
def test_a_tiny_model_says_the_same_with_drafts(
    tiny: Callable[..., TinyModel], sampling: SamplingParams
):
    executor = tiny().executor(EXACT)
    prompt = tokens_of(12, seed=3) * 5
    requests = [Request(id=RequestId("a"), prompt=prompt, max_tokens=80, sampling=sampling)]
    plain = run(executor, requests, Speculation.OFF)
    assert_same(plain[RequestId("a")], run(executor, requests, Speculation.LOOKUP)[RequestId("a")])


@pytest.mark.model
@pytest.mark.timeout(300)
def test_the_default_model_says_the_same_with_drafts():
    cache_dir = read_environment().cache_dir
    path = pull(resolve("smollm2-135m-instruct"), cache_dir)
    exact = OpenVinoOptions(kv_tokens=4096, precision=Precision.F32, kv_precision=KvPrecision.F32)
    executor = build_openvino_executor(path, cache_dir, exact)
    text = "The tall carpenter mended the copper lamp before the shop had opened. A painter hid it."
    chat = [{"role": "user", "content": f"Repeat this text word for word:\n\n{text}"}]
    prompt = tuple(load_text_model(path).encode_chat(chat))
    requests = [
        Request(id=RequestId(name), prompt=prompt, max_tokens=48, sampling=sampling)
        for name, sampling in (
            ("greedy", replace(GREEDY, logit_bias=())),
            ("seeded", SEEDED),
            ("penalised", replace(PENALISED, logit_bias=((28, 1.0),))),
        )
    ]
    plain, drafted = (run(executor, requests, speculation) for speculation in Speculation)
    for request in requests:
        assert_same(plain[request.id], drafted[request.id])
    executor.close()
