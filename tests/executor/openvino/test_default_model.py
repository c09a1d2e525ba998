"""The default model at default settings, near the truth at a few positions of the check set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from executor_steps import log_softmax

from headrace.config import read_environment
from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan
from headrace.executor.openvino.build import build_openvino_executor
from headrace.executor.openvino.options import OpenVinoOptions
from headrace.executor.reference import load_reference
from headrace.model.pull import pull
from headrace.model.registry import resolve
from headrace.types import BlockId, SamplingParams, SequenceId, StepId

CHECK_SET = Path(__file__).parents[3] / "benchmarks" / "accuracy" / "check_set.json"
POSITIONS = 6
NUM_TOP = 20


@pytest.mark.model
def test_the_default_model_is_near_the_truth():
    cache_dir = read_environment().cache_dir
    path = pull(resolve("smollm2-135m-instruct"), cache_dir)
    executor = build_openvino_executor(path, cache_dir, OpenVinoOptions(kv_tokens=4096))
    text = json.loads(CHECK_SET.read_text())[0]
    prompt, continuation = text["prompt"], text["continuation"][:POSITIONS]
    truth = log_softmax(load_reference(path).logits(prompt + continuation)[len(prompt) - 1 :])
    start = SequenceStart(
        sequence=SequenceId(0),
        sampling=SamplingParams(temperature=0, logprobs=NUM_TOP),
        prompt=tuple(prompt),
        output=(),
        min_tokens=0,
        stop_token_ids=(),
    )
    blocks, at = tuple(BlockId(i) for i in range(8)), 0
    for index, chunk in enumerate([prompt, *([token] for token in continuation)]):
        row = Row(SequenceId(0), at, tuple(chunk), blocks, samples=True)
        plan = StepPlan(step_id=StepId(index), rows=(row,), starts=(start,) if index == 0 else ())
        ((_, logprobs),) = executor.execute(plan).logprobs
        at += len(chunk)
        ids, found = zip(*logprobs.top, strict=True)
        expected = truth[index][list(ids)]
        assert np.abs(np.array(found) - expected)[expected > -5].max() < 0.3
        assert truth[index].argmax() in ids[:2]
    executor.close()
