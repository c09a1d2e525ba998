"""The answer to one prompt, as the scripted OpenAI server words it, and its JSON."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from headrace.testing.openai_dialects import output_id, prompt_ids

if TYPE_CHECKING:
    from headrace.testing.openai_dialects import Beginning

CREATED: Final = 1_700_000_000
_WORDS: Final = ("river", "mill", "wheel", "stone", "race", "grain", "flour", "weir", "sluice")


class AnswerText:
    """Word by word from where it begins; ``tells_ids``: with the ids of its tokens."""

    def __init__(
        self, model: str, beginning: Beginning, *, is_chat: bool, tells_ids: bool = False
    ) -> None:
        self._seed, self._prompt_tokens, self._num_before = beginning
        self._prompt_ids = prompt_ids(beginning) if tells_ids else None
        if self._prompt_ids is not None:
            self._prompt_tokens = len(self._prompt_ids)
        self._is_chat = is_chat
        kind = "chatcmpl" if is_chat else "cmpl"
        part = f"-{self._num_before}" if self._num_before else ""  # of an answer begun elsewhere
        self._head = {
            "id": f"{kind}-{self._seed.hex()[:24]}{part}",
            "created": CREATED,
            "model": model,
        }

    def word(self, index: int) -> str:
        """Token ``index`` of the answer from its beginning here."""
        return word_of(self._seed, self._num_before + index)

    def event(self, index: int, finish: str | None) -> bytes:
        """One event of a stream; the one with ``finish`` has no text."""
        text = "" if finish else self.word(index)
        choice: dict[str, object] = {"index": 0, "finish_reason": finish}
        if self._is_chat:
            choice["delta"] = {"content": text} if text else {}
        else:
            choice["text"] = text
        if self._prompt_ids is not None:
            choice["token_ids"] = [output_id(self._num_before + index)] if text else []
            choice["prompt_token_ids"] = None if index else self._prompt_ids
        kind = "chat.completion.chunk" if self._is_chat else "text_completion"
        return _event({**self._head, "object": kind, "choices": [choice]})

    def usage_event(self, num_tokens: int) -> bytes:
        """The event that ends a stream whose client wants to know."""
        return _event({**self._head, "choices": [], "usage": self._usage(num_tokens)})

    def whole(self, num_tokens: int, finish: str) -> dict[str, object]:
        """An answer that is not streamed."""
        text = "".join(self.word(index) for index in range(num_tokens))
        choice: dict[str, object] = {"index": 0, "finish_reason": finish}
        if self._is_chat:
            choice["message"] = {"role": "assistant", "content": text}
        else:
            choice["text"] = text
        kind = "chat.completion" if self._is_chat else "text_completion"
        usage = self._usage(num_tokens)
        return {**self._head, "object": kind, "choices": [choice], "usage": usage}

    def _usage(self, num_tokens: int) -> dict[str, int]:
        return {
            "prompt_tokens": self._prompt_tokens,
            "completion_tokens": num_tokens,
            "total_tokens": self._prompt_tokens + num_tokens,
        }


def word_of(seed: bytes, index: int) -> str:
    """Token ``index`` of the answer that begins with ``seed``."""
    digest = hashlib.sha256(seed + b"%d" % index).digest()
    return f" {_WORDS[digest[0] % len(_WORDS)]}{index}"


def _event(content: object) -> bytes:
    return b"data: " + msgspec.json.encode(content) + b"\n\n"
