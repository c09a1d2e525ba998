"""TextModel: all that a gateway knows of a model. No weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from headrace.clock import unix_time
from headrace.errors import InvalidRequest
from headrace.model.chat_template import CHATML, ChatTemplate
from headrace.model.gguf import read_gguf
from headrace.model.spec import read_context_length
from headrace.model.tokenizer import Tokenizer, build_tokenizer
from headrace.model.tool_text import in_words

if TYPE_CHECKING:
    from pathlib import Path

    from headrace.model.chat_template import Json, Message
    from headrace.model.metadata import Metadata
    from headrace.types import TokenId, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TextModel:
    """A model's words: tokenizer, chat template and limits.

    ``template`` is None for a model that was not made for chats.
    """

    name: str
    context_length: Tokens
    tokenizer: Tokenizer
    template: ChatTemplate | None

    def encode_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Message] = (),
        add_generation_prompt: bool = True,
    ) -> list[TokenId]:
        """Return the prompt tokens of a chat. No message or tool can write a control token.

        A model whose template knows no tools is told of them in words (see tool_text.py).

        Raises InvalidRequest when the model has no template or it refuses the messages.
        """
        if self.template is None:
            raise InvalidRequest(
                f"model {self.name} has no chat template: use /v1/completions", param="messages"
            )
        if not self.template.knows_tools:
            messages, tools = in_words(messages, tools), ()
        rendered = self.template.render(
            [self._shielded(message) for message in messages],
            tools=[self._shielded(tool) for tool in tools],
            add_generation_prompt=add_generation_prompt,
        )
        return self.tokenizer.encode_rendered(rendered)

    def encode_prompt(self, text: str) -> list[TokenId]:
        """Return the tokens of a raw prompt, in which control tokens may be written by name."""
        return self.tokenizer.encode(text, parse_special=True, add_bos=True)

    def _shielded(self, message: Message) -> Message:
        return {key: self._shield(value) for key, value in message.items()}

    def _shield(self, value: Json) -> Json:
        match value:
            case str():
                return self.tokenizer.shield(value)
            case Mapping():
                return {key: self._shield(item) for key, item in value.items()}
            case Sequence():
                return [self._shield(item) for item in value]
            case _:
                return value


def load_text_model(path: Path) -> TextModel:
    """Read a model file's tokenizer and template. Raises ModelFileError.

    Reads only the file's header: about 0.2 s for 49,152 tokens and 0.7 s for 150,000, so that
    nothing of it is worth keeping in a cache.
    """
    metadata = read_gguf(path).metadata
    return build_text_model(metadata, name=metadata.text("general.name", path.stem))


def build_text_model(metadata: Metadata, *, name: str) -> TextModel:
    """Build a model's words from its metadata. Raises ModelFileError."""
    tokenizer = build_tokenizer(metadata)
    return TextModel(
        name=name,
        context_length=read_context_length(metadata, metadata.text("general.architecture")),
        tokenizer=tokenizer,
        template=_build_template(metadata, tokenizer),
    )


def _build_template(metadata: Metadata, tokenizer: Tokenizer) -> ChatTemplate | None:
    """Return the file's template; ChatML for a file that has its tokens and no template."""
    text = metadata.text("tokenizer.chat_template", "")
    if not text and not tokenizer.has_control_tokens("<|im_start|>", "<|im_end|>"):
        return None
    return ChatTemplate(
        text or CHATML,
        source=metadata.source,
        bos_token=tokenizer.token_text(tokenizer.bos_id),
        eos_token=tokenizer.token_text(tokenizer.eos_id),
        unix_time=unix_time,
    )
