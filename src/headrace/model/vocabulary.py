"""A model's tokens as its file lists them: their text, what they are for, and their bytes."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from functools import cached_property
from typing import TYPE_CHECKING

from headrace.errors import ModelFileError
from headrace.model.byte_level import CHAR_TO_BYTE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.model.metadata import Metadata
    from headrace.types import TokenId

SPACE_MARK = "\u2581"  # what SentencePiece writes for a space

MAX_TOKEN_CHARS = 1024  # the longest published are runs of some 500 spaces

# Tokens that end a turn or a document in the families we know, whatever else the file says.
_END_TEXTS = frozenset(
    {
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|im_end|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|end|>",
        "<end_of_turn>",
    }
)


class TokenizerKind(StrEnum):
    """How text becomes tokens; the values are those of ``tokenizer.ggml.model``."""

    BYTE_LEVEL = "gpt2"  # BPE over bytes, written in the alphabet of byte_level.py
    SENTENCE_PIECE = "llama"  # SentencePiece BPE by scores, unknown characters as byte tokens


class TokenType(IntEnum):
    """What a token is for; the numbers are GGUF's."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3  # marks structure; never what a person wrote
    USER_DEFINED = 4  # ordinary text that is always one token
    UNUSED = 5
    BYTE = 6  # <0x0A>


@dataclass(frozen=True)
class Vocabulary:
    """All tokens of a model, by id. ``source`` names the file in messages."""

    kind: TokenizerKind
    texts: tuple[str, ...]
    types: tuple[TokenType, ...]
    source: str

    @cached_property
    def ids(self) -> dict[str, TokenId]:
        """Token ids by text."""
        return {text: token for token, text in enumerate(self.texts)}

    @cached_property
    def control_ids(self) -> Mapping[str, TokenId]:
        """Tokens that text can name but a person must not be able to write."""
        marks = (TokenType.CONTROL, TokenType.UNKNOWN)
        return {
            text: token
            for token, (text, kind) in enumerate(zip(self.texts, self.types, strict=True))
            if kind in marks and len(text) > 1
        }

    @cached_property
    def pieces(self) -> tuple[bytes, ...]:
        """Each token's bytes; for a control token, the text that names it."""
        plain = _byte_level_piece if self.kind is TokenizerKind.BYTE_LEVEL else _sentence_piece
        return tuple(
            [
                plain(text)
                if kind is TokenType.NORMAL
                else _byte_piece(text)
                if kind is TokenType.BYTE
                else text.encode()
                for text, kind in zip(self.texts, self.types, strict=True)
            ]
        )

    def end_ids(self, named: tuple[TokenId | None, ...]) -> tuple[TokenId, ...]:
        """Return the tokens that end a generation: those named, and those known by their text."""
        known = {token for text, token in self.control_ids.items() if text in _END_TEXTS}
        return tuple(sorted(known | {token for token in named if token is not None}))


def read_vocabulary(metadata: Metadata) -> Vocabulary:
    """Read and check a file's tokens. Raises ModelFileError."""
    name = metadata.text("tokenizer.ggml.model")
    try:
        kind = TokenizerKind(name)
    except ValueError:
        raise ModelFileError(
            f"{metadata.source}: tokenizer kind {name[:40]!r} is not supported; use a model with a "
            f"byte-level (gpt2) or SentencePiece (llama) tokenizer"
        ) from None
    texts = metadata.strings("tokenizer.ggml.tokens")
    types = _read_types(metadata, len(texts))
    if max(map(len, texts), default=0) > MAX_TOKEN_CHARS:
        raise ModelFileError(
            f"{metadata.source}: a token is longer than {MAX_TOKEN_CHARS} characters; use another "
            f"model file"
        )
    vocabulary = Vocabulary(kind, texts, types, metadata.source)
    if not texts or len(vocabulary.ids) != len(texts):
        raise ModelFileError(
            f"{metadata.source}: {len(texts)} tokens with {len(vocabulary.ids)} different texts; "
            f"use a file converted by a current llama.cpp"
        )
    return vocabulary


def _read_types(metadata: Metadata, num_tokens: int) -> tuple[TokenType, ...]:
    key = "tokenizer.ggml.token_type"
    if key not in metadata:
        return (TokenType.NORMAL,) * num_tokens
    by_number = {int(kind): kind for kind in TokenType}
    types = tuple([by_number[n] for n in metadata.integers(key) if n in by_number])
    if len(types) != num_tokens:
        raise ModelFileError(
            f"{metadata.source}: {num_tokens} tokens and {len(types)} valid token types; use a "
            f"file converted by a current llama.cpp"
        )
    return types


# Characters of byte-level tokens to bytes; those outside the alphabet to what Latin-1 refuses.
_TO_LATIN_1 = {code: 0x10FFFF for code in range(256)} | {
    ord(char): byte for char, byte in CHAR_TO_BYTE.items()
}


def _byte_level_piece(text: str) -> bytes:
    try:
        return text.translate(_TO_LATIN_1).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()  # a token outside the alphabet stands for itself


def _sentence_piece(text: str) -> bytes:
    return text.replace(SPACE_MARK, " ").encode()


def _byte_piece(text: str) -> bytes:
    """Decode ``<0x0A>``; any other spelling stands for itself."""
    try:
        return bytes.fromhex(text.removeprefix("<0x").removesuffix(">"))
    except ValueError:
        return text.encode()
