"""The numpy truth's own checks: what must hold of any such decoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from headrace.executor.reference import load_reference
from headrace.testing.tiny_model import VOCABULARY, write_tiny_gguf

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = [5, 9, 250, 7, 7, 300, 1]


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_a_token_sees_those_before_it_and_none_after(architecture: str, tmp_path: Path):
    reference = load_reference(write_tiny_gguf(tmp_path / "t.gguf", architecture=architecture))
    whole = reference.logits(TOKENS)
    assert whole.shape == (len(TOKENS), len(VOCABULARY))
    assert np.allclose(reference.logits(TOKENS[:4]), whole[:4], atol=1e-4)
    other = reference.logits([6, *TOKENS[1:]])
    assert np.abs(other[-1] - whole[-1]).max() > 0.01


def test_order_matters(tmp_path: Path):
    reference = load_reference(write_tiny_gguf(tmp_path / "t.gguf"))
    swapped = [TOKENS[1], TOKENS[0], *TOKENS[2:]]
    assert np.abs(reference.logits(swapped)[-1] - reference.logits(TOKENS)[-1]).max() > 1e-3


def test_rotary_factors_are_used(tmp_path: Path):
    plain = load_reference(write_tiny_gguf(tmp_path / "a.gguf")).logits(TOKENS)
    scaled = load_reference(write_tiny_gguf(tmp_path / "b.gguf", rope_factors=True)).logits(TOKENS)
    assert np.abs(plain[0] - scaled[0]).max() < 1e-4  # at position 0 nothing is rotated
    assert np.abs(plain[-1] - scaled[-1]).max() > 1e-3
