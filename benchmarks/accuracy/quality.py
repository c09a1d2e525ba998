"""How near the OpenVINO executor's distributions are to the float32 truth, per configuration.

    python benchmarks/accuracy/quality.py MODEL.gguf [CONFIG ..] [--json F]
    python benchmarks/accuracy/quality.py MODEL.gguf --make-check-set

The check set (check_set.json) holds prompts and continuations as token ids of the default model.
Every continuation is forced, whatever the executor would have drawn: the prompt in one chunk, then
token by token through the KV cache. Compared at each position: the most probable token, and the
Kullback-Leibler divergence from the truth (reference.py on the same file), natural log.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1] / "micro"))

from executor_speed import machine, options_of

from headrace.core.scheduler.plan import Row, SequenceStart, StepPlan
from headrace.executor.openvino.build import build_openvino_executor
from headrace.executor.reference import load_reference
from headrace.executor.sampler import Draw, Drawn, Sampler
from headrace.model.text import load_text_model
from headrace.types import BlockId, SamplingParams, SequenceId, StepId

if TYPE_CHECKING:
    from collections.abc import Sequence

    from headrace.executor.openvino.executor import OpenVinoExecutor
    from headrace.executor.reference import Reference

F64: TypeAlias = npt.NDArray[np.float64]

CHECK_SET = Path(__file__).with_name("check_set.json")
POSITIONS = 49  # of each continuation: 196 over four prompts
QUESTIONS = (
    "Name five rivers of Europe and a city on each of them.",
    "Write a short story about a miller who repairs an old water wheel.",
    "What is the difference between a list and a tuple in Python? Give an example.",
    "Explain in simple words why the sky is blue during the day and red in the evening.",
)


@dataclass(frozen=True, slots=True)
class Text:
    """A prompt and the continuation that is forced after it."""

    prompt: list[int]
    continuation: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What came out for a configuration."""

    positions: int
    same_argmax: int
    mean_kl: float
    mean_difference: float  # of the forced token's log-probability
    largest_difference: float


class RecordingSampler(Sampler):
    """A sampler that keeps the logits it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.logits: list[npt.NDArray[np.float32]] = []

    def draw(self, draws: Sequence[Draw], logits_DV: npt.NDArray[np.float32]) -> Drawn:
        """Record, then draw."""
        self.logits.extend(logits_DV.copy())
        return super().draw(draws, logits_DV)


def measure(
    executor: OpenVinoExecutor, sampler: RecordingSampler, texts: list[Text], truths: list[F64]
) -> Quality:
    """Compare an executor with the truth over all texts."""
    same, divergences, differences = 0, [], []
    for index, (text, truth) in enumerate(zip(texts, truths, strict=True)):
        sampler.logits.clear()
        _force(executor, SequenceId(index), text)
        found = log_softmax(np.array(sampler.logits))
        same += int((found.argmax(-1) == truth.argmax(-1)).sum())
        divergences += (np.exp(truth) * (truth - found)).sum(-1).tolist()
        forced = np.arange(len(truth)), text.continuation
        differences += np.abs(found[forced] - truth[forced]).tolist()
    return Quality(
        positions=len(divergences),
        same_argmax=same,
        mean_kl=round(float(np.mean(divergences)), 6),
        mean_difference=round(float(np.mean(differences)), 5),
        largest_difference=round(float(np.max(differences)), 4),
    )


def _force(executor: OpenVinoExecutor, sequence: SequenceId, text: Text) -> None:
    start = SequenceStart(
        sequence=sequence,
        sampling=SamplingParams(temperature=0),
        prompt=tuple(text.prompt),
        output=(),
        min_tokens=0,
        stop_token_ids=(),
    )
    blocks = tuple(BlockId(i) for i in range(executor.spec.num_blocks))
    chunks = [tuple(text.prompt), *((token,) for token in text.continuation[:-1])]
    starts: tuple[SequenceStart, ...] = (start,)
    at = 0
    for chunk in chunks:
        row = Row(sequence, at, chunk, blocks, samples=True)
        executor.execute(StepPlan(step_id=StepId(0), rows=(row,), starts=starts))
        at, starts = at + len(chunk), ()


def log_softmax(logits: npt.NDArray[np.float32]) -> F64:
    """Return log-probabilities of rows of logits, float64."""
    exact = logits.astype(np.float64)
    exact -= exact.max(-1, keepdims=True)
    return np.asarray(exact - np.log(np.exp(exact).sum(-1, keepdims=True)))


def truth_of(reference: Reference, text: Text) -> F64:
    """Return the truth's log-probabilities at each position of the continuation."""
    logits = reference.logits([*text.prompt, *text.continuation[:-1]])
    return log_softmax(logits[len(text.prompt) - 1 :])


def make_check_set(model: Path) -> None:
    """Write the check set: continuations are the truth's own most probable tokens."""
    reference, chat = load_reference(model), load_text_model(model)
    texts = []
    for question in QUESTIONS:
        prompt = chat.encode_chat([{"role": "user", "content": question}])
        known = list(prompt)
        for _ in range(POSITIONS):
            known.append(int(reference.logits(known)[-1].argmax()))
        texts.append(Text(list(prompt), known[len(prompt) :]))
        print(chat.tokenizer.decode(texts[-1].continuation))
    CHECK_SET.write_text(json.dumps([asdict(text) for text in texts]) + "\n")


def reaches_bar(quality: Quality) -> bool:
    """Return whether a configuration may be a default: the bar is 190 of 196 and a KL of 0.002."""
    enough = quality.same_argmax * 196 >= 190 * quality.positions
    return enough and quality.mean_kl <= 0.002


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("configs", nargs="*", default=["auto"])
    parser.add_argument("--cache", type=Path, default=Path("/tmp/headrace-bench"))
    parser.add_argument("--check-set", type=Path, default=CHECK_SET)
    parser.add_argument("--make-check-set", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument(
        "--check", action="store_true", help="fail if a configuration misses the bar"
    )
    arguments = parser.parse_args()
    if arguments.make_check_set:
        make_check_set(arguments.model)
        return 0
    texts = [Text(**entry) for entry in json.loads(arguments.check_set.read_text())]
    reference = load_reference(arguments.model)
    truths = [truth_of(reference, text) for text in texts]
    found: dict[str, Quality] = {}
    for config in arguments.configs:
        sampler = RecordingSampler()
        executor = build_openvino_executor(
            arguments.model, arguments.cache, options_of(config), sampler=sampler
        )
        quality = measure(executor, sampler, texts, truths)
        executor.close()
        found[config] = quality
        print(f"{config}: {quality}", flush=True)
    if arguments.json:
        figures = {config: asdict(quality) for config, quality in found.items()}
        arguments.json.write_text(json.dumps({**machine(), "quality": figures}, indent=1) + "\n")
    return 1 if arguments.check and not all(map(reaches_bar, found.values())) else 0


if __name__ == "__main__":
    sys.exit(main())
