"""How this installation was built, and how to run its source where it was compiled."""

from __future__ import annotations

import os
import sys
from importlib.machinery import SOURCE_SUFFIXES, FileFinder, ModuleSpec, SourceFileLoader
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

FROM_SOURCE = "headrace_source"
"""Option of Python (``python -X headrace_source -m headrace ...``): run the source, whatever was
compiled. For one process, not for its children."""


def is_compiled() -> bool:
    """Whether what runs is compiled (``HEADRACE_COMPILE=1`` when it was installed)."""
    has_libraries = any((Path(__file__).parent / "core" / "router").glob("machine.*.so"))
    return has_libraries and not is_interpreted()


def is_interpreted() -> bool:
    """Whether the source is to be run even if it was compiled."""
    return FROM_SOURCE in sys._xoptions


def use_source() -> None:
    """Import this package's modules from their source from now on."""
    sys.meta_path.insert(0, _SourceFinder())


def run_interpreted() -> None:
    """Begin this process's command anew on the source, if it runs compiled. Returns if not."""
    if is_compiled():
        os.execv(sys.executable, [*interpreted_python(), "-m", "headrace", *sys.argv[1:]])


def interpreted_python() -> tuple[str, ...]:
    """Return the command line of a Python that runs the source."""
    return sys.executable, "-P", "-X", FROM_SOURCE


class _SourceFinder:
    def find_spec(
        self, name: str, path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith("headrace."):
            return None
        finders = (FileFinder(each, (SourceFileLoader, SOURCE_SUFFIXES)) for each in path or ())
        return next((spec for each in finders if (spec := each.find_spec(name))), None)
