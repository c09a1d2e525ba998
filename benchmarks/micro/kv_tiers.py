"""KV tiers: how quick they are, and what they are worth when sessions do not fit the blocks.

    python benchmarks/micro/kv_tiers.py --bandwidth [--directory DIR]
    python benchmarks/micro/kv_tiers.py MODEL.gguf [--directory DIR] [--sessions 4] [--turns 4]
        [--prompt 1024] [--kv-cache-tokens 4096] [--json FILE]

The first says how many bytes a second go to and from host memory and disk (page cache included:
a disk tier mostly reads what the kernel still has; the first save to host memory pays for its
pages). The second runs an engine on the real model, in this process, and lets sessions take turns,
each with a history that grows; together they need more blocks than there are. It is done with no
tiers, host memory and disk, and then every session goes on once more after a restart of the engine,
without and with what is on disk. Prompts are the same in all of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shutil
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from headrace.bench.environment import describe_environment
from headrace.cli.executors import executor_builder
from headrace.clock import MonotonicClock
from headrace.server.engine import serve_engine
from headrace.server.kv_tiers.disk import DiskTier
from headrace.server.kv_tiers.host import HostTier
from headrace.server.kv_tiers.segment import BlockFormat
from headrace.server.settings import EngineProcess, EngineSettings, LogConfig, ModelFile
from headrace.server.transport.frames import ConnectionLimits
from headrace.server.transport.link import EngineLink
from headrace.types import (
    Output,
    ReplicaId,
    ReportLoad,
    Request,
    RequestId,
    SamplingParams,
    TierFigures,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from headrace.server.links import ReplicaDescription, ReplicaLink

BLOCK_BYTES = 737_280  # 32 tokens of SmolLM2-135M with a 16-bit cache
BLOCKS = 400
TURN_TOKENS = 128  # that a session adds with each turn
OUTPUT_TOKENS = 8
SEED = 7


def bandwidth(directory: Path) -> dict[str, float]:
    """Return GB/s of each tier, in and out."""
    form = BlockFormat(model_identity="bench", block_size=32, block_bytes=BLOCK_BYTES)
    content = np.random.default_rng(SEED).integers(0, 256, (BLOCKS, BLOCK_BYTES), np.uint8)
    digests = [index.to_bytes(32, "big") for index in range(BLOCKS)]
    host = HostTier(max_bytes=BLOCKS * BLOCK_BYTES, block_bytes=BLOCK_BYTES)
    clock = MonotonicClock()
    disk = DiskTier(directory, form, max_bytes=4 << 30, clock=clock)
    list(disk.open())
    figures: dict[str, float] = {}
    block = np.empty(BLOCK_BYTES, np.uint8)
    for name, tier in (("host", host), ("disk", disk)):
        for way in ("save", "load"):
            began = time.perf_counter()
            for digest, each in zip(digests, content, strict=True):
                if way == "save":
                    tier.put(digest, each)
                else:
                    assert tier.read_into(digest, block)
            seconds = time.perf_counter() - began
            figures[f"{name}_{way}_GBps"] = round(content.nbytes / seconds / 1e9, 2)
    disk.close()
    return figures


class Client:
    """LinkEvents: times of first tokens, ends, the last report."""

    def __init__(self) -> None:
        self.ready = asyncio.Event()
        self.first: dict[str, float] = {}
        self.tokens: dict[str, list[int]] = {}
        self.ends: dict[str, asyncio.Future[None]] = {}
        self.report: ReportLoad | None = None

    def replica_ready(self, link: ReplicaLink, description: ReplicaDescription) -> None:
        self.ready.set()

    def replica_lost(self, replica: ReplicaId, reason: str) -> None:
        pass

    def outputs(self, replica: ReplicaId, outputs: Sequence[Output]) -> None:
        for output in outputs:
            self.first.setdefault(output.request_id, time.perf_counter())
            self.tokens.setdefault(output.request_id, []).extend(output.tokens)
            if output.finish is not None:
                self.ends[output.request_id].set_result(None)

    def failed(self, failure: object) -> None:
        raise SystemExit(f"{failure}")

    def load(self, replica: ReplicaId, report: ReportLoad) -> None:
        self.report = report

    def beat(self, replica: ReplicaId, process: object) -> None:
        pass

    def kv_changed(self, *_: object) -> None:
        pass

    def kv_listed(self, *_: object) -> None:
        pass


class Running:
    """An engine and a client of it."""

    def __init__(self, client: Client, link: EngineLink) -> None:
        self.client = client
        self.link = link

    async def ask(self, name: str, prompt: list[int]) -> float:
        """Return the seconds to the first token."""
        self.client.ends[name] = asyncio.get_running_loop().create_future()
        began = time.perf_counter()
        self.link.submit(
            Request(
                id=RequestId(name),
                prompt=tuple(prompt),
                max_tokens=OUTPUT_TOKENS,
                sampling=SamplingParams(temperature=0),
            )
        )
        await self.client.ends[name]
        return self.client.first[name] - began


@asynccontextmanager
async def engine(model: Path, cache: Path, settings: EngineSettings) -> AsyncIterator[Running]:
    client, stop = Client(), asyncio.Event()
    with tempfile.TemporaryDirectory() as run:
        file = ModelFile(path=str(model), name=model.stem)
        process = EngineProcess(
            replica="r0",
            socket=str(Path(run) / "r0.sock"),
            cache_dir=str(cache),
            model=file,
            engine=settings,
            transport=ConnectionLimits(),
            log=LogConfig(),
            drain_seconds=30,
        )
        build = executor_builder(file, settings, cache_dir=cache, progress=lambda _: None)
        serving = asyncio.create_task(
            serve_engine(
                process, build=build, clock=MonotonicClock(), report=lambda _: None, stop=stop
            )
        )
        link = EngineLink(
            replica=ReplicaId("r0"),
            gateway="g0",
            path=Path(process.socket),
            events=client,
            clock=MonotonicClock(),
            limits=ConnectionLimits(retry_max_seconds=0.1),
        )
        linking = asyncio.create_task(link.run())
        await client.ready.wait()
        yield Running(client, link)
        stop.set()
        await serving
        linking.cancel()
        await asyncio.wait([linking])


async def turns(running: Running, histories: list[list[int]], rounds: range) -> dict[str, Any]:
    """Let every session take its turns, one after the other; return what it cost."""
    seconds: list[float] = []
    num_prompt = 0
    for turn in rounds:
        for session, history in enumerate(histories):
            prompt = history[: len(history) - TURN_TOKENS * (rounds.stop - 1 - turn)]
            num_prompt += len(prompt)
            seconds.append(await running.ask(f"s{session}-{turn}", prompt))
    await asyncio.sleep(1)  # for the last report
    report = running.client.report
    assert report is not None
    return {
        "ttft_mean_s": round(statistics.mean(seconds), 3),
        "ttft_p50_s": round(statistics.median(seconds), 3),
        "prompt_tokens": num_prompt,
        "computed_tokens": report.computed_tokens_total,
        "tiers": dict(zip(TierFigures._fields, report.tiers, strict=True)),
    }


async def sessions(arguments: argparse.Namespace, directory: Path) -> dict[str, Any]:
    """Return figures of each configuration, and whether all gave the same texts."""
    draw = random.Random(SEED)
    length = arguments.prompt + TURN_TOKENS * arguments.turns
    histories = [
        [draw.randrange(1000, 20_000) for _ in range(length)] for _ in range(arguments.sessions)
    ]
    first, after = range(arguments.turns), range(arguments.turns, arguments.turns + 1)
    longer = [[*h, *(draw.randrange(1000, 20_000) for _ in range(TURN_TOKENS))] for h in histories]
    common: dict[str, Any] = {"kv_cache_tokens": arguments.kv_cache_tokens}
    on_disk = {**common, "disk_cache_dir": str(directory / "kv")}
    figures: dict[str, Any] = {}
    texts: dict[str, dict[str, list[int]]] = {}
    for name, settings, asked, rounds in (
        ("off", common, histories, first),
        ("host", {**common, "host_cache_bytes": 2 << 30}, histories, first),
        ("disk", on_disk, histories, first),
        ("restart, off", common, longer, after),
        ("restart, disk", on_disk, longer, after),
    ):
        async with engine(
            arguments.model, directory / "weights", EngineSettings(**settings)
        ) as running:
            await running.ask("warm", [1, 2, 3])
            figures[name] = await turns(running, asked, rounds)
            texts[name] = running.client.tokens
        print(f"{name:14} {json.dumps(figures[name])}", flush=True)
    for name in ("host", "disk"):
        same = sum(texts[name][each] == text for each, text in texts["off"].items())
        figures[name]["same_texts"] = f"{same} of {len(texts['off'])}"
        print(
            f"{name}: {figures[name]['same_texts']} texts as without tiers (bf16 is not bit-stable)"
        )
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?")
    parser.add_argument("--bandwidth", action="store_true")
    parser.add_argument("--directory", type=Path, help="for blocks on disk; default: a new one")
    parser.add_argument("--sessions", type=int, default=4)
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=1024, help="tokens of the first turn")
    parser.add_argument("--kv-cache-tokens", type=int, default=4096)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    directory = Path(tempfile.mkdtemp(dir=arguments.directory))
    words = ["python benchmarks/micro/kv_tiers.py", *(w for w in sys.argv[1:] if "/" not in w)]
    environment = msgspec.to_builtins(describe_environment(words))
    results: dict[str, Any] = {"environment": environment}
    try:
        if arguments.bandwidth:
            results["bandwidth"] = bandwidth(directory / "bandwidth")
            print(json.dumps(results["bandwidth"]))
        if arguments.model:
            results["sessions"] = asyncio.run(sessions(arguments, directory))
    finally:
        shutil.rmtree(directory)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
