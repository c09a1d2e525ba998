"""Models that the twin knows: shapes from the ``config.json`` that each publisher gives."""

from __future__ import annotations

from headrace.core.costs.roofline import ModelShape

_MODELS = (
    ModelShape(  # meta-llama/Llama-3.1-8B
        name="llama-3.1-8b",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14336,
        vocab=128256,
        context=131072,
    ),
    ModelShape(  # meta-llama/Llama-3.1-70B
        name="llama-3.1-70b",
        layers=80,
        hidden=8192,
        heads=64,
        kv_heads=8,
        head_dim=128,
        ffn=28672,
        vocab=128256,
        context=131072,
    ),
    ModelShape(  # Qwen/Qwen2.5-7B
        name="qwen2.5-7b",
        layers=28,
        hidden=3584,
        heads=28,
        kv_heads=4,
        head_dim=128,
        ffn=18944,
        vocab=152064,
        context=131072,
    ),
    ModelShape(  # Qwen/Qwen3-32B
        name="qwen3-32b",
        layers=64,
        hidden=5120,
        heads=64,
        kv_heads=8,
        head_dim=128,
        ffn=25600,
        vocab=151936,
        context=40960,
    ),
    ModelShape(  # mistralai/Mistral-7B-v0.3
        name="mistral-7b",
        layers=32,
        hidden=4096,
        heads=32,
        kv_heads=8,
        head_dim=128,
        ffn=14336,
        vocab=32768,
        context=32768,
    ),
    ModelShape(  # HuggingFaceTB/SmolLM2-135M
        name="smollm2-135m",
        layers=30,
        hidden=576,
        heads=9,
        kv_heads=3,
        head_dim=64,
        ffn=1536,
        vocab=49152,
        context=8192,
        tied=True,
    ),
)

MODELS = {model.name: model for model in _MODELS}
