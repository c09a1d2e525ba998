"""Tokenizer: text to tokens and back, for one model.

Control tokens are recognised only where the caller says so (see control_tokens.py). Tokens that
are ordinary text, such as ``<think>`` (GGUF type user-defined), are recognised everywhere, as in
every engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import InvalidRequest, ModelFileError
from headrace.model.control_tokens import ControlTokens, escape
from headrace.model.detokenizer import Detokenizer
from headrace.model.encoder import adds_bos_by_default, build_encoder
from headrace.model.vocabulary import TokenizerKind, read_vocabulary

if TYPE_CHECKING:
    from collections.abc import Sequence

    import tokenizers

    from headrace.model.metadata import Metadata
    from headrace.model.vocabulary import Vocabulary
    from headrace.types import TokenId


class Tokenizer:
    """One model's tokenizer. Safe to use from several threads."""

    def __init__(
        self,
        vocabulary: Vocabulary,
        encoder: tokenizers.Tokenizer,
        *,
        bos_id: TokenId | None,
        eos_id: TokenId | None,
        end_ids: tuple[TokenId, ...],
        adds_bos: bool,
        drops_space: bool,
    ) -> None:
        self.bos_id = bos_id
        self.eos_id = eos_id
        self.end_ids = end_ids  # each ends a generation, unless the client asks to ignore them
        self.adds_bos = adds_bos  # a text that is not a rendered chat begins with BOS
        self._vocabulary = vocabulary
        self._encoder = encoder
        self._drops_space = drops_space
        self.hidden_ids = frozenset(vocabulary.control_ids.values())  # control tokens: no text
        self._visible = tuple(
            [
                b"" if token in self.hidden_ids else piece
                for token, piece in enumerate(vocabulary.pieces)
            ]
        )
        self._control = ControlTokens(vocabulary.control_ids)

    @property
    def vocab_size(self) -> int:
        """Number of tokens."""
        return len(self._visible)

    def encode(
        self, text: str, *, parse_special: bool = False, add_bos: bool = False
    ) -> list[TokenId]:
        """Return the tokens of a text, outside the GIL where it is long.

        With ``parse_special`` the names of control tokens are taken for tokens. With ``add_bos``
        BOS comes first, if the model wants it and the text does not begin with it. Raises
        InvalidRequest for text that has no UTF-8 form (lone surrogates).
        """
        tokens = self.encode_rendered(escape(text)) if parse_special else self._encode_plain(text)
        if add_bos and self.adds_bos and self.bos_id is not None and tokens[:1] != [self.bos_id]:
            return [self.bos_id, *tokens]
        return tokens

    def encode_rendered(self, text: str) -> list[TokenId]:
        """Return the tokens of a text whose foreign parts went through ``shield``."""
        tokens: list[TokenId] = []
        for part in self._control.split(text):
            if isinstance(part, str):
                tokens += self._encode_plain(part)
            else:
                tokens.append(part)
        return tokens

    def shield(self, text: str) -> str:
        """Return text that means the same in ``encode_rendered`` and names no control token."""
        return self._control.shield(text)

    def decode(self, tokens: Sequence[TokenId], *, skip_special: bool = True) -> str:
        """Return the text of tokens. Raises InvalidRequest for a token that is not one."""
        for token in tokens:
            if not 0 <= token < self.vocab_size:
                raise InvalidRequest(
                    f"token {token} is not between 0 and {self.vocab_size - 1}", param="tokens"
                )
        pieces = self._visible if skip_special else self._vocabulary.pieces
        text = Detokenizer(pieces, drops_space=self._drops_space)
        return text.push(tokens) + text.flush()

    def detokenizer(self, *, continues: bool) -> Detokenizer:
        """Return a decoder for one generation, which shows no control tokens.

        If the generation ``continues`` the prompt's own text, a leading space belongs to it;
        an answer in a chat is a text of its own.
        """
        return Detokenizer(self._visible, drops_space=self._drops_space and not continues)

    def has_control_tokens(self, *names: str) -> bool:
        """Say whether all of these are control tokens of this model."""
        return all(name in self._vocabulary.control_ids for name in names)

    def token_bytes(self, token: TokenId) -> bytes:
        """Return a token's bytes, for a control token its name."""
        return self._vocabulary.pieces[token]

    def token_text(self, token: TokenId | None) -> str:
        """Return how templates write a token, or nothing for None."""
        return "" if token is None else self._vocabulary.texts[token]

    def _encode_plain(self, text: str) -> list[TokenId]:
        if not text:
            return []
        try:
            # The call for batches releases the GIL, the one for single texts does not.
            tokens: list[TokenId] = self._encoder.encode_batch_fast(
                [text], add_special_tokens=False
            )[0].ids
        except TypeError:  # what the engine says to a str that has no UTF-8 form
            raise InvalidRequest("the text holds lone surrogates, which no encoding has") from None
        return tokens


def build_tokenizer(metadata: Metadata) -> Tokenizer:
    """Build a model file's tokenizer. Raises ModelFileError."""
    vocabulary = read_vocabulary(metadata)
    named = [
        _token_id(metadata, f"tokenizer.ggml.{name}_token_id", vocabulary)
        for name in ("bos", "eos", "eot", "eom")
    ]
    return Tokenizer(
        vocabulary,
        build_encoder(vocabulary, metadata),
        bos_id=named[0],
        eos_id=named[1],
        end_ids=vocabulary.end_ids(tuple(named[1:])),
        adds_bos=metadata.flag(
            "tokenizer.ggml.add_bos_token",
            default=adds_bos_by_default(metadata, vocabulary.kind),
        ),
        drops_space=vocabulary.kind is TokenizerKind.SENTENCE_PIECE
        and metadata.flag("tokenizer.ggml.add_space_prefix", default=True),
    )


def _token_id(metadata: Metadata, key: str, vocabulary: Vocabulary) -> TokenId | None:
    if key not in metadata:
        return None
    token = metadata.integer(key)
    if token >= len(vocabulary.texts):
        raise ModelFileError(
            f"{metadata.source}: {key} is {token}, of {len(vocabulary.texts)} tokens; use a file "
            f"converted by a current llama.cpp"
        )
    return token
