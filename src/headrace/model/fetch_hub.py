"""Model files from Hugging Face repositories, through ``huggingface_hub`` (extra ``hub``)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from headrace.errors import DownloadFailed, MissingExtra

if TYPE_CHECKING:
    from headrace.model.registry import HubRepo

ANSWER_SECONDS = 10.0


def fetch_from_hub(source: HubRepo, staging: Path, *, endpoint: str | None = None) -> Path:
    """Fetch a model file into ``staging`` and return its path; the library draws its own bar.

    ``endpoint`` is where the hub is, None for the library's own settings (HF_ENDPOINT).
    Raises DownloadFailed, or MissingExtra without the library.
    """
    try:
        from huggingface_hub import HfApi, errors, hf_hub_download
    except ImportError:
        raise MissingExtra(
            "fetching from Hugging Face needs a package: pip install 'headrace[hub]'"
        ) from None
    try:
        # Asked first even when the file is known: the download itself takes long to give up.
        listing = HfApi(endpoint=endpoint).model_info(source.repo, timeout=ANSWER_SECONDS)
        file = _choose_file(source, [sibling.rfilename for sibling in listing.siblings or ()])
        fetched = hf_hub_download(source.repo, file, local_dir=staging, endpoint=endpoint)
    except (errors.HTTPError, OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DownloadFailed(
            f"cannot fetch {source.repo} from Hugging Face: {reason or type(error).__name__}; "
            f"check the name and the network, or name a .gguf file"
        ) from None
    return Path(fetched)


def _choose_file(source: HubRepo, files: list[str]) -> str:
    models = sorted(file for file in files if file.endswith(".gguf"))
    if source.file is None and len(models) == 1:
        return models[0]
    if source.file in models:
        return source.file
    shown = ", ".join(models[:8]) + (f" and {len(models) - 8} more" if len(models) > 8 else "")
    raise DownloadFailed(
        f"{source.repo} holds {shown or 'no .gguf file'}; name one as hf:{source.repo}:FILE"
    )
