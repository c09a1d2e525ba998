"""A thin OpenAI-compatible server round OpenVINO GenAI's ContinuousBatchingPipeline (a peer).

    python openvino_server.py MODEL.gguf --tokenizer DIR --port PORT

Runs in the peer's own environment (openvino-genai, aiohttp, tokenizers, jinja2) and imports
nothing of ours. The pipeline steps in a process of its own: `step()` holds the GIL, and beside an
event loop it would starve it. Just enough of the API to be measured: streamed and whole
completions, greedy, exact lengths.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import multiprocessing
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import jinja2
import openvino_genai as genai  # type: ignore[import-not-found]
from aiohttp import web  # type: ignore[import-not-found]
from tokenizers import Tokenizer

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MODEL_NAME = "peer"
CACHE_GB = 4
MAX_SEQUENCES = 64
MAX_BATCHED_TOKENS = 512
END_OF_TURN = 2  # SmolLM2's <|im_end|>


@dataclass(frozen=True)
class Job:
    """Parent to engine: a generation to start."""

    number: int
    prompt: list[int]
    max_tokens: int
    ignore_eos: bool


@dataclass(frozen=True)
class News:
    """Engine to parent: new tokens of a generation, and how it ended if it did."""

    number: int
    tokens: list[int]
    finish: str | None = None


def run_engine(model: str, pipe: Connection) -> None:
    """Step the pipeline for ever; sleep while there is nothing to do."""
    import numpy as np
    import openvino

    scheduler = genai.SchedulerConfig()
    scheduler.cache_size = CACHE_GB
    scheduler.max_num_seqs = MAX_SEQUENCES
    scheduler.max_num_batched_tokens = MAX_BATCHED_TOKENS
    scheduler.dynamic_split_fuse = True
    scheduler.enable_prefix_caching = True
    pipeline = genai.ContinuousBatchingPipeline(model, scheduler, "CPU", {})
    pipe.send("ready")
    running = genai.GenerationStatus.RUNNING
    handles = {}

    def start(job: Job) -> None:
        settings = genai.GenerationConfig()
        settings.max_new_tokens = job.max_tokens
        settings.ignore_eos = job.ignore_eos
        if not job.ignore_eos:
            settings.set_eos_token_id(END_OF_TURN)
        prompt = openvino.Tensor(np.array([job.prompt], dtype=np.int64))
        handles[job.number] = pipeline.add_request(job.number, prompt, settings)

    while True:
        while pipe.poll(None if not handles else 0):
            start(pipe.recv())
        pipeline.step()
        news = []
        for number, handle in list(handles.items()):
            tokens = read_tokens(handle)
            ended = handle.get_status() != running
            if ended:
                del handles[number]
            if tokens or ended:
                news.append(News(number, tokens, "length" if ended else None))
        if news:
            pipe.send(news)


def read_tokens(handle: genai.GenerationHandle) -> list[int]:
    """Return the tokens that a generation made since it was read last."""
    tokens: list[int] = []
    while handle.can_read():
        for output in handle.read().values():
            tokens.extend(output.generated_ids)
    return tokens


class Shim:
    """Translates between HTTP and the engine's process."""

    def __init__(
        self, *, tokenizer: Tokenizer, template: jinja2.Template, pipe: Connection
    ) -> None:
        self._tokenizer = tokenizer
        self._template = template
        self._pipe = pipe
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Queue[News]] = {}

    async def start_reader(self, _app: web.Application) -> None:
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), daemon=True).start()

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        while True:
            loop.call_soon_threadsafe(self._deliver, self._pipe.recv())

    def _deliver(self, batch: list[News]) -> None:
        for news in batch:
            queue = self._waiting.get(news.number)
            if queue is not None:
                queue.put_nowait(news)

    async def models(self, _request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": MODEL_NAME}]})

    async def generate(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        is_chat = request.path.endswith("/chat/completions")
        text = (
            self._template.render(messages=body["messages"], add_generation_prompt=True)
            if is_chat
            else body["prompt"]
        )
        prompt = self._tokenizer.encode(text, add_special_tokens=False).ids
        number = next(self._numbers)
        queue = self._waiting[number] = asyncio.Queue()
        ignore_eos = bool(body.get("ignore_eos", False))
        self._pipe.send(Job(number, prompt, int(body.get("max_tokens", 16)), ignore_eos))
        try:
            if body.get("stream"):
                return await self._stream(request, queue, is_chat=is_chat, prompt=len(prompt))
            return await self._whole(queue, is_chat=is_chat, prompt=len(prompt))
        finally:
            del self._waiting[number]

    async def _stream(
        self, request: web.Request, queue: asyncio.Queue[News], *, is_chat: bool, prompt: int
    ) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        count, finish = 0, None
        while finish is None:
            news = await queue.get()
            count += len(news.tokens)
            finish = news.finish
            text = self._tokenizer.decode(news.tokens)
            part = {"delta": {"content": text}} if is_chat else {"text": text}
            choice = {"index": 0, "finish_reason": finish, **part}
            await response.write(event({"model": MODEL_NAME, "choices": [choice]}))
        usage = {"prompt_tokens": prompt, "completion_tokens": count}
        await response.write(event({"choices": [], "usage": usage}) + b"data: [DONE]\n\n")
        return response

    async def _whole(
        self, queue: asyncio.Queue[News], *, is_chat: bool, prompt: int
    ) -> web.Response:
        tokens: list[int] = []
        finish = None
        while finish is None:
            news = await queue.get()
            tokens += news.tokens
            finish = news.finish
        text = self._tokenizer.decode(tokens)
        part = {"message": {"content": text}} if is_chat else {"text": text}
        usage = {"prompt_tokens": prompt, "completion_tokens": len(tokens)}
        choice = {"index": 0, "finish_reason": finish, **part}
        return web.json_response({"model": MODEL_NAME, "choices": [choice], "usage": usage})


def event(chunk: dict[str, object]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--tokenizer", type=Path, required=True, help="directory of export_hf.py")
    parser.add_argument("--port", type=int, default=8103)
    args = parser.parse_args()
    template = jinja2.Environment().from_string(
        (args.tokenizer / "chat_template.jinja").read_text()
    )
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    spawn.Process(target=run_engine, args=(args.model, theirs), daemon=True).start()
    ours.recv()
    shim = Shim(
        tokenizer=Tokenizer.from_file(str(args.tokenizer / "tokenizer.json")),
        template=template,
        pipe=ours,
    )
    app = web.Application()
    app.on_startup.append(shim.start_reader)
    app.router.add_get("/v1/models", shim.models)
    app.router.add_get("/health", shim.models)
    app.router.add_post("/v1/completions", shim.generate)
    app.router.add_post("/v1/chat/completions", shim.generate)
    web.run_app(app, host="127.0.0.1", port=args.port, print=None, access_log=None)


if __name__ == "__main__":
    main()
