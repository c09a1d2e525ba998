"""Capacity: how many KV blocks fit, and what is said when the model does not."""

from __future__ import annotations

import pytest

from headrace.core.costs.roofline import Deployment, Precision
from headrace.errors import ModelTooLarge, UsageError
from headrace.twin.capacity import executor_spec
from headrace.twin.hardware import GPUS
from headrace.twin.models import MODELS
from headrace.twin.names import look_up


def deployment(model: str, gpu: str, tp: int = 1) -> Deployment:
    return Deployment(model=MODELS[model], gpu=GPUS[gpu], tp=tp)


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        ("llama-3.1-8b", 8.03),
        ("llama-3.1-70b", 70.6),
        ("qwen2.5-7b", 7.62),
        ("qwen3-32b", 32.8),
        ("mistral-7b", 7.25),
        ("smollm2-135m", 0.135),
    ],
)
def test_shapes_have_the_weights_that_publishers_tell(name: str, billions: float):
    assert MODELS[name].weights / 1e9 == pytest.approx(billions, rel=0.005)


def test_what_is_left_of_the_memory_holds_keys_and_values():
    spec = executor_spec(deployment("llama-3.1-8b", "h100"), block_size=16, max_step_tokens=8192)
    left = 80e9 * 0.9 - 2e9 - 8.03e9 * 2 - 2 * 6 * 14336 * 8192
    assert spec.num_blocks * 16 == pytest.approx(left / 131072, rel=0.01)
    assert spec.max_model_len == 131072


def test_a_model_that_does_not_fit_is_an_error_that_says_what_would():
    with pytest.raises(ModelTooLarge, match=r"141 GB.*does not fit 1 x h100.*--tp 4 would fit"):
        executor_spec(deployment("llama-3.1-70b", "h100"), block_size=16, max_step_tokens=8192)
    with pytest.raises(ModelTooLarge, match=r"--tp 8 would fit"):
        executor_spec(deployment("llama-3.1-70b", "l4", 2), block_size=16, max_step_tokens=8192)
    eight_bit = Deployment(model=MODELS["llama-3.1-70b"], gpu=GPUS["h100"], precision=Precision.FP8)
    with pytest.raises(ModelTooLarge, match=r"--tp 2 would fit"):
        executor_spec(eight_bit, block_size=16, max_step_tokens=8192)


def test_an_unknown_name_is_answered_with_near_ones():
    with pytest.raises(UsageError, match=r"unknown GPU 'h1000': did you mean .*h100"):
        look_up("GPU", "h1000", GPUS)
    with pytest.raises(UsageError, match=r"known are llama-3.1-8b, "):
        look_up("model", "zzz", MODELS)
    assert look_up("model", "Llama-3.1-8B", MODELS).layers == 32
