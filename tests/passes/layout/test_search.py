"""The analysis of layouts: which orders it assigns and what they cost, before anything is emitted."""

import random

import pytest
from layouts import attention, llama_layer, split_heads

from torchane.mil.build import Builder
from torchane.passes.layout.search import Question, assign, attempt, search, weights_among


def question(b: Builder, *outputs, bound=None, wanted=None, weights=()) -> Question:
    function = b.program(*outputs).main
    return Question(function, bound or {}, wanted or {}, weights_among(function, frozenset(weights)))


def test_a_free_input_is_guessed_channels_first():
    b = Builder()
    x = b.input("x", (2, 32, 64))
    found = assign(question(b, b.exp(x=x)), {})
    assert found.orders[x] == (2, 0, 1) and found.cost == (0, 0)


def test_a_choice_changes_what_it_reaches():
    b = Builder()
    x = b.input("x", (32, 64))
    y = b.exp(x=x)
    assert assign(question(b, y), {x: (0, 1)}).orders[y] == (0, 1)


def test_a_choice_that_the_op_cannot_make_is_let_go():
    b = Builder()
    x = b.input("x", (32, 64))
    y = b.exp(x=x)
    assert assign(question(b, y, bound={x: (0, 1)}), {y: (1, 0)}).orders[y] == (0, 1)


def test_a_move_costs_its_bytes_once_for_all_its_readers():
    b = Builder()
    x, y = b.input("x", (32, 64)), b.input("y", (32, 64))
    sums = [b.add(x=x, y=y), b.mul(x=x, y=y)]
    found = assign(question(b, *sums, bound={x: (0, 1), y: (1, 0)}), {})
    assert found.cost == (32 * 64 * 2, 0)
    assert list(found.readers.values()) == [2]


def test_an_output_that_must_leave_in_another_order_is_a_move():
    b = Builder()
    x = b.input("x", (32, 64))
    y = b.exp(x=x)
    found = search(question(b, y, bound={x: (0, 1)}, wanted={y: (1, 0)}))
    assert found.readers == {(y, (1, 0)): 1}


def test_an_input_that_is_free_takes_the_order_that_is_read():
    b = Builder()
    x, w = b.input("x", (32, 64)), b.input("w", (32, 64))
    y = b.add(x=b.exp(x=x), y=w)
    found = search(question(b, y, bound={w: (0, 1)}))
    assert found.orders[x] == (0, 1) and found.cost == (0, 0)


def test_products_that_are_summed_change_their_order_together():
    b = Builder()
    w, h = b.input("w", (64, 96)), b.input("h", (32, 64))
    terms = [b.matmul(x=b.input(f"x{i}", (32, 96)), y=b.transpose(x=w, perm=(1, 0))) for i in range(3)]
    y = b.mul(x=b.add(x=b.add(x=terms[0], y=terms[1]), y=terms[2]), y=h)
    for order in ((0, 1), (1, 0)):
        found = search(question(b, y, bound={w: (0, 1), h: order}, weights=[w]))
        assert [found.orders[term] for term in terms] == [order] * 3 and found.cost[0] == 0


def test_an_activation_outvotes_the_weight_in_the_order_of_a_product():
    b = Builder()
    x, w = b.input("x", (32, 64)), b.input("w", (64, 96))
    y = b.matmul(x=x, y=w)
    found = assign(question(b, y, bound={x: (1, 0), w: (0, 1)}, weights=[w]), {})
    assert found.orders[y] == (1, 0) and found.cost == (0, 1)


def test_scores_lie_natural_for_their_softmax():
    b = Builder()
    q, k, v = (split_heads(b, b.input(name, (1, 32, 64)), 4) for name in "qkv")
    attended, probs = attention(b, q, k, v)
    found = search(question(b, attended))
    assert found.orders[probs] == (1, 2, 3) and found.cost[0] == 0


def test_weights_are_followed_through_views():
    b = Builder()
    x, w = b.input("x", (32, 64)), b.input("w", (96, 64))
    turned = b.transpose(x=w, perm=(1, 0))
    y = b.matmul(x=x, y=turned)
    assert weights_among(b.program(y).main, frozenset([w])) == {w, turned}


@pytest.mark.parametrize("batch", [1, 2])
def test_what_a_choice_reaches_is_all_that_has_to_be_assigned_again(batch):
    program, names = llama_layer(batch, 8, 32, 4, 2, 48)
    weights = frozenset(var for var in program.inputs if var.name in names)
    asked = Question(program.main, {}, {}, weights_among(program.main, weights))
    base, random_ = assign(asked, {}), random.Random(batch)
    for _ in range(200):
        index = random_.randrange(len(program.ops))
        option = random_.choice(asked.options(index, asked.given(index, base.orders)))
        choices = {program.ops[index].output: option.way.writes}
        trial = attempt(asked, choices, base)
        again = trial.taken()
        assert trial.cost == again.cost
        whole = assign(asked, {**base.choices, **choices})
        assert again == whole
        base = random_.choice([base, again])


def test_a_search_never_ends_dearer_than_it_began():
    asked = Question(llama_layer(2, 8, 32, 4, 2, 48)[0].main)
    assert search(asked).cost <= assign(asked, {}).cost
