"""cond, while_loop and lists, against coremltools programs and Python."""

import numpy as np
import pytest
from second_opinion import OPSETS, built, cml

from torchane.errors import CompileError
from torchane.mil.build import inferred
from torchane.mil.check import check
from torchane.mil.evaluate import evaluate
from torchane.mil.ir import Block, Op, Var, literal
from torchane.mil.kinds import KINDS
from torchane.mil.types import BOOL, FP16, FP32, INT32, ListType, TensorType

mb = cml.Builder
CASES = [(op, "Python") for op in ("cond", "while_loop", "make_list", "list_length", "list_read", "list_write", "list_gather", "list_scatter")]  # fmt: skip


def program(build, **placeholders):
    result = built(build, placeholders, OPSETS["iOS17"])
    check(result)
    return result


def test_cond_takes_the_branch_that_is_true_and_sees_what_is_around_it():
    def build(x, flag):
        y = mb.mul(x=x, y=2.0)
        return mb.cond(
            pred=flag,
            _true_fn=lambda: mb.add(x=y, y=1.0),
            _false_fn=lambda: mb.sub(x=y, y=1.0),
        )

    made = program(build, x=mb.placeholder((2,)), flag=mb.placeholder((1,), dtype=cml.types.bool))
    for flag, wanted in ((True, [3, 5]), (False, [1, 3])):
        given = evaluate(made, {"x": np.array([1, 2]), "flag": np.array([flag])})
        assert next(iter(given.values())).tolist() == wanted


def test_while_loop_runs_until_its_condition_fails():
    def build(n, x):
        return mb.while_loop(
            _cond=lambda i, total: mb.less(x=i, y=n),
            _body=lambda i, total: (mb.add(x=i, y=np.int32(1)), mb.mul(x=total, y=x)),
            loop_vars=(np.zeros(1, np.int32), np.ones(1, np.float32)),
        )

    made = program(build, n=mb.placeholder((1,), dtype=cml.types.int32), x=mb.placeholder((1,)))
    for n in (0, 1, 5):
        i, total = evaluate(made, {"n": np.array([n]), "x": np.array([3.0])}).values()
        assert (i.ravel().tolist(), total.ravel().tolist()) == ([n], [3.0**n])


def test_a_loop_that_grows_a_value_gives_unknown_sizes():
    def build(n, x):
        return mb.while_loop(
            _cond=lambda i, xs: mb.less(x=i, y=n),
            _body=lambda i, xs: (mb.add(x=i, y=np.int32(1)), mb.concat(values=(xs, x), axis=0)),
            loop_vars=(np.zeros(1, np.int32), x),
        )[1]

    made = program(build, n=mb.placeholder((1,), dtype=cml.types.int32), x=mb.placeholder((2,)))
    (grown,) = evaluate(made, {"n": np.array([3]), "x": np.array([1, 2])}).values()
    assert grown.tolist() == [1, 2] * 4


def test_lists_keep_what_is_written_and_the_old_list_too():
    def build(x, y):
        empty = mb.make_list(init_length=1, elem_shape=(2,))
        one = mb.list_write(ls=empty, index=0, value=x)
        grown = mb.list_write(ls=one, index=2, value=y)
        filled = mb.list_scatter(ls=grown, indices=np.array([1, 0], np.int32), value=mb.stack(values=(y, y), axis=0))
        return (
            mb.list_read(ls=empty, index=0),
            mb.list_gather(ls=grown, indices=np.array([2, 1, 0], np.int32)),
            mb.list_gather(ls=filled, indices=np.array([0, 1], np.int32)),
            mb.list_length(ls=filled),
        )

    made = program(build, x=mb.placeholder((2,)), y=mb.placeholder((2,)))
    zeros, three, two, count = evaluate(made, {"x": np.array([1, 2]), "y": np.array([3, 4])}).values()
    assert zeros.tolist() == [0, 0]
    assert three.tolist() == [[3, 4], [0, 0], [1, 2]]
    assert two.tolist() == [[3, 4], [3, 4]]
    assert count == 3


def test_a_list_of_unknown_element_size_is_empty_until_it_is_written():
    (kind,) = KINDS["make_list"].infer({"elem_shape": ("n", 2), "init_length": 1})
    assert kind == ListType(TensorType(FP32, (None, 2)))
    (empty,) = KINDS["make_list"].evaluate({"elem_shape": ("n", 2), "init_length": 1})
    with pytest.raises(CompileError, match="list_read: there is nothing at place 0 of a list of 1"):
        KINDS["list_read"].evaluate({"ls": empty, "index": np.array(0)})


X, Y = Var("x", TensorType(FP16, (2,))), Var("y", TensorType(FP16, (3,)))
FLAG, COUNT = Var("flag", TensorType(BOOL)), Var("count", TensorType(INT32))


@pytest.mark.parametrize(
    ("kind", "args", "blocks", "message"),
    [
        ("cond", {"pred": COUNT}, (Block((), (), (X,)),) * 2, "cond: the condition is .*one bool"),
        ("cond", {"pred": FLAG}, (Block((), (), (X,)), Block((), (), ())), "cond: .*as many results"),
        ("cond", {"pred": FLAG}, (Block((), (), (X,)), Block((), (), (COUNT,))), "cond: one block gives x .* count"),
        ("while_loop", {"loop_vars": (X,)}, (Block((X,), (), (FLAG,)),), "while_loop: it needs two blocks"),
        (
            "while_loop",
            {"loop_vars": (X,)},
            (Block((X,), (), (FLAG,)), Block((X,), (), (Y,), "body")),
            r"while_loop: block body has \(y tensor<fp16, \[3\]>\) where the loop_vars are \(tensor<fp16, \[2\]>\)",
        ),
    ],
)
def test_blocks_that_do_not_fit_are_refused(kind, args, blocks, message):
    with pytest.raises(CompileError, match=message):
        inferred(Op(KINDS[kind], args, (X,), {}, blocks))


LIST = ListType(TensorType(FP16, (2,)))


@pytest.mark.parametrize(
    ("op", "args", "message"),
    [
        ("make_list", {"elem_shape": (2,), "dtype": "half"}, "make_list: dtype is 'half'"),
        ("list_write", {"ls": LIST, "index": TensorType(FP16), "value": X.type}, "list_write: index .*integers"),
        ("list_write", {"ls": LIST, "index": TensorType(INT32), "value": Y.type}, "list_write: ls is .*element type"),
        ("list_gather", {"ls": LIST, "indices": TensorType(INT32)}, r"list_gather: indices is .*shape \[\?\]"),
        ("list_read", {"ls": X.type, "index": TensorType(INT32)}, "list_read: ls is a tensor<fp16"),
        (
            "list_scatter",
            {"ls": LIST, "indices": TensorType(INT32, (3,)), "value": TensorType(FP16, (2, 2))},
            r"list_scatter: indices is .*shape \[2\]",
        ),
    ],
)
def test_refuses(op, args, message):
    with pytest.raises(CompileError, match=message):
        KINDS[op].infer(args)


def test_a_constant_may_be_a_loop_variable():
    body = Op(KINDS["add"], {"x": COUNT, "y": literal(1)}, (Var("next", COUNT.type),), {})
    test = Op(KINDS["less"], {"x": COUNT, "y": literal(3)}, (FLAG,), {})
    blocks = (Block((COUNT,), (test,), (FLAG,)), Block((COUNT,), (body,), body.outputs))
    loop = Op(KINDS["while_loop"], {"loop_vars": (literal(0),)}, (Var("last", COUNT.type),), {}, blocks)
    assert inferred(loop) == (COUNT.type,)
