"""Prompts: exact lengths, seeded, and files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.bench.prompts import english, guess_tokens, read_prompts, reference, synthetic
from headrace.errors import UsageError

if TYPE_CHECKING:
    from pathlib import Path


def count_words(text: str) -> int:
    return len(text.split())


@given(st.integers(0, 2**32), st.integers(12, 300))
def test_a_text_has_the_length_that_was_asked_for(seed: int, tokens: int):
    rng = np.random.default_rng(seed)
    text = english(
        rng, tokens=tokens, count=count_words, head=reference(rng), tail=" Why is it so?"
    )
    assert count_words(text) == tokens
    assert text.endswith(" Why is it so?")


def test_a_guess_comes_near_the_length():
    [prompt] = synthetic(np.random.default_rng(1), number=1, tokens=100, count=guess_tokens)
    assert abs(guess_tokens(prompt.prompt or "") - 100) <= 1


def test_the_seed_decides_and_no_two_prompts_start_alike():
    def make(seed: int) -> list[str | None]:
        rng = np.random.default_rng(seed)
        return [p.prompt for p in synthetic(rng, number=50, tokens=40, count=guess_tokens)]

    assert make(1) == make(1)
    starts = {(prompt or "")[:9] for prompt in make(1) + make(2)}
    assert len(starts) == 100


def test_too_long_a_head_is_refused():
    with pytest.raises(ValueError, match="too few"):
        english(np.random.default_rng(0), tokens=2, count=count_words, head="a b c")


def test_a_prompt_file_holds_texts_and_messages(tmp_path: Path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "Hello", "max_tokens": 3}\n\n'
        '{"messages": [{"role": "user", "content": "Hi"}]}\n'
    )
    first, second = read_prompts(str(path))
    assert (first.content(), first.max_tokens) == ("Hello", 3)
    assert second.content() == [("user", "Hi")]


@pytest.mark.parametrize(
    "line", ["{", '{"text": "x"}', "{}", '{"prompt": "x", "messages": []}', '{"prompt": 3}']
)
def test_a_bad_line_is_named(tmp_path: Path, line: str):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "fine"}\n' + line)
    with pytest.raises(UsageError, match="line 2"):
        read_prompts(str(path))


def test_a_missing_or_empty_file_is_a_usage_error(tmp_path: Path):
    with pytest.raises(UsageError, match="No such file"):
        read_prompts(str(tmp_path / "none"))
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(UsageError, match="no prompt"):
        read_prompts(str(tmp_path / "empty"))
