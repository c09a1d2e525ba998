"""ModelSpec: what is understood is read, everything else is refused before a graph is built."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from headrace.errors import ModelFileError
from headrace.model.gguf import GgufFile, read_gguf
from headrace.model.metadata import Metadata, MetadataValue
from headrace.model.spec import Architecture, spec_from_gguf
from headrace.model.tensors import TensorKind
from headrace.testing.tiny_model import write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def llama(tiny_path: Path) -> GgufFile:
    return read_gguf(tiny_path)


def changed(file: GgufFile, **values: MetadataValue | None) -> GgufFile:
    """Return the file with metadata replaced; keys are given with ``__`` for a dot."""
    metadata = dict(file.metadata)
    for name, value in values.items():
        key = name.replace("__", ".")
        if value is None:
            del metadata[key]
        else:
            metadata[key] = value
    return replace(file, metadata=Metadata(metadata, source=str(file.path)))


def refusal(file: GgufFile) -> str:
    with pytest.raises(ModelFileError) as caught:
        spec_from_gguf(file)
    message = str(caught.value)
    assert message.startswith(str(file.path))
    assert "; " in message
    return message


def test_a_llama_is_read(llama: GgufFile):
    spec = spec_from_gguf(llama)
    assert (spec.num_layers, spec.hidden_size, spec.ffn_size) == (2, 64, 128)
    assert (spec.num_heads, spec.num_kv_heads, spec.head_dim) == (4, 2, 16)
    assert (spec.q_size, spec.kv_size) == (64, 32)
    assert (spec.vocab_size, spec.context_length) == (304, 1024)
    assert spec.norm_eps == pytest.approx(1e-5)
    assert spec.rope_theta == 10000
    assert spec.permuted_rope
    assert spec.tied_embeddings
    assert not spec.qkv_bias
    assert not spec.qk_norm
    assert spec.rope_factors is None


@pytest.mark.parametrize(
    ("architecture", "qkv_bias", "qk_norm"), [("qwen2", True, False), ("qwen3", False, True)]
)
def test_a_qwen_is_told_by_its_marks(
    architecture: str, qkv_bias: bool, qk_norm: bool, tmp_path: Path
):
    path = write_tiny_gguf(
        tmp_path / "tiny.gguf",
        architecture=architecture,  # type: ignore[arg-type]
        tied=False,
        head_dim=32,
    )
    spec = spec_from_gguf(read_gguf(path))
    assert spec.architecture is Architecture(architecture)
    assert (spec.qkv_bias, spec.qk_norm) == (qkv_bias, qk_norm)
    assert (spec.permuted_rope, spec.tied_embeddings, spec.head_dim) == (False, False, 32)


def test_rotary_factors_come_from_their_tensor_or_from_linear_scaling(
    llama: GgufFile, tmp_path: Path
):
    path = write_tiny_gguf(tmp_path / "tiny.gguf", rope_factors=True)
    assert spec_from_gguf(read_gguf(path)).rope_factors == (1, 2, 3, 4, 5, 6, 7, 8)
    linear = changed(llama, llama__rope__scaling__type="linear", llama__rope__scaling__factor=4.0)
    assert spec_from_gguf(linear).rope_factors == (4.0,) * 8


def test_a_sliding_window_shortens_the_context_to_where_it_makes_no_difference(llama: GgufFile):
    assert spec_from_gguf(changed(llama, llama__attention__sliding_window=96)).context_length == 96
    assert spec_from_gguf(changed(llama, llama__attention__sliding_window=0)).context_length == 1024


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"split__count": 3}, "split.count is 3: one part of a model"),
        ({"llama__expert_count": 8}, "a mixture of experts"),
        ({"llama__rope__scaling__type": "yarn"}, "rotary scaling 'yarn' is not supported"),
        (
            {"llama__rope__scaling__type": "linear", "llama__rope__scaling__factor": -1.0},
            "rotary scaling factor is not between",
        ),
        ({"llama__block_count": 0}, "llama.block_count is 0, not 1 to"),
        ({"llama__block_count": 2**40}, "llama.block_count is"),
        ({"llama__block_count": None}, "has no 'llama.block_count'"),
        ({"llama__block_count": 3}, "tensor blk.2.attn_norm.weight is missing"),
        ({"llama__block_count": 1}, "'blk.1.attn_k.weight' belongs to no known form"),
        ({"llama__embedding_length": 128}, "has shape (304, 64), not (304, 128)"),
        ({"llama__attention__head_count": 0}, "attention.head_count is 0"),
        ({"llama__attention__head_count": (4, 4)}, "is a list of 2 items, not a whole number"),
        ({"llama__attention__head_count_kv": 3}, "do not share key heads evenly"),
        ({"llama__attention__key_length": 2**40}, "attention.key_length is"),
        ({"llama__attention__key_length": 15}, "the head size is odd"),
        ({"llama__attention__value_length": 8}, "values and keys differ"),
        ({"llama__rope__dimension_count": 8}, "only a part of each head is rotated"),
        ({"llama__attention__layer_norm_rms_epsilon": 0.0}, "epsilon is not between"),
        ({"llama__attention__layer_norm_rms_epsilon": float("nan")}, "not a finite number"),
        ({"llama__rope__freq_base": -1.0}, "the rotary base is not above 0"),
        ({"llama__context_length": 0}, "context_length is 0"),
        ({"tokenizer__ggml__tokens": ("a", "b")}, "2 tokens and 304 embeddings"),
    ],
)
def test_figures_that_do_not_fit_are_refused(
    llama: GgufFile, values: dict[str, MetadataValue | None], problem: str
):
    assert problem in refusal(changed(llama, **values))


def test_another_architecture_is_refused(llama: GgufFile):
    assert "'gpt-oss' is not supported" in refusal(replace(llama, architecture="gpt-oss"))


def test_every_tensor_must_be_there_in_its_shape(llama: GgufFile):
    for name, tensor in llama.tensors.items():
        others = {key: value for key, value in llama.tensors.items() if key != name}
        assert name in refusal(replace(llama, tensors=others))
        odd = replace(tensor, shape=(*tensor.shape, 1))
        assert name in refusal(replace(llama, tensors={**llama.tensors, name: odd}))


def test_a_tensor_that_the_graph_would_leave_out_is_refused(llama: GgufFile):
    extra = replace(llama.tensors["output_norm.weight"], name="blk.0.attn_output.bias")
    tensors = {**llama.tensors, extra.name: extra}
    assert "'blk.0.attn_output.bias' belongs" in refusal(replace(llama, tensors=tensors))


def test_norms_must_not_be_quantised(llama: GgufFile):
    norm = replace(llama.tensors["output_norm.weight"], kind=TensorKind.Q8_0)
    tensors = {**llama.tensors, norm.name: norm}
    assert "output_norm.weight is Q8_0, not F32" in refusal(replace(llama, tensors=tensors))
