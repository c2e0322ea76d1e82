"""Metrics by name, the default by labels, and what a metric over samples is worth: value, interval, drop."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from edgekit.catalog import nearest
from edgekit.errors import InputError
from edgekit.recipes import fidelity, user_metric
from edgekit.recipes.intervals import drop, result
from edgekit.recipes.scores import (
    AreaUnderCurve,
    Array,
    CharacterErrorRate,
    Mean,
    Metric,
    Outputs,
    Sqnr,
    decode,
    text_label,
    top_1,
)

__all__ = ["NAMES", "Metric", "default_metric", "drop", "metric", "result", "rows_of"]

NAMES = ("top-1", "auc", "ctc-exact", "cer", "cosine", "sqnr")


def metric(name: str, metadata: Mapping[str, str] | None = None) -> Metric:
    """The metric ``name``: one of ``NAMES``, or ``file.py:name`` for a user's own (see ``user_metric.load``).

    ``metadata`` is the model's, from which CTC metrics read the alphabet. Raises ``InputError`` for an unknown name.
    """
    metadata = dict(metadata or {})
    match name:
        case "top-1":
            return Mean(name, top_1)
        case "auc":
            return AreaUnderCurve()
        case "ctc-exact":
            return Mean(name, lambda o, label, _: float(decode(o, metadata) == text_label(label, name)))
        case "cer":
            return CharacterErrorRate(metadata)
        case "cosine":
            return Mean(name, lambda o, _, reference: fidelity.cosine(o, reference))
        case "sqnr":
            return Sqnr()
    if ":" in name or name.endswith(".py"):
        loaded = user_metric.load(name)
        return loaded if isinstance(loaded, user_metric.Object) else Mean(loaded.name, loaded, loaded.higher_is_better)
    close = nearest(name, NAMES)
    raise InputError(
        f"there is no metric {name!r}; there are: {', '.join(NAMES)}",
        hint=f"did you mean {close!r}?" if close else "your own: --metric file.py:function",
    )


def default_metric(labels: Sequence[object] | None) -> str:
    """``top-1`` for integer labels, ``cosine`` (fidelity to the unmodified model) without labels.

    Raises ``InputError`` for other labels: only the user knows what they are scored by.
    """
    if labels is None:
        return "cosine"
    if all(isinstance(label, int) for label in labels):
        return "top-1"
    other = next(label for label in labels if not isinstance(label, int))
    raise InputError(
        f"labels such as {other!r} do not say how to score the model",
        hint=f"say it with --metric: {', '.join(NAMES)}, or file.py:function",
    )


def rows_of(scorer: Metric, samples: Iterable[tuple[Outputs, object, Outputs]]) -> Array:
    """Rows [n, k] of (outputs, label, reference) triples, one at a time."""
    rows = [scorer.row(*sample) for sample in samples]
    return np.asarray(rows, float).reshape(len(rows), -1)
