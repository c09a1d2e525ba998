"""Replays of journals in plain Python, whatever the test itself runs on."""

from __future__ import annotations

import subprocess

import msgspec

from headrace.build import interpreted_python, is_compiled
from headrace.monitoring.step_replay import Replayed, replay

_LIMIT = 60.0
_REPLAY = """
import sys, msgspec
from headrace.monitoring.step_replay import replay
sys.stdout.buffer.write(msgspec.json.encode(replay(sys.stdin.buffer.read())))
"""


def replayed(segment: bytes) -> Replayed:
    """Return what a segment of an engine's journal says to plain Python.

    What compiled engines wrote is told to another process, so that both are held to the same
    decisions.
    """
    if not is_compiled():
        return replay(segment)
    done = subprocess.run(
        [*interpreted_python(), "-c", _REPLAY],
        input=segment,
        capture_output=True,
        timeout=_LIMIT,
        check=True,
    )
    return msgspec.json.decode(done.stdout, type=Replayed)
