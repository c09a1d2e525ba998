"""Options of a foreign replica that publishes KV events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import UsageError
from headrace.model.server_words import load_server_words
from headrace.server.gateway.foreign.kv_socket import check_installed

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

    from headrace.server.gateway.foreign.config import ForeignReplica

_ENDPOINT = re.compile(r"tcp://(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}|ipc://.+")
_MAX_BLOCK = 4096
_ITS_OWN = ("kv-replay", "tokenizer", "block-size")  # say nothing without kv-events


def _endpoint(text: str) -> str:
    if _ENDPOINT.fullmatch(text) is None:
        raise ValueError(f"{text[:200]!r} is no place of events; write it like tcp://HOST:5557")
    return text


def _block_size(text: str) -> int:
    size = int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else 0
    if not 1 <= size <= _MAX_BLOCK:
        raise ValueError(f"block-size={text[:20]} is none; use 1 to {_MAX_BLOCK} tokens")
    return size


KV_OPTIONS: Mapping[str, Callable[[str], object]] = {
    "kv-events": _endpoint,
    "kv-replay": _endpoint,
    "tokenizer": str,
    "block-size": _block_size,
}


def check_alone(replica: ForeignReplica, given: Collection[str]) -> None:
    """Raise UsageError unless a replica's options (``given``: those said) make sense together."""
    own = [name for name in _ITS_OWN if name in given]
    if own and not replica.kv_events:
        raise UsageError(
            f"--replica {replica.url}: {own[0]}= is for replicas with kv-events=, which it has not"
        )
    if not replica.kv_events:
        return
    if not replica.tokenizer:
        raise UsageError(
            f"--replica {replica.url}: kv-events needs tokenizer=: events name blocks by tokens; "
            "say the model's directory, its tokenizer.json, or a GGUF file"
        )
    if not replica.model:
        raise UsageError(
            f"--replica {replica.url}: kv-events needs model=: the ID that its GET /v1/models "
            "gives for the model of that tokenizer"
        )


def check_together(replicas: Iterable[ForeignReplica]) -> None:
    """Raise UsageError unless replicas of one model name its prompts in one way."""
    known: dict[str, ForeignReplica] = {}
    for replica in replicas:
        if not replica.kv_events:
            continue
        model = pool_of(replica)
        first = known.setdefault(model, replica)
        if (replica.tokenizer, replica.block_size) != (first.tokenizer, first.block_size):
            raise UsageError(
                f"--replica {replica.url} and {first.url} both serve {model}: say one tokenizer= "
                "and one block-size= (the larger one) for both"
            )


def pool_of(replica: ForeignReplica) -> str:
    """Return what the model of a replica with KV events is called here."""
    return replica.alias or replica.model


def check_files(replicas: Iterable[ForeignReplica]) -> None:
    """Raise StartError unless all that the KV events of these need is there."""
    tokenizers = {replica.tokenizer for replica in replicas if replica.kv_events}
    if tokenizers:
        check_installed()
    for tokenizer in sorted(tokenizers):
        load_server_words(Path(tokenizer))
