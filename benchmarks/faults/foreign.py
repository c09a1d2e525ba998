"""Replicas that are not ours: ``headrace fake-replica`` processes, and what they must say."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from headrace.testing.openai_texts import word_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from headrace.testing.streams import Asked

END_S = 10.0
_HEADRACE = (sys.executable, "-P", "-m", "headrace")


class FakeTexts:
    """Implements Texts: a word for each token, from the bytes of the prompt."""

    def pieces(self, asked: Asked) -> Sequence[str]:
        """See Texts."""
        messages = [{"role": "user", "content": asked.prompt}]
        prompt = msgspec.json.encode(messages if asked.chat else asked.prompt)
        seed = hashlib.sha256(prompt).digest()
        return [word_of(seed, index) for index in range(asked.max_tokens)]


@contextmanager
def fake_replica(*flags: str) -> Iterator[str]:
    """Run one; yield its URL."""
    command = (*_HEADRACE, "fake-replica", *flags)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            match = re.search(r"http://\S+", process.stdout.readline())
            if match is None:
                raise RuntimeError("the fake replica did not start")
            yield match[0]
        finally:
            process.kill()
            process.wait(END_S)
