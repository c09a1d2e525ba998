"""ModelSpec: what an executor must know of a model before it builds its graph.

The architectures are those that one decoder graph carries: RMS norm, rotary attention with
grouped key/value heads, a gated SiLU feed-forward. A file of another kind, or one whose tensors
do not fit its own figures, is refused here, so that no graph is ever built on a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import numpy as np

from headrace.errors import ModelFileError
from headrace.model.tensors import TensorKind

if TYPE_CHECKING:
    from headrace.model.gguf import GgufFile
    from headrace.model.metadata import Metadata
    from headrace.types import Tokens

MAX_LAYERS = 1024
MAX_WIDTH = 1 << 20  # of any dimension but the vocabulary; the widest published are some 60,000
MAX_CONTEXT = 1 << 24

_UNUSABLE = "use a model of architecture llama, qwen2 or qwen3 in its usual form"


class Architecture(StrEnum):
    """Families of models that are understood, by their name in GGUF files."""

    LLAMA = "llama"  # Llama, SmolLM, Mistral
    QWEN2 = "qwen2"
    QWEN3 = "qwen3"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """A decoder's dimensions and the marks that tell its family.

    ``rope_factors`` divide the rotary frequencies, one for each of the ``head_dim / 2`` of them;
    None is no scaling. With ``permuted_rope`` the rows of the query and key matrices are stored
    for rotation of neighbouring pairs (2i, 2i+1) instead of halves (i, i + head_dim/2).
    """

    architecture: Architecture
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    norm_eps: float
    rope_theta: float
    context_length: Tokens
    vocab_size: int
    rope_factors: tuple[float, ...] | None
    tied_embeddings: bool  # the output matrix is the embedding
    permuted_rope: bool
    qkv_bias: bool
    qk_norm: bool  # queries and keys are normalised per head

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key (or value) heads together."""
        return self.num_kv_heads * self.head_dim


def spec_from_gguf(file: GgufFile) -> ModelSpec:
    """Read a model's dimensions and check every tensor against them. Raises ModelFileError."""
    try:
        architecture = Architecture(file.architecture)
    except ValueError:
        raise ModelFileError(
            f"{file.path}: architecture {file.architecture[:40]!r} is not supported; {_UNUSABLE}"
        ) from None
    _refuse_variants(file.metadata, architecture)
    spec = _read_dimensions(file, architecture)
    _check_dimensions(file, spec)
    _check_tensors(file, spec)
    return replace(spec, rope_factors=_rope_factors(file, spec))


def read_context_length(metadata: Metadata, architecture: str) -> Tokens:
    """Return how many tokens a model takes. Inside a sliding window nothing needs to slide."""
    length = metadata.integer(f"{architecture}.context_length")
    window = metadata.integer(f"{architecture}.attention.sliding_window", 0)
    return min(length, window) if window else length


def tensor_shapes(spec: ModelSpec) -> dict[str, tuple[int, ...]]:
    """Return the name and shape (outputs, inputs) of every tensor that such a model has."""
    hidden, ffn = spec.hidden_size, spec.ffn_size
    layer: dict[str, tuple[int, ...]] = {
        "attn_norm.weight": (hidden,),
        "attn_q.weight": (spec.q_size, hidden),
        "attn_k.weight": (spec.kv_size, hidden),
        "attn_v.weight": (spec.kv_size, hidden),
        "attn_output.weight": (hidden, spec.q_size),
        "ffn_norm.weight": (hidden,),
        "ffn_gate.weight": (ffn, hidden),
        "ffn_up.weight": (ffn, hidden),
        "ffn_down.weight": (hidden, ffn),
    }
    if spec.qkv_bias:
        sizes = {"q": spec.q_size, "k": spec.kv_size, "v": spec.kv_size}
        layer |= {f"attn_{name}.bias": (size,) for name, size in sizes.items()}
    if spec.qk_norm:
        layer |= {f"attn_{name}_norm.weight": (spec.head_dim,) for name in "qk"}
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (spec.vocab_size, hidden)}
    for index in range(spec.num_layers):
        shapes |= {f"blk.{index}.{name}": shape for name, shape in layer.items()}
    shapes["output_norm.weight"] = (hidden,)
    if not spec.tied_embeddings:
        shapes["output.weight"] = (spec.vocab_size, hidden)
    return shapes


def _refuse_variants(metadata: Metadata, architecture: Architecture) -> None:
    """Refuse what would load and then compute something else."""
    prefix = architecture.value
    for key, meaning in (
        ("split.count", "one part of a model split over files"),
        (f"{prefix}.expert_count", "a mixture of experts"),
    ):
        if metadata.integer(key, 0) > 1:
            raise ModelFileError(
                f"{metadata.source}: {key} is {metadata[key]}: {meaning}; {_UNUSABLE}"
            )
    scaling = metadata.text(f"{prefix}.rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise ModelFileError(
            f"{metadata.source}: rotary scaling {scaling[:40]!r} is not supported; {_UNUSABLE}"
        )


