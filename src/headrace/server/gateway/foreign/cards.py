"""What a replica says of its models (GET /v1/models), and whether they are still the same.

A model is taken for the same as long as its name, its weights' place and its size are. Limits such
as ``max_model_len`` may change from one start to the next.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from headrace.server.gateway.foreign.servers import known_server

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.server.gateway.foreign.servers import Server


class _Measures(Struct, frozen=True):
    """llama.cpp's ``meta``."""

    n_vocab: int | None = None
    n_params: int | None = None
    size: int | None = None


class _Content(Struct, frozen=True):
    id: str
    owned_by: str | None = None
    root: str | None = None
    max_model_len: int | None = None
    meta: _Measures | None = None


class _ModelList(Struct):
    data: list[msgspec.Raw]


_decode_list = msgspec.json.Decoder(_ModelList).decode
_decode_content = msgspec.json.Decoder(_Content).decode


class ModelCard:
    """One model, as its replica describes it in ``raw``. ``server``: whose server it is."""

    __slots__ = ("_content", "raw", "server")

    def __init__(self, raw: msgspec.Raw, server: Server | None = None) -> None:
        self.raw = raw.copy()
        self._content = _decode_content(raw)
        self.server = server or known_server(self._content.owned_by or "")

    @property
    def id(self) -> str:
        """What requests must call it there."""
        return self._content.id

    @property
    def max_model_len(self) -> int | None:
        """Longest prompt and output, in tokens, if it is said."""
        return self._content.max_model_len

    @property
    def traits(self) -> Mapping[str, object]:
        """What does not change while it is the same model."""
        content, measures = self._content, self._content.meta or _Measures()
        return {
            "root": content.root,
            "n_vocab": measures.n_vocab,
            "n_params": measures.n_params,
            "size": measures.size,
        }


def read_cards(body: bytes, server: Server | None = None) -> dict[str, ModelCard]:
    """Return the models of an answer to GET /v1/models, by their ids.

    ``server`` is what it is said to be; None: what it says. Raises MsgspecError.
    """
    cards = [ModelCard(raw, server) for raw in _decode_list(body).data]
    return {card.id: card for card in cards}


def difference(before: Mapping[str, ModelCard], now: Mapping[str, ModelCard]) -> str:
    """Return what makes ``now`` another replica than ``before``, "" if nothing does.

    Models may be added and taken away (adapters are), as long as one is left and none has changed.
    """
    for name in before.keys() & now.keys():
        old, new = before[name].traits, now[name].traits
        for trait, value in old.items():
            if value is not None and new[trait] is not None and new[trait] != value:
                return f"its {name} is another model: {trait} {new[trait]}, before {value}"
    if before.keys() & now.keys():
        return ""
    return f"it serves {', '.join(sorted(now))} now, before {', '.join(sorted(before))}"
