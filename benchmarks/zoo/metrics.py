"""Metrics of the zoo's entries, as ``edgekit deploy --metric benchmarks/zoo/metrics.py:NAME`` takes them."""

from __future__ import annotations

import numpy as np

Outputs = dict[str, np.ndarray]


def agreement(outputs: Outputs, _label: object, reference: Outputs) -> float:
    """1 where the first output's largest class is the float model's, else 0."""
    name = next(iter(reference))
    return float(np.argmax(outputs[name]) == np.argmax(reference[name]))


class _FaceAuc:
    """Area under the ROC curve of the best score among all anchors; label 1 is a face."""

    name = "face AUC"
    higher_is_better = True

    def row(self, outputs: Outputs, label: object, _reference: Outputs) -> tuple[float, ...]:
        scores = [value for value in outputs.values() if value.shape[-1] == 1]
        return max(float(value.max()) for value in scores), float(np.asarray(label).item())

    def aggregate(self, rows: np.ndarray) -> float:
        from scipy.stats import rankdata

        scores, labels = rows[:, 0], rows[:, 1] > 0.5
        positive, negative = int(labels.sum()), int((~labels).sum())
        if not positive or not negative:
            return float("nan")
        ranks = rankdata(scores)[labels].sum()  # Mann-Whitney U
        return float((ranks - positive * (positive + 1) / 2) / (positive * negative))


class _PlantedF1:
    """F1 of detected against planted text boxes, matched one to one at an intersection over union of at least 0.5.

    Boxes are read from the probability map as Differentiable Binarization does it (Liao et al., AAAI 2020): threshold
    0.3, connected regions, each grown by 1.6 times its area over its perimeter. Row: matched, detected, planted.
    """

    name = "box F1"
    higher_is_better = True

    def row(self, outputs: Outputs, label: object, _reference: Outputs) -> tuple[float, ...]:
        detected = _boxes(np.squeeze(next(iter(outputs.values()))))
        planted = np.asarray(label, np.float32).reshape(-1, 4)
        planted = planted[planted[:, 2] > 0]
        matched = 0
        free = list(range(len(detected)))
        for box in planted:
            overlaps = [_overlap(box, detected[i]) for i in free]
            if overlaps and max(overlaps) >= 0.5:
                free.pop(int(np.argmax(overlaps)))
                matched += 1
        return float(matched), float(len(detected)), float(len(planted))

    def aggregate(self, rows: np.ndarray) -> float:
        matched, detected, planted = rows.sum(axis=0)
        return float(2 * matched / max(detected + planted, 1))


def _boxes(probability: np.ndarray) -> np.ndarray:
    from scipy import ndimage

    regions, _ = ndimage.label(probability > 0.3)
    found = []
    for number, (rows, columns) in enumerate(ndimage.find_objects(regions), start=1):
        height, width = rows.stop - rows.start, columns.stop - columns.start
        inside = regions[rows, columns] == number
        if min(height, width) < 3 or probability[rows, columns][inside].mean() < 0.5:
            continue
        grow = 1.6 * height * width / (2 * (height + width))
        found.append((columns.start - grow, rows.start - grow, columns.stop + grow, rows.stop + grow))
    return np.array(found, np.float32).reshape(-1, 4)


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return float(shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared))


class _LeePearson:
    """Pearson correlation of cosine with human similarities of the Lee-50 documents (Lee, Pincombe, Welsh 2005).

    A sample's label is its document's number and the 50 human similarities. Row: embedding, number, similarities.
    """

    name = "Pearson"
    higher_is_better = True

    def row(self, outputs: Outputs, label: object, _reference: Outputs) -> tuple[float, ...]:
        embedding = np.ravel(next(iter(outputs.values()))).astype(np.float64)
        embedding = embedding / max(float(np.linalg.norm(embedding)), 1e-12)
        return (*embedding.tolist(), *np.asarray(label, np.float64).ravel().tolist())

    def aggregate(self, rows: np.ndarray) -> float:
        embeddings, numbers, human = rows[:, :-51], rows[:, -51].astype(int), rows[:, -50:]
        first, second = np.triu_indices(len(rows), 1)
        # A resampled set holds documents twice; a document's similarity with itself says nothing.
        other = numbers[first] != numbers[second]
        first, second = first[other], second[other]
        ours = np.einsum("ij,ij->i", embeddings[first], embeddings[second])
        theirs = human[first, numbers[second]]
        return float(np.corrcoef(ours, theirs)[0, 1])


face_auc = _FaceAuc()
planted_f1 = _PlantedF1()
lee_pearson = _LeePearson()
