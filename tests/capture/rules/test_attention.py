"""Attention whose kernel the model chooses, under every name that torch has for it: values and gradients beside the plain
formula in float64."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.exc import BackendCompilerFailed
from torch.nn.attention import SDPBackend, sdpa_kernel

from torchane.capture import backend
from torchane.capture.rules.attention import ATTENTION

aten = torch.ops.aten

#: Scores, softmax, two products and their gradients, each rounded to fp16.
TOLERANCE = 8 * 2**-11

#: (q, k, v, mask, is_causal, scale) -> (y, log-sum-exp)
CALLS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "cpu": lambda q, k, v, m, c, s: aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, c, attn_mask=m, scale=s),
    "flash": lambda q, k, v, m, c, s: aten._scaled_dot_product_flash_attention(q, k, v, 0.0, c, scale=s)[:2],
    "efficient": lambda q, k, v, m, c, s: aten._scaled_dot_product_efficient_attention(q, k, v, m, True, 0.0, c, scale=s)[:2],
    "cudnn": lambda q, k, v, m, c, s: aten._scaled_dot_product_cudnn_attention(q, k, v, m, True, 0.0, c, scale=s)[:2],
    "overrideable": lambda q, k, v, m, c, s: aten._scaled_dot_product_fused_attention_overrideable(q, k, v, m, 0.0, c, scale=s)[:2],
}
#: heads of q, heads of k and v, queries, keys
SIZES = [(4, 4, 16, 16), (4, 2, 5, 24), (2, 1, 24, 9)]
#: Every size for the name that torch's CPU build chooses, one for the others: behind the names is one formula.
PAIRS = [(name, sizes) for name in CALLS for sizes in SIZES if name == "cpu" or sizes == SIZES[1]]
#: Each in every way that its op can be called: flash attention takes no mask.
WAYS = {"plain": (False, False, 0.5), "causal": (True, False, None), "masked": (False, True, None)}


def plain(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool, scale: float | None) -> tuple[Tensor, Tensor]:
    times = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(times, 1), v.repeat_interleave(times, 1)
    scores = q @ k.mT * (scale or q.shape[-1] ** -0.5)
    if is_causal:
        scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    if mask is not None:
        scores = scores + mask
    empty = (scores == -torch.inf).all(-1, keepdim=True)  # sees nothing: zeros
    return scores.masked_fill(empty, 0.0).softmax(-1).masked_fill(empty, 0.0) @ v, scores.logsumexp(-1).masked_fill(empty[..., 0], 0.0)


def distances(found: list[Tensor], wanted: list[Tensor]) -> list[float]:
    return [((a - b).norm() / b.norm()).item() for a, b in zip(found, wanted, strict=True)]


@pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")  # who reads the log-sum-exp has a logarithm on the host
@pytest.mark.parametrize(
    ("name", "sizes", "way"), [(*pair, way) for pair in PAIRS for way in WAYS if (pair[0], way) != ("flash", "masked")], ids=str
)
def test_every_name_gives_the_plain_formula_and_its_gradients(name: str, sizes: tuple[int, ...], way: str) -> None:
    is_causal, is_masked, scale = WAYS[way]
    torch._dynamo.reset()
    torch.manual_seed(0)
    heads, shared, length, keys = sizes
    given = [torch.randn(2, h, n, 16) for h, n in ((heads, length), (shared, keys), (shared, keys))]
    mask = torch.zeros(2, 1, length, keys).masked_fill(torch.rand(2, 1, length, keys) < 0.3, -torch.inf) if is_masked else None
    if mask is not None:
        mask[1, 0, 1] = -torch.inf  # a query that sees nothing
    grad = torch.randn(2, heads, length, 16)
    leaves = [x.clone().requires_grad_() for x in given]
    y, logsumexp = torch.compile(CALLS[name], backend=backend.ane, options={"device": "twin"})(*leaves, mask, is_causal, scale)
    found = [y, logsumexp.reshape(2, heads, -1)[..., :length], *torch.autograd.grad(y, leaves, grad)]
    exact = [x.double().requires_grad_() for x in given]
    y, logsumexp = plain(*exact, mask, is_causal, scale)
    assert max(distances(found, [y, logsumexp, *torch.autograd.grad(y, exact, grad.double())])) < TOLERANCE


@pytest.mark.filterwarnings("ignore::torchane.errors.TorchaneWarning")
@pytest.mark.parametrize("name", ["efficient", "overrideable"])
def test_a_learned_bias_gets_its_gradient(name: str) -> None:
    """Stretched over the batch and the queries, so that it is summed over them."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    given = [torch.randn(2, 4, 16, 16) for _ in range(3)] + [torch.randn(1, 4, 1, 16)]
    grad = torch.randn(2, 4, 16, 16)
    leaves = [x.clone().requires_grad_() for x in given]
    y, _ = torch.compile(CALLS[name], backend=backend.ane, options={"device": "twin"})(*leaves, False, None)
    found = torch.autograd.grad(y, leaves, grad)
    exact = [x.double().requires_grad_() for x in given]
    wanted = torch.autograd.grad(plain(*exact, False, None)[0], exact, grad.double())
    assert max(distances(list(found), list(wanted))) < TOLERANCE


class Attention(nn.Module):
    def __init__(self, backends: list[SDPBackend], is_causal: bool, shared: int):
        super().__init__()
        self.backends, self.is_causal, self.shared = backends, is_causal, shared
        self.q, self.kv, self.out = nn.Linear(64, 64), nn.Linear(64, 2 * 16 * shared), nn.Linear(64, 64)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        q = self.q(x).view(batch, tokens, 4, 16).transpose(1, 2)
        k, v = self.kv(x).view(batch, tokens, 2, self.shared, 16).permute(2, 0, 3, 1, 4)
        with sdpa_kernel(self.backends):
            y = F.scaled_dot_product_attention(q, k, v, is_causal=self.is_causal, enable_gqa=self.shared != 4)
        return self.out(y.transpose(1, 2).reshape(batch, tokens, width))


@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("is_causal", [True, False])
def test_a_chosen_kernel_is_the_same_programs_as_torchs_choice(is_causal: bool, shared: int) -> None:
    """Not a multiply-add more, and the same bits: both are one formula."""
    found = []
    for backends in ([SDPBackend.FLASH_ATTENTION], [SDPBackend.MATH]):
        torch._dynamo.reset()
        torch.manual_seed(0)
        model = Attention(backends, is_causal, shared)
        torch.compile(model, backend=backend.ane, options={"device": "twin"})(torch.randn(2, 24, 64)).square().mean().backward()
        plans = backend.COMPILED[-1].plans
        counts = {name: sum(program.macs for program in plan.programs) for name, plan in plans.items()}
        found.append((counts, [p.grad for p in model.parameters()]))
    (ours, mine), (math, theirs) = found
    assert ours == math
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-9, atol=1e-6)


def test_dropout_in_a_fused_kernel_is_refused_by_name() -> None:
    q = torch.randn(1, 2, 8, 16)
    compiled = torch.compile(
        lambda q: aten._scaled_dot_product_flash_attention_for_cpu(q, q, q, 0.5)[0], backend=backend.ane, options={"device": "twin"}
    )
    with pytest.raises(BackendCompilerFailed, match="CaptureError: .*dropout_p 0.5.*SDPBackend.MATH"):
        compiled(q)


def test_both_directions_of_every_name_are_there() -> None:
    """One alone would read what torch's other half does not give."""
    packets = {str(op.overloadpacket) for op in ATTENTION}
    assert {f"{name}_backward" for name in packets if not name.endswith("_backward")} == {n for n in packets if n.endswith("_backward")}
