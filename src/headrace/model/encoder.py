"""Builds the Hugging Face ``tokenizers`` engine that turns plain text into tokens.

Control tokens are left out on purpose: the engine knows no way to write one (tokenizer.py places
them). How each family cuts text into words before merging comes from the published
``tokenizer.json`` of the model that ``tokenizer.ggml.pre`` names.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from headrace.errors import ModelFileError
from headrace.model.vocabulary import SPACE_MARK, TokenizerKind, TokenType

if TYPE_CHECKING:
    from headrace.model.metadata import Metadata
    from headrace.model.vocabulary import Vocabulary

# Parts of the patterns: contractions, a word with the character before it, runs of other signs
# with their line ends, white space.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_SIGNS_OR_PATH = r" ?[^\s\p{L}\p{N}]+[\r\n/]*"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}", r"\p{Ll}\p{Lm}\p{Lo}\p{M}"
_CASED_WORD = "|".join(
    rf"[^\r\n\p{{L}}\p{{N}}]?[{_UPPER}]{some_upper}[{_LOWER}]{some_lower}"
    for some_upper, some_lower in ("*+", "+*")
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _WordRule:
    """How a family cuts text into words.

    ``pattern`` is None for GPT-2's own pattern. ``whole_words`` says that a word which is a token
    is taken as it is, even if merging would not lead to it.
    """

    pattern: str | None = None
    single_digits: bool = False
    whole_words: bool = False
    nfc: bool = False  # text is brought to Unicode's composed form first
    adds_bos: bool = False  # unless the file says otherwise


_GPT2 = _WordRule()
_SMOLLM = _WordRule(single_digits=True)
_LLAMA3 = _WordRule(
    pattern="|".join((_CONTRACTIONS, _WORD, r"\p{N}{1,3}", _SIGNS, _SPACES)),
    whole_words=True,
    adds_bos=True,
)
_QWEN2 = _WordRule(pattern="|".join((_CONTRACTIONS, _WORD, r"\p{N}", _SIGNS, _SPACES)), nfc=True)
_TEKKEN = _WordRule(
    pattern="|".join((_CASED_WORD, r"\p{N}", _SIGNS_OR_PATH, _SPACES)),
    whole_words=True,
    adds_bos=True,
)
_WORD_RULES = {
    "default": _GPT2,
    "gpt-2": _GPT2,
    "smollm": _SMOLLM,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "tekken": _TEKKEN,
}


def adds_bos_by_default(metadata: Metadata, kind: TokenizerKind) -> bool:
    """Say whether such a tokenizer begins a text with its BOS token where the file is silent."""
    return kind is TokenizerKind.SENTENCE_PIECE or _word_rule(metadata).adds_bos


def build_encoder(vocabulary: Vocabulary, metadata: Metadata) -> Tokenizer:
    """Build the engine for a model file's tokenizer. Raises ModelFileError."""
    if vocabulary.kind is TokenizerKind.BYTE_LEVEL:
        encoder = _build_byte_level(vocabulary, metadata)
    else:
        encoder = _build_sentence_piece(vocabulary, metadata)
    encoder.add_tokens(
        [
            AddedToken(text, normalized=False)
            for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True)
            if kind is TokenType.USER_DEFINED and text
        ]
    )
    return encoder


def _word_rule(metadata: Metadata) -> _WordRule:
    name = metadata.text("tokenizer.ggml.pre", "default")
    rule = _WORD_RULES.get(name)
    if rule is None:
        raise ModelFileError(
            f"{metadata.source}: pre-tokenizer {name[:40]!r} is not supported; use a model with "
            f"one of {', '.join(_WORD_RULES)}"
        )
    return rule


def _build_byte_level(vocabulary: Vocabulary, metadata: Metadata) -> Tokenizer:
    rule = _word_rule(metadata)
    merges = _read_merges(vocabulary, metadata)
    encoder = Tokenizer(models.BPE(vocabulary.ids, merges, ignore_merges=rule.whole_words))
    byte_level = pre_tokenizers.ByteLevel(
        add_prefix_space=False, use_regex=rule.pattern is None, trim_offsets=False
    )
    steps: list[pre_tokenizers.PreTokenizer] = [byte_level]
    if rule.pattern is not None:
        steps.insert(0, pre_tokenizers.Split(Regex(rule.pattern), behavior="isolated"))
    if rule.single_digits:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    encoder.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if rule.nfc:
        encoder.normalizer = normalizers.NFC()
    return encoder


def _read_merges(vocabulary: Vocabulary, metadata: Metadata) -> list[tuple[str, str]]:
    """Return the file's merges, each checked: the engine's own complaint names no file."""
    ids = vocabulary.ids
    merges = []
    for merge in metadata.strings("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in ids or right not in ids or left + right not in ids:
            raise ModelFileError(
                f"{metadata.source}: merge {merge[:60]!r} is not of known tokens; use a file "
                f"converted by a current llama.cpp"
            )
        merges.append((left, right))
    return merges


def _build_sentence_piece(vocabulary: Vocabulary, metadata: Metadata) -> Tokenizer:
    scores = metadata.floats("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.texts):
        raise ModelFileError(
            f"{metadata.source}: {len(vocabulary.texts)} tokens and {len(scores)} scores; use a "
            f"file converted by a current llama.cpp"
        )
    unknown = next(
        (
            text
            for text, kind in zip(vocabulary.texts, vocabulary.types, strict=True)
            if kind is TokenType.UNKNOWN
        ),
        None,
    )
    encoder = Tokenizer(
        models.BPE(
            vocabulary.ids,
            _merges_by_score(vocabulary, scores),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    steps: list[normalizers.Normalizer] = [normalizers.Replace(" ", SPACE_MARK)]
    if metadata.flag("tokenizer.ggml.add_space_prefix", default=True):
        steps.insert(0, normalizers.Prepend(SPACE_MARK))
    encoder.normalizer = normalizers.Sequence(steps)
    return encoder


def _merges_by_score(vocabulary: Vocabulary, scores: tuple[float, ...]) -> list[tuple[str, str]]:
    """Write SentencePiece's rule (join the neighbours whose union scores best) as merges.

    Every way to cut a token into two tokens is a merge; they are ranked by the score of the
    whole, best first, and those of one token by the ids of their parts.
    """
    ids = vocabulary.ids
    ranked = []
    for token, (text, kind) in enumerate(zip(vocabulary.texts, vocabulary.types, strict=True)):
        if kind is not TokenType.NORMAL:
            continue
        for cut in range(1, len(text)):
            left, right = ids.get(text[:cut]), ids.get(text[cut:])
            if left is not None and right is not None:
                ranked.append((-scores[token], token, left, right))
    ranked.sort()
    texts = vocabulary.texts
    return [(texts[left], texts[right]) for _, _, left, right in ranked]
