"""What ends a detector or a classifier: boxes that overlap better ones dropped, labels for probabilities.

Source: coremltools, mil/ops/defs/iOS15/tensor_operation.py, classify.py and iOS17/tensor_operation.py.
"""

import numpy as np

from torchane.errors import CompileError
from torchane.mil.ir import Literal
from torchane.mil.kinds import OpKind
from torchane.mil.ops.support import product, require_float, require_rank, require_shape
from torchane.mil.types import INT32, STRING, DictType, DType, ListType, TensorType, Type

non_maximum_suppression = OpKind("non_maximum_suppression", operands=("boxes", "scores"))


@non_maximum_suppression.infers
def _(
    boxes: TensorType,
    scores: TensorType,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> tuple[TensorType, ...]:
    """The best boxes, the best first, without those that overlap a better one by more than iou_threshold.

    Until iOS16, with score_threshold: boxes (n, B, 4), scores (n, B, K) -> boxes (n, max, 4), scores (n, max, K),
    indices (n, max), how many (n,). From iOS17, without: boxes (n, 4, B), scores (n, K, B) -> boxes (n, 4, max),
    scores (n, K, max), indices (n, max). A box is (x, y, width, height), x and y of its centre.
    """
    require_float("non_maximum_suppression", boxes=boxes, scores=scores)
    require_rank("non_maximum_suppression", (3,), boxes=boxes, scores=scores)
    if max_boxes < 1:
        raise CompileError(f"non_maximum_suppression: max_boxes is {max_boxes} and must be 1 or more.")
    batch = scores.shape[0]
    indices = TensorType(INT32, (batch, max_boxes))
    if score_threshold is None:
        require_shape("non_maximum_suppression", (batch, 4, scores.shape[2]), boxes=boxes)
        return (
            TensorType(boxes.dtype, (batch, 4, max_boxes)),
            TensorType(scores.dtype, (batch, scores.shape[1], max_boxes)),
            indices,
        )
    require_shape("non_maximum_suppression", (batch, scores.shape[1], 4), boxes=boxes)
    return (
        TensorType(boxes.dtype, (batch, max_boxes, 4)),
        TensorType(scores.dtype, (batch, max_boxes, scores.shape[2])),
        indices,
        TensorType(INT32, (batch,)),
    )


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes."""
    low = np.maximum(a[:2] - a[2:] / 2, b[:2] - b[2:] / 2)
    high = np.minimum(a[:2] + a[2:] / 2, b[:2] + b[2:] / 2)
    shared = np.prod(np.maximum(0, high - low))
    whole = np.prod(a[2:]) + np.prod(b[2:]) - shared
    return float(shared / whole) if whole > 0 else 0.0


def _kept(boxes: np.ndarray, scores: np.ndarray, iou: float, most: int, least: float, per_class: bool) -> list[int]:
    """The indices of the boxes that stay, best first; the best of all if none reaches the least score."""
    best, label = scores.max(axis=1), scores.argmax(axis=1)
    kept: list[int] = []
    for index in np.argsort(-best, kind="stable"):
        rivals = [other for other in kept if not per_class or label[other] == label[index]]
        if best[index] > least and all(_overlap(boxes[index], boxes[other]) <= iou for other in rivals):
            kept.append(int(index))
    return kept[:most] or [int(best.argmax())]


@non_maximum_suppression.evaluates
def _(
    boxes: np.ndarray,
    scores: np.ndarray,
    iou_threshold: float,
    max_boxes: int,
    score_threshold: float | None = None,
    per_class_suppression: bool = False,
) -> tuple[np.ndarray, ...]:
    """Places without a box hold zeros, and -1 as their index."""
    newer = score_threshold is None
    if newer:
        boxes, scores, score_threshold = boxes.swapaxes(1, 2), scores.swapaxes(1, 2), -np.inf
    batch = len(boxes)
    out_boxes, out_scores = np.zeros((batch, max_boxes, 4)), np.zeros((batch, max_boxes, scores.shape[2]))
    indices, counts = np.full((batch, max_boxes), -1), np.zeros(batch)
    for n in range(batch):
        kept = _kept(boxes[n], scores[n], iou_threshold, max_boxes, score_threshold, per_class_suppression)
        counts[n] = len(kept)
        out_boxes[n, : len(kept)], out_scores[n, : len(kept)] = boxes[n, kept], scores[n, kept]
        indices[n, : len(kept)] = kept
    if newer:
        return out_boxes.swapaxes(1, 2), out_scores.swapaxes(1, 2), indices
    return out_boxes, out_scores, indices, counts


classify = OpKind("classify", operands=("probabilities", "classes"))


@classify.infers
def _(probabilities: TensorType, classes: ListType) -> tuple[Type, Type]:
    """The class of the largest probability, and a probability for each class."""
    require_float("classify", probabilities=probabilities)
    if classes.element not in (TensorType(STRING), TensorType(DType.INT64)):
        raise CompileError(f"classify: classes is {classes}; it is a list of strings or of int64.")
    if classes.length != product(probabilities.shape) and None not in (classes.length, product(probabilities.shape)):
        raise CompileError(f"classify: {classes} and probabilities {probabilities} must have as many entries.")
    return classes.element, DictType(classes.element, TensorType(DType.FP64))


@classify.evaluates
def _(probabilities: np.ndarray, classes: tuple[Literal, ...]) -> tuple[object, dict[object, float]]:
    labels = [label.python() for label in classes]
    values = probabilities.ravel().tolist()
    return labels[int(np.argmax(values))], dict(zip(labels, values, strict=True))