def _read_dimensions(file: GgufFile, architecture: Architecture) -> ModelSpec:
    metadata, prefix = file.metadata, architecture.value
    hidden_size = metadata.integer(f"{prefix}.embedding_length")
    num_heads = metadata.integer(f"{prefix}.attention.head_count")
    head_dim = metadata.integer(f"{prefix}.attention.key_length", hidden_size // max(num_heads, 1))
    embedding = file.tensors.get("token_embd.weight")
    return ModelSpec(
        architecture=architecture,
        num_layers=metadata.integer(f"{prefix}.block_count"),
        hidden_size=hidden_size,
        num_heads=num_heads,
        num_kv_heads=metadata.integer(f"{prefix}.attention.head_count_kv", num_heads),
        head_dim=head_dim,
        ffn_size=metadata.integer(f"{prefix}.feed_forward_length"),
        norm_eps=metadata.number(f"{prefix}.attention.layer_norm_rms_epsilon"),
        rope_theta=metadata.number(f"{prefix}.rope.freq_base", 10000.0),
        context_length=read_context_length(metadata, prefix),
        vocab_size=0 if embedding is None else embedding.shape[0],
        rope_factors=None,  # read when the head size is known to be sane
        tied_embeddings="output.weight" not in file.tensors,
        permuted_rope=architecture is Architecture.LLAMA,
        qkv_bias="blk.0.attn_q.bias" in file.tensors,
        qk_norm=architecture is Architecture.QWEN3,
    )


def _rope_factors(file: GgufFile, spec: ModelSpec) -> tuple[float, ...] | None:
    prefix, num_factors = spec.architecture.value, spec.head_dim // 2
    tensor = file.tensors.get("rope_freqs.weight")
    if tensor is not None:
        if tensor.kind is not TensorKind.F32 or tensor.shape != (num_factors,):
            raise ModelFileError(
                f"{file.path}: rope_freqs.weight is {tensor.kind.name} {tensor.shape}, not F32 "
                f"{(num_factors,)}; {_UNUSABLE}"
            )
        factors = tuple(tensor.data.view(np.dtype("<f4")).tolist())
    elif file.metadata.text(f"{prefix}.rope.scaling.type", "none") == "linear":
        factors = (file.metadata.number(f"{prefix}.rope.scaling.factor"),) * num_factors
    else:
        return None
    if not all(0 < factor < 1e6 for factor in factors):
        raise ModelFileError(
            f"{file.path}: a rotary scaling factor is not between 0 and a million; {_UNUSABLE}"
        )
    return factors


def _check_dimensions(file: GgufFile, spec: ModelSpec) -> None:
    prefix = spec.architecture.value
    ranges = {
        "block_count": (spec.num_layers, MAX_LAYERS),
        "embedding_length": (spec.hidden_size, MAX_WIDTH),
        "attention.head_count": (spec.num_heads, MAX_WIDTH),
        "attention.head_count_kv": (spec.num_kv_heads, MAX_WIDTH),
        "attention.key_length": (spec.head_dim, MAX_WIDTH),
        "feed_forward_length": (spec.ffn_size, MAX_WIDTH),
        "context_length": (spec.context_length, MAX_CONTEXT),
    }
    for key, (value, limit) in ranges.items():
        if not 1 <= value <= limit:
            raise ModelFileError(
                f"{file.path}: {prefix}.{key} is {value}, not 1 to {limit}; {_UNUSABLE}"
            )
    metadata = file.metadata
    value_length = metadata.integer(f"{prefix}.attention.value_length", spec.head_dim)
    rotated = metadata.integer(f"{prefix}.rope.dimension_count", spec.head_dim)
    for holds, what in (
        (spec.num_heads % spec.num_kv_heads == 0, "query heads do not share key heads evenly"),
        (spec.head_dim % 2 == 0, "the head size is odd"),
        (value_length == spec.head_dim, "values and keys differ in size"),
        (rotated == spec.head_dim, "only a part of each head is rotated"),
        (0 < spec.norm_eps < 1, "the norm's epsilon is not between 0 and 1"),
        (spec.rope_theta > 0, "the rotary base is not above 0"),
    ):
        if not holds:
            raise ModelFileError(f"{file.path}: {what}; {_UNUSABLE}")


def _check_tensors(file: GgufFile, spec: ModelSpec) -> None:
    shapes = tensor_shapes(spec)
    for name, shape in shapes.items():
        tensor = file.tensors.get(name)
        if tensor is None:
            raise ModelFileError(f"{file.path}: tensor {name} is missing; {_UNUSABLE}")
        if tensor.shape != shape:
            raise ModelFileError(
                f"{file.path}: tensor {name} has shape {tensor.shape}, not {shape}; {_UNUSABLE}"
            )
        if len(shape) == 1 and tensor.kind is not TensorKind.F32:
            raise ModelFileError(
                f"{file.path}: tensor {name} is {tensor.kind.name}, not F32; {_UNUSABLE}"
            )
    # A tensor that the graph would not use means that the model computes something else.
    unused = sorted(file.tensors.keys() - shapes.keys() - {"rope_freqs.weight"})
    if unused:
        raise ModelFileError(
            f"{file.path}: tensor {unused[0][:60]!r} belongs to no known form of "
            f"{spec.architecture}; {_UNUSABLE}"
        )
    num_tokens = len(file.metadata.strings("tokenizer.ggml.tokens"))
    if num_tokens != spec.vocab_size:
        raise ModelFileError(
            f"{file.path}: {num_tokens} tokens and {spec.vocab_size} embeddings; {_UNUSABLE}"
        )
