"""The tokens that another server makes of a prompt, from the tokenizer of its model.

Unlike text.py this does as servers do that take the model's files as they are (vLLM, SGLang):
names of control tokens count wherever they stand, and the special tokens of ``tokenizer.json`` are
put round a text that is no chat. It is good for knowing what such a server has cached, not for
prompts of our own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec
import tokenizers

from headrace.clock import unix_time
from headrace.errors import InvalidRequest, ModelFileError
from headrace.model.chat_template import ChatTemplate
from headrace.model.text import load_text_model

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from headrace.model.chat_template import Message
    from headrace.types import TokenId

TOKENIZER_FILE = "tokenizer.json"
_CONFIG_FILE = "tokenizer_config.json"
_TEMPLATE_FILE = "chat_template.jinja"
_MAX_FILE_BYTES = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerWords:
    """One model's words. ``encode`` takes a text, and whether special tokens go round it."""

    name: str
    encode: Callable[[str, bool], list[TokenId]]
    template: ChatTemplate | None

    def chat(self, messages: Sequence[Message], tools: Sequence[Message] = ()) -> list[TokenId]:
        """Return the tokens of a chat. Raises InvalidRequest."""
        if self.template is None:
            raise InvalidRequest(f"{self.name} has no chat template")
        return self.encode(self.template.render(messages, tools=tools), False)

    def text(self, text: str) -> list[TokenId]:
        """Return the tokens of a text. Raises InvalidRequest."""
        return self.encode(text, True)


class _Template(msgspec.Struct):
    name: str
    template: str


class _TokenText(msgspec.Struct):
    content: str


class _Config(msgspec.Struct):
    chat_template: str | list[_Template] | None = None
    bos_token: str | _TokenText | None = None
    eos_token: str | _TokenText | None = None

    def template(self) -> str | None:
        """Return the template that is used unless another is named."""
        if isinstance(self.chat_template, list):
            named = {each.name: each.template for each in self.chat_template}
            return named.get("default")
        return self.chat_template


def load_server_words(path: Path) -> ServerWords:
    """Read a model's directory, its ``tokenizer.json``, or a GGUF file. Raises ModelFileError."""
    if path.is_dir():
        return _from_directory(path / TOKENIZER_FILE)
    if path.suffix.lower() != ".gguf":
        return _from_directory(path)
    model = load_text_model(path)
    tokenizer = model.tokenizer

    def encode(text: str, special: bool) -> list[TokenId]:
        return tokenizer.encode(text, parse_special=True, add_bos=special)

    return ServerWords(name=model.name, encode=encode, template=model.template)


def _from_directory(path: Path) -> ServerWords:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(_read(path))
    except ModelFileError:
        raise
    except Exception as error:  # the library has no narrower one
        raise ModelFileError(
            f"{path} is no tokenizer: {str(error)[:200]}; name a model's directory, its "
            f"{TOKENIZER_FILE}, or a GGUF file"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def encode(text: str, special: bool) -> list[TokenId]:
        try:  # the call for batches releases the GIL
            encoded = tokenizer.encode_batch_fast([text], add_special_tokens=special)
        except TypeError:
            raise InvalidRequest("the text holds lone surrogates") from None
        tokens: list[TokenId] = encoded[0].ids
        return tokens

    return ServerWords(name=str(path), encode=encode, template=_read_template(path.parent))


def _read_template(directory: Path) -> ChatTemplate | None:
    place = directory / _CONFIG_FILE
    try:
        config = msgspec.json.decode(_read(place), type=_Config) if place.exists() else _Config()
    except msgspec.MsgspecError as error:
        raise ModelFileError(f"{place}: {str(error)[:200]}; take the model's own file") from None
    own = directory / _TEMPLATE_FILE
    text = _read(own) if own.exists() else config.template()
    if text is None:
        return None
    return ChatTemplate(
        text,
        source=str(directory),
        bos_token=_text_of(config.bos_token),
        eos_token=_text_of(config.eos_token),
        unix_time=unix_time,
    )


def _text_of(token: str | _TokenText | None) -> str:
    return token.content if isinstance(token, _TokenText) else token or ""


def _read(path: Path) -> str:
    try:
        if path.stat().st_size > _MAX_FILE_BYTES:
            raise ModelFileError(f"{path} has over {_MAX_FILE_BYTES} bytes; take the model's own")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ModelFileError(
            f"cannot read {path}: {why}; name a model's directory, its {TOKENIZER_FILE}, or a "
            "GGUF file"
        ) from None
