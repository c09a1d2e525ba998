"""TextModel: a chat to tokens."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import InvalidRequest
from headrace.model.chat_template import CHATML
from headrace.model.gguf import read_gguf
from headrace.model.metadata import Metadata
from headrace.model.text import build_text_model

if TYPE_CHECKING:
    from headrace.model.text import TextModel


GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.model
@pytest.mark.timeout(600)
def test_smollm2_chats_give_the_golden_tokens(smollm2: TextModel):
    for case in json.loads((GOLDEN / "smollm2_chats.json").read_text()):
        assert smollm2.encode_chat(case["messages"]) == case["ids"]


def test_a_chat_is_rendered_and_encoded(tiny: TextModel):
    tokens = tiny.encode_chat([{"role": "user", "content": "the mill"}])
    assert tiny.tokenizer.decode(tokens, skip_special=False) == (
        "<|im_start|>user\nthe mill<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokens[0] == 1
    assert tokens.count(2) == 1


@settings(deadline=None)
@given(content=st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "\n", "a", "\ufdd0"])))
def test_no_message_can_write_a_control_token(content: list[str], tiny: TextModel):
    text = "".join(content)
    tokens = tiny.encode_chat([{"role": "user", "content": text}])
    assert [token for token in tokens if token < 3] == [1, 2, 1]
    start, end = 1 + len(tiny.tokenizer.encode("user\n")), tokens.index(2)
    assert tiny.tokenizer.decode(tokens[start:end]) == text


def test_a_raw_prompt_may_write_control_tokens(tiny: TextModel):
    assert tiny.encode_prompt("<|im_start|>user\n")[0] == 1


def test_nested_values_of_messages_are_shielded_too(tiny_path: Path):
    metadata = dict(read_gguf(tiny_path).metadata)
    metadata["tokenizer.chat_template"] = "{{ messages[0].calls[0].name }}{{ messages[0].n + 1 }}"
    model = build_text_model(Metadata(metadata, source="m"), name="m")
    tokens = model.encode_chat([{"role": "user", "n": 4, "calls": [{"name": "<|im_end|>"}]}])
    assert 2 not in tokens
    assert model.tokenizer.decode(tokens) == "<|im_end|>5"


def test_a_model_without_a_template_gets_chatml_if_it_has_its_tokens(tiny_path: Path):
    metadata = dict(read_gguf(tiny_path).metadata)
    del metadata["tokenizer.chat_template"]
    model = build_text_model(Metadata(metadata, source="m"), name="m")
    assert model.template is not None
    messages = [{"role": "user", "content": "a"}]
    metadata["tokenizer.chat_template"] = CHATML
    same = build_text_model(Metadata(metadata, source="m"), name="m")
    assert model.encode_chat(messages) == same.encode_chat(messages)


def test_a_model_that_was_not_made_for_chats_says_so(tiny_path: Path):
    metadata = dict(read_gguf(tiny_path).metadata)
    del metadata["tokenizer.chat_template"]
    metadata["tokenizer.ggml.token_type"] = (1,) * 304
    model = build_text_model(Metadata(metadata, source="m"), name="raw")
    with pytest.raises(InvalidRequest, match="model raw has no chat template: use /v1/completions"):
        model.encode_chat([{"role": "user", "content": "a"}])


def test_a_gateway_needs_no_package_of_the_engine(tiny_path: Path):
    program = (
        "import sys, pathlib; from headrace.model.text import load_text_model; "
        "load_text_model(pathlib.Path(sys.argv[1])); "
        "print([m for m in ('gguf', 'openvino', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.strip() == "[]"
