"""What tells one server of OpenAI's API from another, for the scripted replica to imitate.

How it describes its models, what its metrics are called, and how it goes on with an answer that
began elsewhere: from the assistant's message (``continue_final_message``), from a prompt that ends
in the answer's first words, or from token ids (vLLM).
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from headrace.types import Tokens

_METRICS: Final = {
    "vllm": (
        'vllm:num_requests_running{{engine="0"}} {running}.0\n'
        'vllm:num_requests_waiting{{engine="0"}} {waiting}.0\n'
        'vllm:kv_cache_usage_perc{{engine="0"}} 0.25\n'
        'vllm:generation_tokens_total{{engine="0"}} {tokens}.0\n'
    ),
    "sglang": (
        'sglang:num_running_reqs{{tp_rank="0"}} {running}\n'
        'sglang:num_queue_reqs{{tp_rank="0"}} {waiting}\n'
        'sglang:token_usage{{tp_rank="0"}} 0.25\n'
        'sglang:generation_tokens_total{{tp_rank="0"}} {tokens}\n'
    ),
    "llamacpp": (
        "llamacpp:requests_processing {running}\n"
        "llamacpp:requests_deferred {waiting}\n"
        "llamacpp:n_decode_total {tokens}\n"
    ),
    "tgi": (
        "tgi_batch_current_size {running}\n"
        "tgi_queue_size {waiting}\n"
        'tgi_batch_inference_count{{method="decode"}} {tokens}\n'
    ),
}
_CHATS_GO_ON: Final = ("vllm", "sglang", "llamacpp")
_LAST_MESSAGE: Final = re.compile(rb',(\{"role":"assistant"[^}]*\})\]$')
_OWN_WORDS: Final = re.compile(rb'((?: [a-z]+[0-9]+)+)"$')
_WORD: Final = re.compile(rb" [a-z]+([0-9]+)")
_FIRST_OUTPUT_ID: Final = 256  # smaller ones are the prompt's: the bytes of its digest


class Beginning(NamedTuple):
    """Where an answer begins: the digest of its prompt, and how much of it there is already."""

    seed: bytes
    prompt_tokens: Tokens
    num_before: Tokens = 0


def beginning_of(server: str, prompt: bytes, *, goes_on: bool) -> Beginning:
    """Return where the answer to ``prompt`` (JSON of messages, text or ids) begins."""
    if server == "vllm" and prompt[:1] == b"[" and prompt[1:2].isdigit():
        return _from_ids(msgspec.json.decode(prompt, type=list[int]))
    rest, said = prompt, b""
    if goes_on and server in _CHATS_GO_ON and (match := _LAST_MESSAGE.search(prompt)):
        rest, said = prompt[: match.start()] + b"]", match[1]
    elif match := _OWN_WORDS.search(prompt):
        numbers = [int(number) for number in _WORD.findall(match[1])]
        if numbers == list(range(len(numbers))):
            rest, said = prompt[: match.start()] + b'"', match[1]
    num_before = len(_WORD.findall(said))
    seed = hashlib.sha256(rest).digest()
    return Beginning(seed, len(rest.split()) + num_before, num_before)


def prompt_ids(beginning: Beginning) -> list[int]:
    """The prompt as this imitation of vLLM tokenises it."""
    return [*beginning.seed, *map(output_id, range(beginning.num_before))]


def output_id(index: int) -> int:
    """The id of an answer's token ``index``."""
    return _FIRST_OUTPUT_ID + index


def metrics_page(server: str, *, running: int, waiting: int, tokens: Tokens) -> bytes | None:
    """Return the page, None for a server without one."""
    page = _METRICS.get(server)
    if page is None:
        return None
    return page.format(running=running, waiting=waiting, tokens=tokens).encode()


def _from_ids(ids: list[int]) -> Beginning:
    output = [each for each in ids if each >= _FIRST_OUTPUT_ID]
    seed = bytes(each for each in ids if each < _FIRST_OUTPUT_ID)
    return Beginning(seed, len(ids), len(output))
