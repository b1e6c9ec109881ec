"""Chains of where a value comes from: copied as Dynamo copies them, each record once."""

import dataclasses

from torch._dynamo.source import AttrSource, GetItemSource, LocalSource

from torchane.capture.chains import copied_once
from torchane.capture.torch_private import ChainedSource


def block(number):
    return GetItemSource(AttrSource(LocalSource("model"), "layers"), number)


def weights(start):
    attention = AttrSource(start, "self_attn")
    return [AttrSource(AttrSource(attention, name), "weight") for name in ("q_proj", "k_proj", "v_proj", "o_proj")]


def test_a_copy_is_what_dynamo_makes():
    sources = [*weights(block(0)), LocalSource("x"), AttrSource(LocalSource("x"), "shape")]

    def replace(source):
        return block(3) if source == block(0) else source

    expected = [source.clone(replace) for source in sources]
    with copied_once():
        copies = [source.clone(replace) for source in sources]
    assert copies == expected and copies[:4] == weights(block(3))


def test_two_functions_have_copies_of_their_own():
    with copied_once():
        copies = [weights(block(0))[0].clone(lambda source, n=n: block(n) if source == block(0) else source) for n in (1, 2)]
        again = weights(block(0))[0].clone()
    assert copies == [weights(block(n))[0] for n in (1, 2)] and again == weights(block(0))[0]


def test_what_chains_have_in_common_is_copied_once(monkeypatch):
    made = []
    replace = dataclasses.replace
    monkeypatch.setattr(dataclasses, "replace", lambda source, **fields: made.append(source) or replace(source, **fields))
    with copied_once():
        for source in weights(block(0)):
            source.clone(lambda_of_block_1)
    assert len(made) == len(set(made)) == 11, "layers, [0], self_attn, and two for each of four weights"


def lambda_of_block_1(source):
    return block(1) if source == block(0) else source


def test_afterwards_dynamo_copies_by_itself():
    before = ChainedSource.clone
    first, second = copied_once(), copied_once()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert ChainedSource.clone is not before, "another is still inside"
    second.__exit__(None, None, None)
    assert ChainedSource.clone is before
