"""KV events of a gateway's foreign replicas, wired. Without any, nothing is loaded or started."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from headrace.model.server_words import load_server_words
from headrace.server.gateway.foreign.kv_events import KvFollower
from headrace.server.gateway.foreign.kv_names import Naming, TokenNames
from headrace.server.gateway.foreign.kv_options import pool_of
from headrace.server.gateway.prompting import Threads

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from headrace.monitoring.metrics import Registry
    from headrace.server.gateway.config import GatewayConfig
    from headrace.server.gateway.foreign.config import ForeignReplica
    from headrace.types import ReplicaId


@dataclass(frozen=True, slots=True)
class KvEvents:
    """Names for prompts by model, followers by replica, and the threads of the former."""

    names: Mapping[str, TokenNames] = field(default_factory=dict)
    followers: Mapping[ReplicaId, KvFollower] = field(default_factory=dict)
    workers: ThreadPoolExecutor | None = None

    async def close(self) -> None:
        """End everything."""
        for names in self.names.values():
            names.close()
        for follower in self.followers.values():
            await follower.close()
        if self.workers is not None:
            self.workers.shutdown(wait=False, cancel_futures=True)


def build_kv_events(
    replicas: Sequence[ForeignReplica], config: GatewayConfig, *, registry: Registry
) -> KvEvents:
    """Wire them. Raises ModelFileError."""
    told = [replica for replica in replicas if replica.kv_events]
    if not told:
        return KvEvents()
    workers = ThreadPoolExecutor(config.text_threads, thread_name_prefix="text")
    threads = Threads(workers, max_waiting=config.max_in_threads)
    words = {path: load_server_words(Path(path)) for path in {each.tokenizer for each in told}}
    names = {
        pool_of(each): TokenNames(
            pool_of(each),
            Naming(words=words[each.tokenizer], unit=each.block_size),
            threads=threads,
            inline_bytes=config.inline_bytes,
            registry=registry,
        )
        for each in told
    }
    followers = [KvFollower(each, registry) for each in told]
    return KvEvents(names, {each.replica: each for each in followers}, workers)
