"""Tokens to text while they come: never half a character, and the same text as all at once.

Source for broken UTF-8: the Unicode Standard, section 3.9 (U+FFFD for each maximal subpart),
which Python's decoder follows for whole and split input alike.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.types import TokenId

_new_decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """The text of one generation.

    ``pieces`` holds each token's bytes. With ``drops_space`` a space at the very start is left
    out: the one that a SentencePiece tokenizer puts before every text.
    """

    __slots__ = ("_decode", "_drops_space", "_pieces")

    def __init__(self, pieces: Sequence[bytes], *, drops_space: bool = False) -> None:
        self._pieces = pieces
        self._drops_space = drops_space
        self._decode = _new_decoder(errors="replace").decode

    def push(self, tokens: Sequence[TokenId]) -> str:
        """Return the text that these tokens complete; bytes of a character still open wait."""
        pieces = self._pieces
        chunk = b"".join([pieces[token] for token in tokens])
        if self._drops_space and chunk:
            self._drops_space = False
            chunk = chunk.removeprefix(b" ")
        return self._decode(chunk)

    def flush(self) -> str:
        """End the text: what still waits cannot be completed and becomes U+FFFD."""
        return self._decode(b"", True)
