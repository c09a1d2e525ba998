"""What structured output costs on a real vocabulary: compiling, masks, applying them.

Texts are walked through grammars as an engine does it: a mask, its application to a row of logits,
a token accepted. The first mask is told apart, since it comes with the time to the first token;
the trial is what a gateway adds to a request whose grammar it has not seen.

    python benchmarks/micro/constraint_cost.py [--model smollm2-135m-instruct] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from headrace.config import read_environment
from headrace.executor.constraints import GrammarState
from headrace.model.grammar import GrammarCompiler
from headrace.model.pull import pull
from headrace.model.registry import resolve
from headrace.model.text import load_text_model
from headrace.types import Constraint, ConstraintKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from headrace.model.grammar import Grammar
    from headrace.model.text import TextModel
    from headrace.types import TokenId

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "email": {"type": "string", "pattern": "^[a-z]+@[a-z]+\\.[a-z]{2,3}$"},
        "tags": {"type": "array", "items": {"type": "string"}, "maxItems": 5},
        "address": {
            "type": "object",
            "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
            "required": ["street", "city"],
            "additionalProperties": False,
        },
        "kind": {"enum": ["private", "public", "unknown"]},
    },
    "required": ["name", "age", "email", "tags", "address", "kind"],
    "additionalProperties": False,
}
SAID = (
    '{"name": "Ann Miller", "age": 31, "email": "ann@mill.org", "tags": ["water", "wheel"], '
    '"address": {"street": "12 Race Lane", "city": "Headingley"}, "kind": "private"}'
)
PROSE = "The headrace brings water to the wheel, and the tailrace takes it away again. " * 3
CASES = {
    "schema of six fields": (Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(PERSON)), SAID),
    "json_object": (Constraint(ConstraintKind.JSON_OBJECT), SAID),
    "regex": (Constraint(ConstraintKind.REGEX, "[A-Z][a-z ,]+(\\. [A-Z][a-z ,]+)*\\. "), PROSE),
    "free text": (Constraint(ConstraintKind.REGEX, "(.|\n)*"), PROSE),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """Microseconds, medians over rounds and tokens unless the name says otherwise."""

    case: str
    tokens: int
    trial: float  # a gateway's: compile and a few tokens
    compile: float
    first_mask: float
    mask: float
    mask_p95: float
    mask_max: float
    apply: float
    accept: float


class Watch:
    """Times calls."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def call(self, work: Callable[[], object]) -> None:
        """Call and note how long it took, in microseconds."""
        begun = time.perf_counter()
        work()
        self.times.append((time.perf_counter() - begun) * 1e6)


def measure(case: str, text: TextModel, compiler: GrammarCompiler, rounds: int) -> Figure:
    """Walk one text through one grammar ``rounds`` times, compiled anew each time."""
    constraint, said = CASES[case]
    tokens = text.tokenizer.encode(said)
    logits_V = np.random.default_rng(0).standard_normal(text.tokenizer.vocab_size)
    row_V = logits_V.astype(np.float32)
    trial, compiling, first, masks, applying, accepting = (Watch() for _ in range(6))
    for _ in range(rounds):
        trial.call(partial(compiler.check, constraint))
        compiling.call(partial(compiler.compile, constraint))
        grammar = compiler.compile(constraint)
        state = GrammarState(partial(_same, grammar), (), text.tokenizer.end_ids, None)
        for place, token in enumerate(tokens):
            (masks if place else first).call(state.mask)
            applying.call(partial(state.mask().apply, row_V.copy()))
            accepting.call(partial(_accept, state, token))
    return Figure(
        case=case,
        tokens=len(tokens),
        trial=round(statistics.median(trial.times), 1),
        compile=round(statistics.median(compiling.times), 1),
        first_mask=round(statistics.median(first.times), 1),
        mask=round(statistics.median(masks.times), 1),
        mask_p95=round(statistics.quantiles(masks.times, n=20)[-1], 1),
        mask_max=round(max(masks.times), 1),
        apply=round(statistics.median(applying.times), 1),
        accept=round(statistics.median(accepting.times), 1),
    )


def _same(grammar: Grammar) -> Grammar:
    return grammar


def _accept(state: GrammarState, token: TokenId) -> None:
    state.accept(token)
    state.count_valid(())  # so that it is read at once


def commit() -> str:
    """Return the commit that is checked out, with ``+`` if files differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True)
    return (head.stdout.strip() or "unknown") + ("+" if changed.stdout.strip() else "")


def main() -> int:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", type=Path, metavar="FILE")
    arguments = parser.parse_args()
    text = load_text_model(pull(resolve(arguments.model), read_environment().cache_dir))
    compiler = GrammarCompiler(lambda: text.tokenizer)
    warming = Watch()
    warming.call(compiler.warm_up)
    print(f"tokens read once: {warming.times[0] / 1000:.0f} ms of {text.tokenizer.vocab_size}")
    figures = []
    for case in CASES:
        figure = measure(case, text, compiler, arguments.rounds)
        figures.append(figure)
        print(
            f"{case:21} {figure.tokens:3} tokens: trial {figure.trial:6.0f}, compile "
            f"{figure.compile:5.0f}, first mask {figure.first_mask:5.0f}; a token: mask "
            f"{figure.mask:4.0f} (p95 {figure.mask_p95:4.0f}, max {figure.mask_max:5.0f}), apply "
            f"{figure.apply:3.0f}, accept {figure.accept:3.1f} us"
        )
    if arguments.json:
        document = {
            "command": " ".join(["python", *sys.argv]),
            "commit": commit(),
            "date": time.strftime("%Y-%m-%d"),
            "machine": f"{platform.processor() or platform.machine()}, {platform.platform()}",
            "python": platform.python_version(),
            "warm_up_ms": round(warming.times[0] / 1000, 1),
            "figures": [asdict(figure) for figure in figures],
        }
        arguments.json.write_text(json.dumps(document, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
