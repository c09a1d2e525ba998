"""The alphabet of byte-level BPE: each byte written as one printable character.

Bytes that are printable in Latin-1 stand for themselves; the other 68 are written, in order, as
the characters from U+0100 on. Source: the GPT-2 tokenizer (Radford et al. 2019), since used by
every byte-level vocabulary.
"""

from __future__ import annotations

_PRINTABLE = (*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100))
_OTHERS = tuple(byte for byte in range(256) if byte not in _PRINTABLE)

BYTE_TO_CHAR: dict[int, str] = {byte: chr(byte) for byte in _PRINTABLE} | {
    byte: chr(0x100 + index) for index, byte in enumerate(_OTHERS)
}
CHAR_TO_BYTE: dict[str, int] = {char: byte for byte, char in BYTE_TO_CHAR.items()}
