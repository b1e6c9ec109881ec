"""Suppression of overlapping boxes, by hand, and classifying. Core ML's own values: test_apple_suite.py."""

import numpy as np
import pytest
from second_opinion import ours, theirs

from torchane.errors import CompileError
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Function, Literal, Op, Program, Var, literal
from torchane.mil.kinds import KINDS
from torchane.mil.types import FP16, FP32, STRING, DictType, DType, ListType, TensorType

NAME = "non_maximum_suppression"
CASES = [(NAME, "by hand"), ("classify", "by hand")]
# The first two overlap by 9/11 of their union, the third stands apart.
BOXES = np.array([[[0, 0, 10, 10], [1, 0, 10, 10], [50, 50, 10, 10], [50, 50, 10, 10]]], np.float32)
SCORES = np.array([[[0.5, 0.1], [0.9, 0.2], [0.1, 0.8], [0.3, 0.05]]], np.float32)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({"iou_threshold": 0.5, "score_threshold": 0.0}, [1, 2]),
        ({"iou_threshold": 0.9, "score_threshold": 0.0}, [1, 2, 0]),
        ({"iou_threshold": 0.5, "score_threshold": 0.85}, [1]),
        ({"iou_threshold": 0.5, "score_threshold": 2.0}, [1]),
        ({"iou_threshold": 0.5, "score_threshold": 0.0, "per_class_suppression": True}, [1, 2, 3]),
    ],
)
def test_the_best_of_overlapping_boxes_stays(arguments, kept):
    args = {"boxes": BOXES, "scores": SCORES, "max_boxes": 3, **arguments}
    types, (boxes, scores, indices, count) = ours(NAME, **args)
    assert (
        types == theirs(NAME, "iOS15", **{k: np.float32(v) if isinstance(v, float) else v for k, v in args.items()})[0]
    )
    assert count.tolist() == [len(kept)]
    assert indices[0].tolist() == kept + [-1] * (3 - len(kept))
    np.testing.assert_array_equal(boxes[0, : len(kept)], BOXES[0, kept])
    np.testing.assert_array_equal(scores[0, : len(kept)], SCORES[0, kept])
    assert not boxes[0, len(kept) :].any()


def test_from_ios17_boxes_stand_in_the_last_axis():
    args = {"boxes": BOXES.swapaxes(1, 2).copy(), "scores": SCORES.swapaxes(1, 2).copy(), "iou_threshold": 0.5}
    types, (boxes, scores, indices) = ours(NAME, max_boxes=2, **args)
    assert types == theirs(NAME, max_boxes=2, **args | {"iou_threshold": np.float32(0.5)})[0]
    assert indices.tolist() == [[1, 2]]
    np.testing.assert_array_equal(boxes, BOXES[:, [1, 2]].swapaxes(1, 2))
    np.testing.assert_array_equal(scores, SCORES[:, [1, 2]].swapaxes(1, 2))


def test_classify_names_the_most_probable_class():
    x, text = Var("x", TensorType(FP32, (1, 3))), TensorType(STRING)
    classes = Literal(ListType(text, 3), tuple(literal(name) for name in ("cat", "dog", "owl")))
    label, table = Var("label", text), Var("table", DictType(text, TensorType(DType.FP64)))
    assert KINDS["classify"].infer({"probabilities": x.type, "classes": classes.type}) == (label.type, table.type)
    op = Op(KINDS["classify"], {"probabilities": x, "classes": classes}, (label, table))
    program = Program((Function("main", (x,), (op,), (label, table)),))
    given = evaluate(program, {"x": np.array([[0.25, 0.5, 0.25]])})
    assert given == {"label": "dog", "table": {"cat": 0.25, "dog": 0.5, "owl": 0.25}}


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        (
            NAME,
            {
                "boxes": TensorType(FP16, (1, 4, 5)),
                "scores": TensorType(FP16, (1, 2, 6)),
                "iou_threshold": 0.5,
                "max_boxes": 1,
            },
            r"boxes is .*shape \[1, 4, 6\]",
        ),
        ("classify", {"probabilities": TensorType(FP16, (2,)), "classes": ListType(TensorType(FP16), 2)}, "classes is"),
        ("classify", {"probabilities": TensorType(FP16, (2,)), "classes": ListType(TensorType(STRING), 3)}, "as many"),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=f"{op}: .*{message}"):
        KINDS[op].infer(args)
