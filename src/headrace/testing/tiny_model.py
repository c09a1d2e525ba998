"""Tiny random models in real files: what tests of the executor and of whole servers run on.

The text they write is nonsense, but everything about them is real: a GGUF file with a byte-level
tokenizer, a chat template, and weights quantised as published models are. Needs ``gguf``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np

from headrace.model.byte_level import BYTE_TO_CHAR
from headrace.model.spec import Architecture, ModelSpec, tensor_shapes
from headrace.model.tensors import TensorKind

if TYPE_CHECKING:
    from pathlib import Path

    import gguf
    import numpy.typing as npt

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
BOS_ID = 1
EOS_ID = 2
MERGES = (
    "Ġ t", "h e", "Ġ a", "i n", "r e", "Ġt he", "o n", "Ġ s", "e r", "a t", "o u", "Ġ w",
    "n d", "l l", "Ġ h", "e n", "i s", "o r", "in g", "Ġa nd", "Ġ o", "e d", "Ġ c", "Ġ f",
    "u s", "e s", "Ġ b", "a n", "Ġ m", "i t", "a r", "l e", "Ġ p", "o w", "Ġ in", "Ġt o",
    "m e", "Ġ l", "a l", "Ġ n", "v e", "Ġo f", "Ġ d", "s t", "Ġ is",
)  # fmt: skip
VOCABULARY = (
    *SPECIAL_TOKENS,
    *(BYTE_TO_CHAR[byte] for byte in range(256)),
    *(merge.replace(" ", "") for merge in MERGES),
)
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n'"
    " + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CONTEXT_LENGTH = 1024
_NORMAL, _CONTROL = 1, 3  # GGUF token types


def write_tiny_gguf(
    path: Path,
    *,
    architecture: Literal["llama", "qwen2", "qwen3"] = "llama",
    seed: int = 0,
    matrix_kind: TensorKind = TensorKind.Q4_1,
    embedding_kind: TensorKind = TensorKind.Q8_0,
    num_layers: int = 2,
    head_dim: int = 16,
    tied: bool = True,
    rope_factors: bool = False,
) -> Path:
    """Write a random model to ``path`` and return it; the same arguments give the same bytes.

    It has 304 tokens, hidden size 64, 4 query and 2 key/value heads and a feed-forward size of
    128. With ``tied`` the output matrix is the embedding; with ``rope_factors`` the file scales
    its rotary frequencies as Llama 3 does.
    """
    import gguf

    spec = ModelSpec(
        architecture=Architecture(architecture),
        num_layers=num_layers,
        hidden_size=64,
        num_heads=4,
        num_kv_heads=2,
        head_dim=head_dim,
        ffn_size=128,
        norm_eps=1e-5,
        rope_theta=10000.0,
        context_length=CONTEXT_LENGTH,
        vocab_size=len(VOCABULARY),
        rope_factors=None,
        tied_embeddings=tied,
        permuted_rope=architecture == "llama",
        qkv_bias=architecture == "qwen2",
        qk_norm=architecture == "qwen3",
    )
    shapes = tensor_shapes(spec)
    if rope_factors:
        shapes["rope_freqs.weight"] = (head_dim // 2,)
    writer = gguf.GGUFWriter(path, architecture)
    _add_dimensions(writer, spec)
    _add_tokenizer(writer)
    rng = np.random.default_rng(seed)
    for name, shape in shapes.items():
        kind = matrix_kind if len(shape) == 2 else TensorKind.F32
        if name in ("token_embd.weight", "output.weight"):
            kind = embedding_kind
        raw_kind = gguf.GGMLQuantizationType(kind)
        values = gguf.quants.quantize(_random_values(rng, name, shape), raw_kind)
        writer.add_tensor(name, values, raw_dtype=raw_kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_dimensions(writer: gguf.GGUFWriter, spec: ModelSpec) -> None:
    writer.add_name(f"tiny-{spec.architecture}")
    writer.add_block_count(spec.num_layers)
    writer.add_context_length(spec.context_length)
    writer.add_embedding_length(spec.hidden_size)
    writer.add_feed_forward_length(spec.ffn_size)
    writer.add_head_count(spec.num_heads)
    writer.add_head_count_kv(spec.num_kv_heads)
    writer.add_key_length(spec.head_dim)
    writer.add_value_length(spec.head_dim)
    writer.add_rope_dimension_count(spec.head_dim)
    writer.add_rope_freq_base(spec.rope_theta)
    writer.add_layer_norm_rms_eps(spec.norm_eps)
    writer.add_vocab_size(spec.vocab_size)


def _add_tokenizer(writer: gguf.GGUFWriter) -> None:
    num_special = len(SPECIAL_TOKENS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(list(VOCABULARY))
    writer.add_token_types([_CONTROL] * num_special + [_NORMAL] * (len(VOCABULARY) - num_special))
    writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(BOS_ID)
    writer.add_eos_token_id(EOS_ID)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _random_values(
    rng: np.random.Generator, name: str, shape: tuple[int, ...]
) -> npt.NDArray[np.float32]:
    """Draw values so large that layers matter beside the residual, and logits spread by some 5."""
    noise = rng.standard_normal(shape, dtype=np.float32)
    if name == "rope_freqs.weight":
        return np.linspace(1, 8, shape[0], dtype=np.float32)
    if "norm" in name:
        return 1 + noise * np.float32(0.1)
    if name.endswith(".bias"):
        return noise * np.float32(0.2)
    if name == "token_embd.weight":
        return noise * np.float32(0.6)
    return noise * np.float32(2 / np.sqrt(shape[-1]))
