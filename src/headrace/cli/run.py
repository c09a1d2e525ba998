"""``headrace run``: one prompt, one answer, in one process.

The same EngineCore, executor and tokenizer as in a server, without sockets between them.
"""

from __future__ import annotations

import asyncio
import secrets
import sys
from typing import TYPE_CHECKING, assert_never

from headrace.cli.executors import executor_builder
from headrace.cli.flags import Flag, add_flags, load_settings
from headrace.cli.models import cache_dir, local_model
from headrace.clock import MonotonicClock
from headrace.config import read_environment
from headrace.core.scheduler.engine_core import build_engine_core
from headrace.core.scheduler.events import (
    Emit,
    Execute,
    Incident,
    KvChanged,
    KvSnapshot,
    Reject,
    ReportLoad,
    Submit,
    Transfer,
)
from headrace.errors import StartError, UsageError
from headrace.machine import Source
from headrace.server.driver import AsyncioDriver
from headrace.server.engine import scheduler_config
from headrace.server.executor_thread import ExecutorThread
from headrace.types import FinishReason, Request, RequestId, SamplingParams

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from headrace.core.scheduler.events import (
        EngineEffect,
        EngineEvent,
        StepDone,
        StepFailed,
    )
    from headrace.executor.base import Executor
    from headrace.model.text import TextModel
    from headrace.server.settings import EngineSettings
    from headrace.types import Output, TokenId

_FLAGS = (
    Flag("--threads", "engine.threads", "N"),
    Flag("--max-model-len", "engine.max_model_len", "N"),
    Flag("--kv-cache-tokens", "engine.kv_cache_tokens", "N"),
    Flag("--cache-dir", "model.cache_dir", "DIR"),
)
_EPILOG = """examples:
  headrace run smollm2-135m-instruct "Name three rivers."
  headrace run ./model.gguf --max-tokens 50 --temperature 0 < question.txt"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``headrace run``."""
    parser.usage = "headrace run MODEL [PROMPT] [flags]"
    parser.description = "Answer one prompt in the terminal. Nothing listens, nothing stays."
    parser.epilog = _EPILOG
    parser.add_argument("model_name", metavar="MODEL", help="name, PATH.gguf, pypi:..., hf:...")
    parser.add_argument("prompt", metavar="PROMPT", nargs="?", help="default: standard input")
    parser.add_argument("--max-tokens", type=int, default=256, metavar="N", help="(256)")
    parser.add_argument("--temperature", type=float, default=0.7, metavar="T", help="(0.7)")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed, the same answer")
    parser.add_argument("--raw", action="store_true", help="no chat template: go on with PROMPT")
    add_flags(parser, _FLAGS)


def main(args: argparse.Namespace) -> int:
    """Answer; return the exit code."""
    environment = read_environment()
    config = load_settings(args, _FLAGS, environment).config
    prompt = sys.stdin.read() if args.prompt is None else args.prompt
    model, text = local_model(args.model_name, config, environment)
    request = _request(args, text, prompt)
    directory = cache_dir(config, environment)
    build = executor_builder(model, config.engine, cache_dir=directory, progress=lambda _: None)
    detokenizer = text.tokenizer.detokenizer(continues=args.raw)

    def show(tokens: tuple[TokenId, ...]) -> None:
        stop = request.stop_token_ids
        sys.stdout.write(detokenizer.push([token for token in tokens if token not in stop]))
        sys.stdout.flush()

    asyncio.run(_Solo(show).answer(request, build, config.engine))
    print(detokenizer.flush())
    return 0


def _request(args: argparse.Namespace, text: TextModel, prompt: str) -> Request:
    if args.max_tokens < 1:
        raise UsageError(f"--max-tokens is {args.max_tokens}; it must be at least 1")
    if not 0 <= args.temperature <= 2:
        raise UsageError(f"--temperature is {args.temperature}; it must be 0 to 2")
    if args.raw or text.template is None:
        tokens = text.encode_prompt(prompt)
    else:
        tokens = text.encode_chat([{"role": "user", "content": prompt}])
    seed = secrets.randbits(64) if args.seed is None else args.seed & 0xFFFF_FFFF_FFFF_FFFF
    return Request(
        id=RequestId("run"),
        prompt=tuple(tokens),
        max_tokens=args.max_tokens,
        stop_token_ids=text.tokenizer.end_ids,
        sampling=SamplingParams(temperature=args.temperature, seed=seed),
    )


class _Solo:
    """An engine for one request. ``show`` is called with its tokens."""

    def __init__(self, show: Callable[[tuple[TokenId, ...]], None]) -> None:
        self._show = show
        self._thread: ExecutorThread | None = None
        self._driver: AsyncioDriver[EngineEvent, EngineEffect] | None = None
        self._ended: asyncio.Future[None] | None = None

    async def answer(
        self, request: Request, build: Callable[[], Executor], settings: EngineSettings
    ) -> None:
        """Generate to the end. Raises StartError."""
        loop = asyncio.get_running_loop()
        clock = MonotonicClock()
        self._ended = loop.create_future()
        self._thread = ExecutorThread(finished=self._finished, clock=clock)
        spec = await self._thread.start(build)
        self._driver = AsyncioDriver(
            build_engine_core(spec, scheduler_config(settings)),
            perform=self._perform,
            clock=clock,
            loop=loop,
            on_fault=self._ended.set_exception,
        )
        try:
            self._driver.feed(Submit(request))
            await self._ended
        finally:
            self._driver.close()
            await self._thread.stop()

    def _finished(self, outcome: StepDone | StepFailed) -> None:
        assert self._driver is not None
        self._driver.feed(outcome, Source.DEVICE)

    def _perform(self, effect: EngineEffect) -> None:
        assert self._thread is not None
        match effect:
            case Execute(plan):
                self._thread.submit(plan)
            case Emit(outputs):
                for output in outputs:
                    self._take(output)
            case Reject(_, _, reason):
                self._end(StartError(reason))
            case ReportLoad() | KvChanged() | KvSnapshot() | Transfer() | Incident():
                pass
            case _:
                assert_never(effect)

    def _take(self, output: Output) -> None:
        self._show(output.tokens)
        if output.finish is FinishReason.ERROR:
            self._end(StartError(output.reason))
        elif output.finish is not None:
            self._end(None)

    def _end(self, error: StartError | None) -> None:
        assert self._ended is not None
        if self._ended.done():
            return
        if error is None:
            self._ended.set_result(None)
        else:
            self._ended.set_exception(error)
