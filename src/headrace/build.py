"""How this installation was built."""

from __future__ import annotations

from pathlib import Path


def is_compiled() -> bool:
    """Whether the hot path is compiled (``HEADRACE_COMPILE=1`` when it was installed)."""
    return any((Path(__file__).parent / "core" / "router").glob("machine.*.so"))
