"""``make demo``: one command's worth of storm, and a count of what the clients lost.

    make demo
    python benchmarks/demo/demo.py --seconds 90 --json demo.json

Serves the default model on one to three replicas on this machine, under a load that rises and
falls so that replicas come and go. On the way one replica is killed in the middle of its streams
and one is drained. Afterwards every answer that had to move, and a sample of the others, is asked
again on the calm server: weights and KV cache are f32, so each text must come out the same to the
last character. Exit code 1 if a request failed or a token was lost, repeated or wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
from outcome import Report, build_report, report_lines
from play import LOOK_S, Played, Player
from recheck import ask_again
from show import Screen
from story import Story

from headrace.bench.environment import describe_environment
from headrace.clock import MonotonicClock, wall_time
from headrace.errors import StartError
from headrace.testing.server_process import running_server
from headrace.testing.streams import Crowd

if TYPE_CHECKING:
    from collections.abc import Mapping

    from headrace.testing.server_process import ServerProcess
    from headrace.testing.streams import Heard

MODEL = "smollm2-135m-instruct"
CEILING = 3
USUAL_SECONDS = 100.0
TOKENS = (40, 90)
"""Of an answer, from and to."""

CALM, BUSY, BUSY_SIMULATED = 0.2, 1.4, 2.4
"""Load, as a share of what one replica alone can do here: real ones share the processor."""

LOOKS_A_SECOND = round(1 / LOOK_S)
PROBES = 3
SAMPLE, MAX_ASKED_AGAIN = 10, 32
"""Answers that are asked again though they never moved; all answers that are."""


def settings(directory: Path, *, scale: float) -> Mapping[str, str]:
    """Return the server's environment: three replicas must fit a laptop, and scale in seconds.

    ``scale`` is the demo's length in proportion to the usual one.
    """
    own = {
        "ENGINE_THREADS": "1",
        "ENGINE_PRECISION": "f32",
        "ENGINE_KV_PRECISION": "f32",
        "ENGINE_KV_CACHE_TOKENS": "896",
        "AUTOSCALER_KV_LIMIT": "0.5",
        "ENGINE_SIMULATED_SPEED": "1.5",
        "AUTOSCALER_TARGET_TTFT": "0.8",
        "AUTOSCALER_SHORT_WINDOW": f"{3 * scale:g}",
        "AUTOSCALER_LONG_WINDOW": f"{5 * scale:g}",
        "AUTOSCALER_SCALE_OUT_AFTER": f"{1.5 * scale:g}",
        "AUTOSCALER_SCALE_IN_AFTER": f"{5 * scale:g}",
        "AUTOSCALER_COOLDOWN": f"{3 * scale:g}",
        "AUTOSCALER_START_GUESS": f"{4 * scale:g}",
        "SERVER_RESTART_MIN_SECONDS": "0.5",
        "SERVER_DRAIN_SECONDS": "20",
        "SERVER_ADMIN": str(directory / "admin.sock"),
        "SERVER_JOURNAL": str(directory / "journal.jsonl"),
        "CONSOLE_ENABLED": "false",
    }
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HEADRACE_")}
    return {**kept, **{f"HEADRACE_{name}": value for name, value in own.items()}}


def to_ask_again(played: Played, rng: random.Random) -> list[Heard]:
    """Choose the answers to be compared: all that moved, and a sample of the others."""
    whole = [heard for heard in played.heard if heard.is_whole]
    moved = [heard for heard in whole if heard.headers.get("x-request-id") in played.moved]
    others = [heard for heard in whole if heard not in moved]
    return (moved + rng.sample(others, min(SAMPLE, len(others))))[:MAX_ASKED_AGAIN]


async def measure_capacity(port: int, rng: random.Random) -> float:
    """Return how many tokens a second one replica makes for a few clients at once."""
    clock, crowd, story = MonotonicClock(), Crowd(port), Story(seconds=1, calm=1, busy=1)
    asks = [replace(story.asked(rng), max_tokens=TOKENS[0], may_stop=False) for _ in range(PROBES)]
    await crowd.ask(asks[0])  # the first one pays for what is done once
    begun = clock.now()
    await asyncio.gather(*map(crowd.ask, asks))
    return PROBES * TOKENS[0] / (clock.now() - begun)


async def perform(server: ServerProcess, screen: Screen, args: Args) -> Report:
    """Play the story, then ask again, then count."""
    rng = random.Random(args.seed)
    began = wall_time()  # measuring is load too, and may already bring a replica
    capacity = await measure_capacity(server.port, rng)
    requests_per_s = capacity / (sum(TOKENS) / 2)
    busy = BUSY_SIMULATED if args.model.startswith("simulated") else BUSY
    story = Story(
        seconds=args.seconds, calm=CALM * requests_per_s, busy=busy * requests_per_s, tokens=TOKENS
    )
    screen.say(
        f"  one replica makes {capacity:.0f} tokens/s here: the load will be "
        f"{story.calm:.1f} to {story.busy:.1f} requests/s for {story.seconds:.0f} s"
    )
    player = Player(
        server=server,
        directory=args.directory,
        story=story,
        screen=screen,
        rng=rng,
        ceiling=CEILING,
        shown_from=began,
    )
    played = await player.play()
    again = to_ask_again(played, rng)
    screen.say(f"  asking {len(again)} of them again, undisturbed ...")
    recheck = await ask_again(server.port, again)
    return build_report(played, recheck)


class Args(argparse.Namespace):
    """The command line."""

    model: str
    seconds: float
    seed: int
    json: Path | None
    directory: Path


def parse_arguments() -> Args:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--model", default=MODEL, help=f"default: {MODEL}; 'simulated' has no weights")
    add("--seconds", type=float, default=USUAL_SECONDS, help="length of the load")
    add("--seed", type=int, default=1)
    add("--json", type=Path, help="write all figures there")
    return parser.parse_args(namespace=Args())


def main() -> int:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    screen = Screen()
    screen.say(screen.bold(f"$ headrace serve {args.model} --replicas 1:{CEILING}"))
    with tempfile.TemporaryDirectory(prefix="headrace-demo-") as name:
        args.directory = Path(name)
        environment = settings(args.directory, scale=args.seconds / USUAL_SECONDS)
        arguments = (args.model, "--replicas", f"1:{CEILING}")
        with running_server(*arguments, environment=environment) as server:
            report = asyncio.run(perform(server, screen, args))
    for line in report_lines(report):
        screen.say(line)
    if args.json:
        command = [Path(word).name for word in sys.argv]
        document = {"environment": asdict(describe_environment(command)), **asdict(report)}
        document["looks"] = document["looks"][::LOOKS_A_SECOND]
        args.json.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1))
    return 0 if report.is_good else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except (RuntimeError, StartError) as error:
        sys.exit(f"headrace demo: {error}")
