"""Write a Hugging Face directory of float weights from a Llama GGUF, for peers that read no GGUF.

    python export_hf.py MODEL.gguf OUT_DIR

Writes config.json, tokenizer.json, tokenizer_config.json, chat_template.jinja and
model.safetensors (float32: the peer casts as its own flags say). Needs numpy, gguf, tokenizers.

A Llama GGUF stores the rows of q and k for RoPE on neighbouring pairs; Hugging Face models
rotate halves, so those rows are put back. The tokenizer is byte-level BPE of the SmolLM kind
(digits apart); other kinds are refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TypeAlias

import numpy as np
from gguf import GGUFReader
from gguf.quants import dequantize
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

Floats: TypeAlias = NDArray[np.float32]
CONTROL_TOKEN = 3  # GGUF's token type for tokens that are never split and never shown

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
TOP_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}


class Source:
    """A GGUF file of architecture ``llama``."""

    def __init__(self, path: str) -> None:
        self._reader = GGUFReader(path)
        if self.text("general.architecture") != "llama":
            raise SystemExit(f"{path}: only architecture llama can be exported")

    def text(self, key: str) -> str:
        return str(self._reader.fields[key].contents())

    def number(self, key: str) -> float:
        return float(self._reader.fields[f"llama.{key}"].contents())

    def token_id(self, name: str) -> int:
        return int(self._reader.fields[f"tokenizer.ggml.{name}"].contents())

    def strings(self, key: str) -> list[str]:
        return [str(item) for item in self._reader.fields[key].contents()]

    def numbers(self, key: str) -> list[int]:
        return [int(item) for item in self._reader.fields[key].contents()]

    def tensors(self) -> dict[str, Floats]:
        """Every tensor under its Hugging Face name, dequantised."""
        heads, kv_heads = self.head_counts()
        out: dict[str, Floats] = {}
        for tensor in self._reader.tensors:
            shape = [int(n) for n in reversed(tensor.shape)]
            flat = dequantize(tensor.data, tensor.tensor_type)
            weights: Floats = np.asarray(flat, dtype=np.float32).reshape(shape)
            if tensor.name.endswith("attn_q.weight"):
                weights = halves_from_pairs(weights, heads)
            elif tensor.name.endswith("attn_k.weight"):
                weights = halves_from_pairs(weights, kv_heads)
            out[hugging_face_name(tensor.name)] = np.ascontiguousarray(weights)
        return out

    def head_counts(self) -> tuple[int, int]:
        return int(self.number("attention.head_count")), int(self.number("attention.head_count_kv"))


def halves_from_pairs(weights: Floats, heads: int) -> Floats:
    """Reorder each head's rows from (x0 y0 x1 y1 ..) to (x0 x1 .. y0 y1 ..)."""
    out_rows, width = weights.shape
    paired = weights.reshape(heads, out_rows // heads // 2, 2, width)
    return paired.transpose(0, 2, 1, 3).reshape(out_rows, width)


def hugging_face_name(name: str) -> str:
    if name in TOP_NAMES:
        return TOP_NAMES[name]
    _, layer, part, _ = name.split(".")
    return f"model.layers.{layer}.{LAYER_NAMES[part]}.weight"


def write_safetensors(path: Path, tensors: dict[str, Floats]) -> None:
    """The format is: u64 header length, JSON header, raw little-endian data."""
    header: dict[str, dict[str, object]] = {}
    offset = 0
    for name, weights in tensors.items():
        end = offset + weights.nbytes
        header[name] = {
            "dtype": "F32",
            "shape": list(weights.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    head = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for weights in tensors.values():
            file.write(weights.astype("<f4").tobytes())


def model_config(source: Source, *, vocab: int, tied: bool) -> dict[str, object]:
    heads, kv_heads = source.head_counts()
    hidden = int(source.number("embedding_length"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": hidden,
        "intermediate_size": int(source.number("feed_forward_length")),
        "num_hidden_layers": int(source.number("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": hidden // heads,
        "max_position_embeddings": int(source.number("context_length")),
        "rms_norm_eps": source.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": source.number("rope.freq_base"),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "bos_token_id": source.token_id("bos_token_id"),
        "eos_token_id": source.token_id("eos_token_id"),
    }


def build_tokenizer(source: Source) -> Tokenizer:
    if source.text("tokenizer.ggml.pre") != "smollm":
        raise SystemExit("only SmolLM's tokenizer can be exported")
    tokens = source.strings("tokenizer.ggml.tokens")
    merges: list[tuple[str, str]] = []
    for pair in source.strings("tokenizer.ggml.merges"):
        left, _, right = pair.partition(" ")
        merges.append((left, right))
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = source.numbers("tokenizer.ggml.token_type")
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in control])
    return tokenizer


def export(path: str, out: Path) -> None:
    source = Source(path)
    out.mkdir(parents=True, exist_ok=True)
    tensors = source.tensors()
    tokens = source.strings("tokenizer.ggml.tokens")
    config = model_config(source, vocab=len(tokens), tied="lm_head.weight" not in tensors)
    template = source.text("tokenizer.chat_template")
    names = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[source.token_id("bos_token_id")],
        "eos_token": tokens[source.token_id("eos_token_id")],
        "model_max_length": config["max_position_embeddings"],
        "chat_template": template,
    }
    write_safetensors(out / "model.safetensors", tensors)
    (out / "config.json").write_text(json.dumps(config, indent=1))
    (out / "tokenizer_config.json").write_text(json.dumps(names, indent=1))
    (out / "chat_template.jinja").write_text(template)
    build_tokenizer(source).save(str(out / "tokenizer.json"))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    export(sys.argv[1], Path(sys.argv[2]))
