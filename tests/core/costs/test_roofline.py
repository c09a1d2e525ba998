"""Roofline: against numbers worked out by hand, and its monotony."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.costs.roofline import (
    Deployment,
    Efficiency,
    Gpu,
    ModelShape,
    Precision,
    StepWork,
)

IDEAL = Efficiency(
    compute=1.0,
    bandwidth=1.0,
    attention_compute=1.0,
    attention_bandwidth=1.0,
    link=1.0,
    step_seconds=0.0,
    sequence_seconds=0.0,
    layer_seconds=0.0,
    all_reduce_seconds=0.0,
)
GPU = Gpu(
    name="round",
    memory_bytes=80e9,
    bandwidth=1e12,
    bf16_flops=1e15,
    fp8_flops=2e15,
    link_bandwidth=1e11,
)
MODEL = ModelShape(
    name="small",
    layers=10,
    hidden=1000,
    heads=10,
    kv_heads=2,
    head_dim=100,
    ffn=3000,
    vocab=50_000,
    context=4096,
)
DEPLOYMENT = Deployment(model=MODEL, gpu=GPU, efficiency=IDEAL)
NOTHING = StepWork(0, 0, 0, 0, 0, 0)


def test_sizes_are_those_of_the_matrices():
    # q and o: 1000 x 1000 each; k and v: 1000 x 200 each; three of 1000 x 3000; ten layers
    assert MODEL.linear_weights == 10 * (2 * 1_000_000 + 2 * 200_000 + 3 * 3_000_000) == 114_000_000
    assert MODEL.logits_weights == 50_000_000
    assert MODEL.weights == 214_000_000
    assert replace(MODEL, tied=True).weights == 164_000_000
    assert MODEL.kv_bytes == 2 * 10 * 2 * 100 * 2  # k and v, layers, heads, elements, 16 bits


def test_a_decode_takes_the_time_to_read_weights_keys_and_values():
    step = DEPLOYMENT.step_time()
    seconds = step.of(StepWork(1, 1, 0, 0, 1000, 1))
    weights = (114e6 + 50e6) * 2 / 1e12
    cache = 1000 * 8000 / 1e12
    assert seconds == pytest.approx(weights + cache)


def test_a_long_prompt_takes_the_time_to_compute_it():
    step = DEPLOYMENT.step_time()
    tokens = 4000
    pairs = tokens * (tokens + 1) // 2
    seconds = step.of(StepWork(tokens, 1, pairs, tokens, 0, 1))
    linear = 2 * 114e6 * tokens / 1e15
    attention = 4 * 10 * 100 * 10 * pairs / 1e15
    logits = 50e6 * 2 / 1e12
    assert seconds == pytest.approx(linear + attention + logits)


def test_a_group_of_gpus_shares_the_work_and_pays_for_its_all_reduces():
    efficiency = replace(IDEAL, all_reduce_seconds=5e-6)
    step = replace(DEPLOYMENT, tp=2, efficiency=efficiency).step_time()
    tokens = 4000
    seconds = step.of(StepWork(tokens, 1, 0, 0, 0, 0))
    linear = 2 * 114e6 * tokens / 1e15 / 2
    reduces = 20 * (5e-6 + tokens * 1000 * 2 / 1e11)  # two a layer; ring over two: all bytes once
    assert seconds == pytest.approx(linear + reduces)


def test_overheads_come_on_top():
    efficiency = replace(IDEAL, step_seconds=0.001, sequence_seconds=1e-5, layer_seconds=1e-6)
    step = replace(DEPLOYMENT, efficiency=efficiency).step_time()
    plain = DEPLOYMENT.step_time()
    work = StepWork(8, 8, 0, 0, 800, 8)
    assert step.of(work) - plain.of(work) == pytest.approx(0.001 + 8e-5 + 10e-6)


def test_eight_bit_weights_are_read_in_half_the_time():
    half = replace(DEPLOYMENT, precision=Precision.FP8).step_time().of(StepWork(1, 1, 0, 0, 0, 1))
    assert half == pytest.approx(DEPLOYMENT.step_time().of(StepWork(1, 1, 0, 0, 0, 1)) / 2)
    old = replace(GPU, fp8_flops=0)
    assert old.flops(Precision.FP8) == old.bf16_flops


@given(
    work=st.tuples(*[st.integers(0, 10_000)] * 6),
    more=st.tuples(*[st.integers(0, 10_000)] * 6),
    tp=st.sampled_from([1, 2, 8]),
)
def test_more_work_never_takes_less_time(
    work: tuple[int, ...], more: tuple[int, ...], tp: int
) -> None:
    step = Deployment(model=MODEL, gpu=GPU, tp=tp).step_time()
    larger = [a + b for a, b in zip(work, more, strict=True)]
    assert step.of(StepWork(*larger)) >= step.of(StepWork(*work)) >= step.of(NOTHING)
