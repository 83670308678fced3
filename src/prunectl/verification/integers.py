"""How integers of 1 to 8 bits lie in words of 32 bits, from the lowest bits up."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

_WORD = 32
_SPLITTING = (0, 18)
"""The first release of compressed-tensors that splits an integer between two words. Those before it
left bits of a word free where no whole integer fitted in."""


class Unreadable(Exception):
    """A weight in a form that is not known, or whose parts do not fit together."""


def ct_packing(words: int, count: int, config: Mapping[str, Any]) -> tuple[int, bool]:
    """The bits of each of ``count`` integers in so many words, and whether each lies in one word.

    By the number of words and the ``num_bits`` in the config, and by the version there if several
    packings take as many.
    """
    stated = _num_bits(config)
    found = [
        (bits, whole)
        for bits in stated or range(1, 9)
        for whole in ((False, True) if _WORD % bits else (False,))
        if words_of(count, bits, whole=whole) == words
    ]
    version = re.match(r"(\d{1,4})\.(\d{1,4})", str(config.get("version")))
    if len(found) > 1 and version:
        old = (int(version[1]), int(version[2])) < _SPLITTING
        found = [(bits, whole) for bits, whole in found if whole == old or _WORD % bits == 0]
    if len(found) > 1:
        raise Unreadable(
            f"how {count} integers lie in {words} words depends on num_bits and on the version of "
            "compressed-tensors, and its config does not tell both"
        )
    if not found:
        kinds = " or ".join(map(str, stated)) or "1 to 8"
        raise Unreadable(f"{count} integers of {kinds} bits do not take {words} words each")
    return found[0]


def _num_bits(config: Mapping[str, Any]) -> list[int]:
    """Those of the groups of layers in a config of compressed-tensors."""
    groups = config.get("config_groups")
    groups = groups.values() if isinstance(groups, dict) else ()
    weights = [group.get("weights") for group in groups if isinstance(group, dict)]
    stated = [one.get("num_bits") for one in weights if isinstance(one, dict)]
    return [bits for bits in range(1, 9) if bits in stated]


def words_of(count: int, bits: int, *, whole: bool = False) -> int:
    """How many words so many integers take; ``whole``: none lies in two words."""
    return -(-count // (_WORD // bits)) if whole else -(-count * bits // _WORD)


def bits_of(words: int, count: int) -> int:
    """The bits of each of ``count`` integers that fill so many words."""
    found = [bits for bits in range(1, 9) if words_of(count, bits) == words]
    if len(found) != 1:
        raise Unreadable(f"{count} integers of 1 to 8 bits do not take {words} words each")
    return found[0]


def unpacked(words: Array, bits: int, count: int, *, whole: bool = False) -> Array:
    """The first ``count`` integers of each row of words, from the lowest bits up, as uint8.

    Args:
        whole: no integer lies in two words.
    """
    stream = np.ascontiguousarray(words).view(np.uint8)
    if 8 % bits == 0:
        each = 8 // bits
        fields = np.empty((len(stream), stream.shape[1], each), np.uint8)
        for at in range(each):
            np.right_shift(stream, at * bits, out=fields[:, :, at])
        fields &= (1 << bits) - 1
        return fields.reshape(len(stream), -1)[:, :count]
    single = np.unpackbits(stream, axis=1, bitorder="little")
    if whole:
        used = single.reshape(len(stream), -1, _WORD)[:, :, : _WORD - _WORD % bits]
        single = used.reshape(len(stream), -1)
    groups = single[:, : count * bits].reshape(len(stream), count, bits)
    return np.packbits(groups, axis=2, bitorder="little")[:, :, 0]
