"""A model's directory as far as a gateway reads it: a tokenizer of whole words, and a template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, models, pre_tokenizers, processors

if TYPE_CHECKING:
    from pathlib import Path

MARKS = ("<s>", "<|im_start|>", "<|im_end|>")
_NUM_WORDS = 64
TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' + message['content']"
    " + '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}"
    "{% endif %}"
)


def words(*numbers: int) -> str:
    """Return a text of one token for each number below 64."""
    return " ".join(f"w{number}" for number in numbers)


def write_tokenizer(directory: Path, *, template: str | None = TEMPLATE) -> Path:
    """Write ``tokenizer.json`` and its configuration there, and return the directory."""
    named = ("[UNK]", *MARKS, "system", "user", "assistant")
    every = (*named, *(f"w{number}" for number in range(_NUM_WORDS)))
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(every)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.add_special_tokens(list(MARKS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": {"content": "<s>"}, "eos_token": None}
    if template is not None:
        config["chat_template"] = template  # type: ignore[assignment]
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory
