"""The secret from which salts of the prefix cache derive, kept beside blocks on disk.

Blocks that outlive a server are found again only if prompts get the same digests, and those
begin with a salt. With a key file, its own secret is used instead.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from headrace.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FILE = "cache_secret"


def kept_secret(directory: Path, draw: Callable[[], str]) -> str:
    """Return the secret in ``directory``, drawn if there is none. Raises ConfigError."""
    path = directory / FILE
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path, draw())
        secret = path.read_text("ascii", errors="replace").strip()
    except OSError as error:
        raise ConfigError(f"disk_cache_dir: {error}; choose another or mend it") from error
    if not re.fullmatch(r"([0-9a-f]{2}){16,}", secret):
        raise ConfigError(f"{path} is damaged: delete it (the blocks beside it are then useless)")
    return secret


def _create(path: Path, secret: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    draft = path.with_suffix(f".{os.getpid()}")
    file = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(file, "w") as stream:
        stream.write(secret)
    draft.replace(path)
