"""The model as it is served: names, limits, tokens to text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from headrace.errors import ModelNotFound
from headrace.server.gateway.planning import ModelFacts

if TYPE_CHECKING:
    from headrace.model.detokenizer import Detokenizer
    from headrace.model.text import TextModel
    from headrace.server.gateway.replicas import Replicas
    from headrace.types import TokenId, Tokens


class ServedModel:
    """``names`` are what clients may call it; the first is its name in lists."""

    def __init__(
        self,
        text: TextModel,
        *,
        names: tuple[str, ...],
        replicas: Replicas,
        max_model_len: Tokens | None,
        default_max_tokens: Tokens | None,
        created: int,
    ) -> None:
        self.text = text
        self.names = names
        self.replicas = replicas
        self.created = created  # Unix time
        self._max_model_len = max_model_len
        self._default_max_tokens = default_max_tokens

    @property
    def context_length(self) -> Tokens:
        """Longest prompt and output: the model's, the operator's and the replicas' limits."""
        limits = (self.text.context_length, self._max_model_len, self.replicas.max_model_len)
        return min(limit for limit in limits if limit is not None)

    def resolve(self, name: str | None) -> str:
        """Return the name to answer with. Raises ModelNotFound."""
        if name is None:
            return self.names[0]
        if name not in self.names:
            raise ModelNotFound(
                f"model {name[:100]!r} is not served here; there is {', '.join(self.names)}",
                param="model",
            )
        return name

    def facts(self) -> ModelFacts:
        """Return what requests are checked against."""
        tokenizer = self.text.tokenizer
        return ModelFacts(
            context_length=self.context_length,
            vocab_size=tokenizer.vocab_size,
            end_ids=tokenizer.end_ids,
            default_max_tokens=self._default_max_tokens,
        )

    def detokenizer(self, *, continues: bool) -> Detokenizer:
        """Return a decoder for one choice; see Tokenizer."""
        return self.text.tokenizer.detokenizer(continues=continues)

    def token_bytes(self, token: TokenId) -> bytes:
        """Return a token's bytes."""
        return self.text.tokenizer.token_bytes(token)
