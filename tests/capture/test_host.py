"""What the executor reads of a torch tensor: its numbers in float32 or float16, or bools, where it can without a copy."""

import pytest
import torch
from torch import fx

from torchane.capture.host import TorchHost
from torchane.native import pages

VALUES = torch.arange(24.0).reshape(4, 6) / 7


@pytest.fixture
def host() -> TorchHost:
    return TorchHost(fx.Graph(), pages.Reused())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64, torch.int64, torch.uint8])
@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.T, lambda x: x[:, ::2], lambda x: x[:1].expand(3, 6), lambda x: x[:0], lambda x: x[1, 2]], ids=list("abcdef"))
def test_other_types_are_read_as_float32(host, dtype, view):
    value = view(VALUES.to(dtype))
    assert torch.equal(torch.from_numpy(host.array(value).copy()), value.to(torch.float32))


def test_a_cast_keeps_the_order_of_the_axes(host):
    value = VALUES.bfloat16().T
    assert host.array(value).strides == (4, 24) and value.to(torch.float32).stride() == (1, 6)


def test_two_that_are_held_at_once_do_not_share_memory(host):
    large = torch.ones(1024, 1024)
    one, other = host.array(large.bfloat16()), host.array((2 * large).bfloat16())
    assert (one == 1).all() and (other == 2).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bool])
def test_what_is_float32_float16_or_bool_is_not_copied(host, dtype):
    value = VALUES.to(dtype)
    assert host.array(value).ctypes.data == value.data_ptr()
