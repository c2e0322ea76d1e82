"""F1 of a YOLOX head's boxes, as ``edgekit deploy --metric benchmarks/detector/metric.py:box_f1`` takes it."""

from __future__ import annotations

import numpy as np

SCORE, SAME = 0.1, 0.45
"""Below SCORE nothing is a box; boxes that share more than SAME are one: ddddocr/core/detection_engine.py, get_bbox."""


class _BoxF1:
    """Detected against planted boxes, matched one to one at an intersection over union of at least 0.5.

    Row: matched, detected, planted. The label holds planted boxes [n, 4] (x0, y0, x1, y1), -1 where there is none.
    """

    name = "box F1"
    higher_is_better = True

    def row(self, outputs: dict[str, np.ndarray], label: object, _reference: object) -> tuple[float, ...]:
        free = boxes_of(next(iter(outputs.values())))
        planted = np.asarray(label, np.float32).reshape(-1, 4)
        planted = planted[planted[:, 2] > 0]
        detected, matched = len(free), 0
        for box in planted:
            overlaps = _overlaps(box, free)
            if len(free) and overlaps.max() >= 0.5:
                free = np.delete(free, int(overlaps.argmax()), axis=0)
                matched += 1
        return float(matched), float(detected), float(len(planted))

    def aggregate(self, rows: np.ndarray) -> float:
        matched, detected, planted = rows.sum(axis=0)
        return float(2 * matched / max(detected + planted, 1))


def boxes_of(output: np.ndarray) -> np.ndarray:
    """Boxes [n, 4] of a square picture, best first, from the raw head [cells, 5 + classes].

    YOLOX (Ge et al., 2021): strides 8, 16, 32; centre = (offset + cell) * stride, size = exp(value) * stride, score =
    objectness * class.
    """
    raw = output.reshape(-1, output.shape[-1]).astype(np.float64)
    raw = np.clip(np.nan_to_num(raw), -1e4, 1e4)  # a damaged network may say anything
    side = round((len(raw) * 1024 / 21) ** 0.5)  # cells = side^2 (1/64 + 1/256 + 1/1024)
    cells, strides = [], []
    for step in (8, 16, 32):
        rows, columns = np.mgrid[: side // step, : side // step]
        cells.append(np.stack([columns, rows], axis=-1).reshape(-1, 2))
        strides.append(np.full((rows.size, 1), step))
    scores = raw[:, 4] * raw[:, 5:].max(axis=1)
    stride = np.concatenate(strides)
    centre = (raw[:, :2] + np.concatenate(cells)) * stride
    half = np.exp(np.clip(raw[:, 2:4], -10, 10)) * stride / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1)
    kept: list[int] = []
    for index in np.argsort(-scores, kind="stable"):
        if not scores[index] > SCORE:
            break
        if not kept or _overlaps(boxes[index], boxes[kept]).max() <= SAME:
            kept.append(int(index))
    found: np.ndarray = boxes[kept].astype(np.float32)
    return found


def _overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of one box with each of ``others`` [n, 4]."""
    corner = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.prod(np.clip(corner, 0, None), axis=1)
    areas = np.prod(others[:, 2:] - others[:, :2], axis=1)
    ratios: np.ndarray = shared / (np.prod(box[2:] - box[:2]) + areas - shared)
    return ratios


box_f1 = _BoxF1()
