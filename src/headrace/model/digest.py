"""SHA-256 of files."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from headrace.errors import DownloadFailed

if TYPE_CHECKING:
    from pathlib import Path


def check_digest(path: Path, expected: str) -> None:
    """Compare a fetched file with the digest it must have. Raises DownloadFailed."""
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise DownloadFailed(
            f"{path.name} has SHA-256 {found}, expected {expected}: it was changed on its way or "
            f"at its source; try again, or name a .gguf file that you trust"
        )
