"""Benchmarks are scripts that import each other by name: their folders are put on the path."""

from __future__ import annotations

import sys
from pathlib import Path

FOLDERS = ("serve", "twin")

for folder in FOLDERS:
    sys.path.append(str(Path(__file__).parents[2] / "benchmarks" / folder))
