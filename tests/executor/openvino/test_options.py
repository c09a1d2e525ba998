"""What is chosen when nobody says, and what is refused."""

from __future__ import annotations

import pytest

from headrace.errors import ConfigError
from headrace.executor.openvino.cpu import Cpu, Precision
from headrace.executor.openvino.options import KvPrecision, OpenVinoOptions, choose
from headrace.executor.openvino.weights import WeightForm

AMX = Cpu(bf16=True, amx=True, num_cores=8)
OLD = Cpu(bf16=False, amx=False, num_cores=4)


def test_bf16_is_chosen_only_where_the_hardware_has_it():
    assert choose(OpenVinoOptions(), AMX, 4096).precision is Precision.BF16
    assert choose(OpenVinoOptions(), OLD, 4096).precision is Precision.F32


def test_what_is_asked_for_is_taken():
    asked = OpenVinoOptions(
        max_model_len=100,
        precision=Precision.F32,
        kv_precision=KvPrecision.F32,
        weight_forms=(WeightForm.DENSE,),
        num_threads=3,
    )
    choice = choose(asked, AMX, 4096)
    assert choice.precision is Precision.F32
    assert choice.kv_precision is KvPrecision.F32
    assert choice.weight_forms == (WeightForm.DENSE,)
    assert (choice.max_model_len, choice.num_threads) == (100, 3)


def test_the_context_is_the_models_unless_a_shorter_one_is_asked_for():
    assert choose(OpenVinoOptions(), OLD, 4096).max_model_len == 4096
    with pytest.raises(ConfigError, match="context of 4096 tokens"):
        choose(OpenVinoOptions(max_model_len=4097), OLD, 4096)


def test_bf16_on_a_processor_without_it_is_refused():
    with pytest.raises(ConfigError, match="no bf16"):
        choose(OpenVinoOptions(precision=Precision.BF16), OLD, 4096)


def test_whatever_changes_results_changes_the_name_of_the_arithmetic():
    names = {
        choose(options, AMX, 4096).arithmetic
        for options in (
            OpenVinoOptions(),
            OpenVinoOptions(precision=Precision.F32),
            OpenVinoOptions(kv_precision=KvPrecision.F32),
            OpenVinoOptions(weight_forms=(WeightForm.DENSE,)),
            OpenVinoOptions(dynamic_quantization=32),
        )
    }
    assert len(names) == 5


def test_int8_weights_come_with_rounded_inputs_unless_told_otherwise():
    cpu = Cpu(bf16=True, amx=False, num_cores=2)
    forms = (WeightForm.INT8,)
    assert choose(OpenVinoOptions(), cpu, 100).dynamic_quantization == 0
    assert choose(OpenVinoOptions(weight_forms=forms), cpu, 100).dynamic_quantization == 32
    off = OpenVinoOptions(weight_forms=forms, dynamic_quantization=0)
    assert choose(off, cpu, 100).dynamic_quantization == 0
