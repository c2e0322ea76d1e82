"""Connectionist temporal classification: the alphabet of a recogniser and the greedy decoding of its output.

Source: Graves et al., "Connectionist Temporal Classification", ICML 2006 (best-path decoding).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from edgekit.errors import InputError

METADATA_KEY = "character"


def characters(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """The model's characters in order, from its metadata (one a line); empty when it carries none."""
    text = metadata.get(METADATA_KEY, "")
    # Not splitlines(): an alphabet may hold U+2028 and friends as characters.
    return tuple(line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")) if text else ()


def alphabet(metadata: Mapping[str, str], classes: int) -> tuple[str, ...]:
    """The text of each of ``classes`` output classes: blank, the model's characters and, where there is one class more,
    the space, as PP-OCR's recognisers are trained. Raises ``InputError`` when the counts do not fit.
    """
    known = characters(metadata)
    if not known:
        raise InputError(
            f"the model's metadata has no key {METADATA_KEY!r}, so its output classes have no text",
            hint="store the characters, one a line: onnx.helper.set_model_props(model, {'character': ...})",
        )
    if classes not in (len(known) + 1, len(known) + 2):
        raise InputError(
            f"the model's metadata {METADATA_KEY!r} lists {len(known)} characters; its output has {classes} classes",
            hint=f"a blank, the characters and perhaps a space make {len(known) + 1} or {len(known) + 2} classes",
        )
    return ("", *known, " ")[:classes]


def greedy(scores: np.ndarray[Any, Any], letters: tuple[str, ...]) -> str:
    """Best-path decoding of ``scores`` [..., T, C]: the best class at each step, repeats merged, blanks (0) dropped."""
    best = scores.reshape(-1, scores.shape[-1]).argmax(axis=1)
    starts = np.append(True, best[1:] != best[:-1])
    return "".join(letters[i] for i in best[starts] if i)
