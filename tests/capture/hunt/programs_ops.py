"""Single ops and short chains around a linear layer: element-wise, reductions, moves, norms, pooling, losses."""

import math

import torch
import torch.nn.functional as F
from hunting import module, of
from torch import nn

X = (6, 20)
WEIGHT = torch.randn(20, 20, generator=torch.Generator().manual_seed(0)) / 20**0.5


def around(op):
    """An op between two products, as it stands in a network."""
    return lambda x: op(x @ WEIGHT) @ WEIGHT if op(x @ WEIGHT).shape == x.shape else op(x @ WEIGHT)


UNARY = {
    **{name: getattr(torch, name) for name in (
        "abs", "neg", "exp", "expm1", "sin", "cos", "tan", "tanh", "sinh", "cosh", "asinh", "atan", "sigmoid", "erf", "erfc", "square", "sign",
        "exp2", "logit", "positive", "sinc", "deg2rad", "nan_to_num", "rad2deg",
    )},
    **{name: getattr(F, name) for name in (
        "relu", "relu6", "elu", "selu", "celu", "gelu", "silu", "mish", "softplus", "softsign", "tanhshrink", "hardtanh", "hardsigmoid", "hardswish",
        "leaky_relu", "logsigmoid", "softshrink", "hardshrink",
    )},
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "log of positive": lambda x: (x.abs() + 0.1).log(),
    "log1p": lambda x: x.abs().log1p(),
    "log2, log10": lambda x: (x.abs() + 0.2).log2() + (x.abs() + 0.2).log10(),
    "sqrt": lambda x: (x.abs() + 0.1).sqrt(),
    "rsqrt": lambda x: (x.abs() + 0.1).rsqrt(),
    "reciprocal": lambda x: (x.abs() + 0.1).reciprocal(),
    "pow 3": lambda x: x**3,
    "pow 1.5": lambda x: x.abs() ** 1.5,
    "2 to the x": lambda x: 2**x,
    "atanh": lambda x: (x.tanh() * 0.9).atanh(),
    "acos, asin": lambda x: (x.tanh() * 0.9).acos() + (x.tanh() * 0.9).asin(),
    "acosh": lambda x: (x.abs() + 1.1).acosh(),
    "erfinv": lambda x: (x.tanh() * 0.9).erfinv(),
    "lgamma, digamma": lambda x: (x.abs() + 1).lgamma() + (x.abs() + 1).digamma(),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clamp_min of tensor": lambda x: torch.maximum(x, x.roll(1, -1)),
    "threshold": lambda x: F.threshold(x, 0.1, -2.0),
    "glu and back": lambda x: torch.cat([F.glu(x), F.glu(-x)], -1),
    "prelu": lambda x: F.prelu(x, torch.tensor([0.2])),
    "rrelu eval": lambda x: F.rrelu(x, training=False),
    "hypot": lambda x: torch.hypot(x, x.flip(-1)),
    "atan2": lambda x: torch.atan2(x, x.flip(0) + 0.1),
    "fmod": lambda x: torch.fmod(x, 0.3),
    "remainder": lambda x: torch.remainder(x, 0.3),
    "copysign": lambda x: torch.copysign(x, x.flip(-1)),
    "lerp": lambda x: torch.lerp(x, x.flip(-1), 0.3),
    "addcmul": lambda x: torch.addcmul(x, x, x.flip(-1), value=0.3),
    "addcdiv": lambda x: torch.addcdiv(x, x, x.abs() + 1, value=0.3),
    "where": lambda x: torch.where(x > 0, x, x * 0.1),
    "where of a division": lambda x: torch.where(x.abs() > 0.5, 1 / x, x),
    "heaviside": lambda x: torch.heaviside(x.detach(), torch.tensor(0.5)) * x,
    "logaddexp": lambda x: torch.logaddexp(x, x.flip(-1)),
    "xlogy": lambda x: torch.xlogy(x.abs(), x.abs() + 0.1),
    "xlog1py": lambda x: torch.special.xlog1py(x, x.abs()),
    "entr": lambda x: torch.special.entr(x.sigmoid()),
    "i0": lambda x: torch.special.i0(x),
    "softmax": lambda x: x.softmax(-1),
    "softmax over rows": lambda x: x.softmax(0),
    "log_softmax": lambda x: x.log_softmax(-1),
    "softmin": lambda x: F.softmin(x, -1),
    "normalize": lambda x: F.normalize(x, dim=-1),
    "normalize 1-norm": lambda x: F.normalize(x, p=1, dim=0),
    "layer_norm": lambda x: F.layer_norm(x, (20,)),
    "rms_norm": lambda x: F.rms_norm(x, (20,)),
    "cumsum": lambda x: x.cumsum(-1),
    "cumprod": lambda x: (1 + 0.1 * x).cumprod(-1),
    "cummax": lambda x: x.cummax(-1).values,
    "logcumsumexp": lambda x: x.logcumsumexp(-1),
    "sort": lambda x: x.sort(-1).values,
    "flip": lambda x: x.flip(-1),
    "roll": lambda x: x.roll((1, 3), (0, 1)),
    "tril": lambda x: x.tril(),
    "diff": lambda x: F.pad(x.diff(dim=-1), (0, 1)),
    "gradient through detach": lambda x: x * x.detach() + x,
    "straight through": lambda x: x + (x.round() - x).detach(),
}  # fmt: skip
# Steps are taken where two numbers differ by their last digit: behind a product, even one of bf16, that is chance.
for name in ("floor", "ceil", "round", "trunc", "frac"):
    of(f"step: {name}", lambda x, op=getattr(torch, name): op(3 * x) @ WEIGHT, X)
for name, op in UNARY.items():
    of(f"unary: {name}", around(op), X)

REDUCTIONS = {
    "sum": lambda x: x.sum(-1), "sum all": lambda x: x.sum(), "mean rows": lambda x: x.mean(0), "mean keepdim": lambda x: x.mean(-1, keepdim=True),
    "var": lambda x: x.var(-1), "std biased": lambda x: x.std(-1, unbiased=False), "var_mean": lambda x: torch.var_mean(x, -1), "amax": lambda x: x.amax(-1),
    "amin": lambda x: x.amin(0), "max with indices": lambda x: x.max(-1), "prod": lambda x: (1 + 0.1 * x).prod(-1), "norm": lambda x: x.norm(dim=-1),
    "norm inf": lambda x: x.norm(p=math.inf, dim=-1), "norm 1": lambda x: x.norm(p=1), "norm 3": lambda x: x.norm(p=3, dim=0), "logsumexp": lambda x: x.logsumexp(-1),
    "argmax": lambda x: (x.argmax(-1), x.sum()), "topk": lambda x: x.topk(3, -1), "kthvalue": lambda x: x.kthvalue(2, -1), "median": lambda x: x.median(-1).values,
    "quantile": lambda x: x.quantile(0.3, dim=-1), "mode of signs": lambda x: (x.sign().mode(-1).values, x.sum()), "count_nonzero": lambda x: (x.relu().count_nonzero(-1), x.sum()),
    "any and all": lambda x: ((x > 1).any(-1), (x > -3).all(), x.sum()), "aminmax": lambda x: x.aminmax(dim=-1), "nansum": lambda x: x.nansum(-1), "trace": lambda x: (x.T @ x).trace(),
    "cov": lambda x: x.cov(), "corrcoef": lambda x: x.corrcoef(), "cdist": lambda x: torch.cdist(x, x.flip(0) + 1), "cosine_similarity": lambda x: F.cosine_similarity(x, x.flip(0), dim=-1),
    "pairwise_distance": lambda x: F.pairwise_distance(x, x.flip(0)), "pdist": lambda x: F.pdist(x), "histc": lambda x: (torch.histc(x.detach(), 5, -2, 2), x.sum()),
    "dist": lambda x: torch.dist(x, x.flip(0)), "renorm": lambda x: torch.renorm(x, 2, 0, 1.0), "trapezoid": lambda x: torch.trapezoid(x),
}  # fmt: skip
for name, op in REDUCTIONS.items():
    of(f"reduction: {name}", lambda x, op=op: op(x @ WEIGHT), X)

T = (3, 4, 8)
MOVES = {
    "transpose": lambda x: x.transpose(1, 2), "permute": lambda x: x.permute(2, 0, 1), "flatten": lambda x: x.flatten(1), "unflatten": lambda x: x.unflatten(-1, (2, 4)), "narrow": lambda x: x.narrow(2, 1, 5),
    "slices": lambda x: x[:, 1:, ::2], "negative index": lambda x: x[..., -1], "newaxis": lambda x: x[:, None, :, 2:3], "expand": lambda x: x[:, :1].expand(3, 5, 8), "repeat": lambda x: x.repeat(1, 2, 1),
    "repeat_interleave": lambda x: x.repeat_interleave(2, dim=1), "tile": lambda x: x.tile(2, 1, 1), "cat": lambda x: torch.cat([x, 2 * x], 1), "stack": lambda x: torch.stack([x, x + 1], 1), "split": lambda x: x.split(3, -1),
    "chunk": lambda x: x.chunk(2, -1), "unbind": lambda x: x.unbind(1), "tensor_split": lambda x: x.tensor_split((1, 5), -1), "flip": lambda x: x.flip(1, 2), "rot90": lambda x: x.rot90(1, (1, 2)), "roll": lambda x: x.roll(2, 1),
    "pad constant": lambda x: F.pad(x, (1, 2), value=0.5), "pad reflect": lambda x: F.pad(x, (2, 1), mode="reflect"), "pad replicate": lambda x: F.pad(x, (2, 1), mode="replicate"), "pad circular": lambda x: F.pad(x, (2, 1), mode="circular"),
    "pad negative": lambda x: F.pad(x, (-1, -2)), "unfold": lambda x: x.unfold(-1, 3, 2), "diagonal": lambda x: x.diagonal(dim1=1, dim2=2), "diag_embed": lambda x: x[:, 0].diag_embed(), "triu": lambda x: x.triu(1), "movedim": lambda x: x.movedim(0, -1),
    "gather": lambda x: x.gather(-1, torch.arange(6).expand(3, 4, 6)), "index_select": lambda x: x.index_select(1, torch.tensor([2, 0, 2])), "take_along_dim": lambda x: x.take_along_dim(x.detach().argsort(-1), -1),
    "index by a list": lambda x: x[:, [0, 2, 2]], "boolean mask": lambda x: x[x.detach().sum(-1) > 0], "masked_fill": lambda x: x.masked_fill(x > 0.5, -1.0), "masked_select": lambda x: x.masked_select(torch.arange(8) % 2 == 0),
    "scatter": lambda x: torch.zeros_like(x).scatter(1, torch.zeros(3, 4, 8, dtype=torch.long), x[:, :1].expand(3, 4, 8)), "scatter_add": lambda x: torch.zeros(3, 4, 8).scatter_add(1, torch.arange(8).remainder(4).expand(3, 4, 8), x),
    "index_add": lambda x: torch.zeros(3, 2, 8).index_add(1, torch.tensor([0, 1, 1, 0]), x), "index_put": lambda x: x.index_put((torch.tensor([0, 2]), torch.tensor([1, 1])), x[1, :2]), "select_scatter": lambda x: x.select_scatter(x[:, 0] * 2, 1, 2),
    "slice_scatter": lambda x: x.slice_scatter(x[:, :2] * 2, 1, 1, 3), "diagonal_scatter": lambda x: x.diagonal_scatter(x[:, :, 0], 0, 1, 2), "assign to a slice": lambda x: _assigned(x), "block_diag": lambda x: torch.block_diag(x[0], x[1]),
    "meshgrid": lambda x: torch.meshgrid(x[0, 0], x[1, 1], indexing="ij"), "kron": lambda x: torch.kron(x[0, :2, :2], x[1, :2, :2]), "outer": lambda x: torch.outer(x[0, 0], x[1, 0]), "einsum": lambda x: torch.einsum("bij,bkj->bik", x, x),
    "einsum with repeats": lambda x: torch.einsum("bii->bi", x[:, :, :4]), "tensordot": lambda x: torch.tensordot(x, x, dims=([2], [2])), "bmm": lambda x: torch.bmm(x, x.transpose(1, 2)), "baddbmm": lambda x: torch.baddbmm(x[:, :, :4], x, x.transpose(1, 2), beta=0.5, alpha=2),
    "addmv": lambda x: torch.addmv(x[0, :, 0], x[1], x[2, 0]), "broadcast add": lambda x: x + x[:, :1] + x[:1, :, :1], "squeeze and back": lambda x: x[:, :1].squeeze(1).unsqueeze(-1), "view as complex": lambda x: torch.view_as_real(torch.view_as_complex(x.reshape(3, 4, 4, 2)) * 1j),
    "fft": lambda x: torch.fft.rfft(x).abs(), "rotary": lambda x: _rotary(x), "swapaxes of cat": lambda x: torch.cat([x, x], 0).swapaxes(0, 1), "column_stack": lambda x: torch.column_stack((x[0], x[1])), "cartesian": lambda x: torch.cartesian_prod(x[0, 0], x[0, 1]),
    "combinations": lambda x: torch.combinations(x[0, 0]), "vander": lambda x: torch.vander(0.5 * x[0, 0].tanh(), 4), "bucketize": lambda x: (torch.bucketize(x.detach(), torch.linspace(-1, 1, 5)), x.sum()), "searchsorted": lambda x: (torch.searchsorted(torch.linspace(-1, 1, 5), x.detach()), x.sum()),
    "unique": lambda x: (torch.unique((x.detach() > 0).long()), x.sum()), "nonzero": lambda x: ((x.detach() > 0).nonzero(), x.sum()), "one_hot": lambda x: F.one_hot(x.detach().argmax(-1), 8).float() * x, "cross": lambda x: torch.linalg.cross(x[..., :3], x[..., 3:6]),
}  # fmt: skip


def _assigned(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y[:, 1] = x[:, 0].exp()
    y[..., -1] += 1
    return y


def _rotary(x: torch.Tensor) -> torch.Tensor:
    angles = torch.outer(torch.arange(4.0), 10000 ** (-torch.arange(0, 8, 2) / 8))
    one, other = x.chunk(2, -1)
    return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], -1)


for name, op in MOVES.items():
    of(f"move: {name}", lambda x, op=op: op(torch.tanh(x)), T)

IMAGE = (2, 4, 8, 8)
LAYERS = {
    "conv 3x3": (lambda: nn.Conv2d(4, 6, 3, padding=1), IMAGE), "conv stride 2": (lambda: nn.Conv2d(4, 6, 3, stride=2), IMAGE), "conv groups": (lambda: nn.Conv2d(4, 8, 3, groups=2), IMAGE), "depthwise": (lambda: nn.Conv2d(4, 4, 3, groups=4, padding=1), IMAGE),
    "conv dilated": (lambda: nn.Conv2d(4, 6, 3, dilation=2), IMAGE), "conv reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), IMAGE), "conv circular": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), IMAGE), "conv same": (lambda: nn.Conv2d(4, 6, (3, 5), padding="same"), IMAGE),
    "conv 1d": (lambda: nn.Conv1d(4, 6, 3), (2, 4, 16)), "conv 1d causal": (lambda: nn.Sequential(nn.ConstantPad1d((2, 0), 0.0), nn.Conv1d(4, 4, 3, groups=4)), (2, 4, 16)), "conv 3d": (lambda: nn.Conv3d(2, 3, 3), (1, 2, 5, 5, 5)), "transposed conv": (lambda: nn.ConvTranspose2d(4, 3, 4, stride=2, padding=1), IMAGE),
    "transposed conv output padding": (lambda: nn.ConvTranspose2d(4, 3, 3, stride=2, output_padding=1), IMAGE), "transposed conv 1d": (lambda: nn.ConvTranspose1d(4, 3, 4, stride=2), (2, 4, 8)), "batch norm": (lambda: nn.BatchNorm2d(4), IMAGE), "batch norm eval": (lambda: nn.BatchNorm2d(4).eval(), IMAGE),
    "batch norm no running": (lambda: nn.BatchNorm1d(20, track_running_stats=False), X), "batch norm momentum none": (lambda: nn.BatchNorm1d(20, momentum=None), X), "instance norm": (lambda: nn.InstanceNorm2d(4, affine=True), IMAGE), "instance norm tracked": (lambda: nn.InstanceNorm2d(4, track_running_stats=True), IMAGE),
    "group norm": (lambda: nn.GroupNorm(2, 4), IMAGE), "local response norm": (lambda: nn.LocalResponseNorm(2), IMAGE), "layer norm 2d": (lambda: nn.LayerNorm([4, 8, 8]), IMAGE), "max pool": (lambda: nn.MaxPool2d(2), IMAGE), "max pool overlapping": (lambda: nn.MaxPool2d(3, 2, 1), IMAGE), "max pool dilated": (lambda: nn.MaxPool2d(2, dilation=2), IMAGE),
    "max pool indices": (lambda: nn.MaxPool2d(2, return_indices=True), IMAGE), "avg pool": (lambda: nn.AvgPool2d(3, 2, 1), IMAGE), "avg pool not padded": (lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False), IMAGE), "avg pool ceil": (lambda: nn.AvgPool2d(3, 2, ceil_mode=True), IMAGE), "adaptive avg": (lambda: nn.AdaptiveAvgPool2d(3), IMAGE),
    "adaptive max": (lambda: nn.AdaptiveMaxPool2d((2, 4)), IMAGE), "lp pool": (lambda: nn.LPPool2d(2, 2), IMAGE), "fractional pool": (lambda: nn.FractionalMaxPool2d(2, output_size=3), IMAGE), "upsample nearest": (lambda: nn.Upsample(scale_factor=2), IMAGE), "upsample bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), IMAGE),
    "upsample corners": (lambda: nn.Upsample(size=(5, 11), mode="bilinear", align_corners=True), IMAGE), "upsample bicubic": (lambda: nn.Upsample(scale_factor=1.5, mode="bicubic"), IMAGE), "pixel shuffle": (lambda: nn.PixelShuffle(2), IMAGE), "pixel unshuffle": (lambda: nn.PixelUnshuffle(2), IMAGE), "unfold": (lambda: nn.Unfold(3, padding=1), IMAGE),
    "fold": (lambda: nn.Fold((4, 4), 2, stride=2), (1, 8, 4)), "channel shuffle": (lambda: nn.ChannelShuffle(2), IMAGE), "bilinear": (lambda: nn.Bilinear(20, 20, 5), X, X), "gru": (lambda: nn.GRU(8, 6, batch_first=True), T), "lstm": (lambda: nn.LSTM(8, 6, num_layers=2, batch_first=True), T), "gru cell": (lambda: nn.GRUCell(20, 20), X, X),
    "lstm cell": (lambda: nn.LSTMCell(20, 20), X), "rnn bidirectional": (lambda: nn.RNN(8, 6, bidirectional=True), T), "weight norm": (lambda: nn.utils.parametrizations.weight_norm(nn.Linear(20, 20)), X), "spectral norm": (lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(20, 20)), X), "embedding": (lambda: nn.Embedding(9, 5, padding_idx=0), torch.tensor([[0, 3], [8, 3]])),
    "embedding max norm": (lambda: nn.Embedding(9, 5, max_norm=1.0), torch.tensor([[0, 3], [8, 3]])), "embedding bag": (lambda: nn.EmbeddingBag(9, 5, mode="mean"), torch.tensor([[0, 3], [8, 3]])), "adaptive softmax": (lambda: nn.AdaptiveLogSoftmaxWithLoss(20, 12, [4, 8]), X, torch.tensor([0, 3, 5, 7, 9, 11])),
    "encoder layer": (lambda: nn.TransformerEncoderLayer(20, 4, 32, batch_first=True), (2, 5, 20)), "encoder layer norm first": (lambda: nn.TransformerEncoderLayer(20, 4, 32, 0.0, "gelu", batch_first=True, norm_first=True), (2, 5, 20)), "decoder layer": (lambda: nn.TransformerDecoderLayer(20, 4, 32, 0.0, batch_first=True), (2, 5, 20), (2, 7, 20)),
    "flatten linear": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(256, 5)), IMAGE), "dropout": (lambda: nn.Sequential(nn.Linear(20, 20), nn.Dropout(0.4)), X), "dropout 2d": (lambda: nn.Sequential(nn.Conv2d(4, 4, 1), nn.Dropout2d(0.4)), IMAGE), "alpha dropout": (lambda: nn.Sequential(nn.Linear(20, 20), nn.AlphaDropout(0.3)), X), "rrelu": (lambda: nn.Sequential(nn.Linear(20, 20), nn.RReLU()), X),
    "multi-head attention": (lambda: _Attention(), (2, 5, 20)), "grid sample": (lambda: _Sampled(), IMAGE), "channels last": (lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last), lambda: torch.randn(IMAGE).to(memory_format=torch.channels_last)),
}  # fmt: skip


class _Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(20, 4, batch_first=True)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.inner(x, x, x, attn_mask=torch.ones(5, 5, dtype=torch.bool).triu(1))


class _Sampled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor([[0.9, 0.1, 0.0], [-0.1, 0.8, 0.1]]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        grid = F.affine_grid(self.theta.expand(2, 2, 3), [2, 4, 8, 8], align_corners=False)
        return F.grid_sample(x, grid, align_corners=False)


for name, (build, *inputs) in LAYERS.items():
    module(f"layer: {name}", build, *inputs)

INDICES = torch.tensor([0, 3, 19, 7, 2, 11])
TARGET = torch.randn(6, 20, generator=torch.Generator().manual_seed(5))
SIGNS = torch.tensor([1.0, -1, 1, 1, -1, -1])
LOSSES = {
    "mse": lambda x: F.mse_loss(x, TARGET), "mse sum": lambda x: F.mse_loss(x, TARGET, reduction="sum"), "l1": lambda x: F.l1_loss(x, TARGET), "smooth l1": lambda x: F.smooth_l1_loss(x, TARGET), "huber": lambda x: F.huber_loss(x, TARGET, delta=0.3), "cross entropy": lambda x: F.cross_entropy(x, INDICES),
    "cross entropy smoothed": lambda x: F.cross_entropy(x, INDICES, label_smoothing=0.1), "cross entropy weighted": lambda x: F.cross_entropy(x, INDICES, weight=torch.linspace(0.5, 2, 20)), "cross entropy soft": lambda x: F.cross_entropy(x, TARGET.softmax(-1)), "cross entropy ignored": lambda x: F.cross_entropy(x, INDICES.masked_fill(INDICES > 10, -100)),
    "nll": lambda x: F.nll_loss(x.log_softmax(-1), INDICES), "bce": lambda x: F.binary_cross_entropy(x.sigmoid(), (TARGET > 0).float()), "bce logits": lambda x: F.binary_cross_entropy_with_logits(x, (TARGET > 0).float(), pos_weight=torch.tensor(2.0)), "kl": lambda x: F.kl_div(x.log_softmax(-1), TARGET.softmax(-1), reduction="batchmean"),
    "kl with zeros": lambda x: F.kl_div(x.log_softmax(-1), F.one_hot(INDICES, 20).float(), reduction="batchmean"), "kl log target": lambda x: F.kl_div(x.log_softmax(-1), TARGET.log_softmax(-1), log_target=True, reduction="sum"), "poisson": lambda x: F.poisson_nll_loss(x, TARGET.abs().round()), "poisson full": lambda x: F.poisson_nll_loss(x, TARGET.abs().mul(3).round(), full=True),
    "gaussian nll": lambda x: F.gaussian_nll_loss(x, TARGET, x.flip(-1).exp()), "hinge embedding": lambda x: F.hinge_embedding_loss(x[:, 0], SIGNS), "soft margin": lambda x: F.soft_margin_loss(x[:, 0], SIGNS), "margin ranking": lambda x: F.margin_ranking_loss(x[:, 0], x[:, 1], SIGNS), "multi margin": lambda x: F.multi_margin_loss(x, INDICES),
    "multilabel margin": lambda x: F.multilabel_margin_loss(x, INDICES[:, None].expand(6, 20) * 0 + torch.tensor([1, 2, *[-1] * 18])), "multilabel soft margin": lambda x: F.multilabel_soft_margin_loss(x, (TARGET > 0).float()), "cosine embedding": lambda x: F.cosine_embedding_loss(x, TARGET, SIGNS), "triplet": lambda x: F.triplet_margin_loss(x, TARGET, TARGET.flip(0)),
    "triplet swap": lambda x: F.triplet_margin_with_distance_loss(x, TARGET, TARGET.flip(0), swap=True), "ctc": lambda x: F.ctc_loss(x[:, None].expand(6, 2, 20).log_softmax(-1), torch.tensor([[1, 2], [3, 4]]), torch.tensor([6, 6]), torch.tensor([2, 2])), "focal": lambda x: _focal(x), "dice": lambda x: _dice(x), "info nce": lambda x: _info_nce(x),
    "distillation": lambda x: F.kl_div((x / 4).log_softmax(-1), (TARGET / 4).softmax(-1), reduction="batchmean") * 16, "z loss": lambda x: x.logsumexp(-1).square().mean(), "entropy bonus": lambda x: (x.softmax(-1) * x.log_softmax(-1)).sum(-1).mean(), "ppo": lambda x: _ppo(x), "vae": lambda x: (0.5 * (x.exp() + x.flip(0).square() - 1 - x)).sum(-1).mean(),
    "wing": lambda x: torch.where((x - TARGET).abs() < 1, (x - TARGET).abs().mul(2).log1p(), (x - TARGET).abs() - 0.3).mean(), "log cosh": lambda x: (x - TARGET).cosh().log().mean(), "charbonnier": lambda x: ((x - TARGET).square() + 1e-6).sqrt().mean(), "total variation": lambda x: x.diff(dim=-1).abs().mean(), "quantile loss": lambda x: torch.maximum(0.9 * (TARGET - x), -0.1 * (TARGET - x)).mean(),
}  # fmt: skip


def _focal(x: torch.Tensor) -> torch.Tensor:
    p = x.sigmoid()
    hit = torch.where(TARGET > 0, p, 1 - p)
    return (-((1 - hit) ** 2) * hit.log()).mean()


def _dice(x: torch.Tensor) -> torch.Tensor:
    p, t = x.sigmoid(), (TARGET > 0).float()
    return 1 - (2 * (p * t).sum() + 1) / (p.sum() + t.sum() + 1)


def _info_nce(x: torch.Tensor) -> torch.Tensor:
    z = F.normalize(x, dim=-1)
    return F.cross_entropy(z @ F.normalize(TARGET, dim=-1).T / 0.07, torch.arange(6))


def _ppo(x: torch.Tensor) -> torch.Tensor:
    chosen = x.log_softmax(-1).gather(1, INDICES[:, None])[:, 0]
    ratio = (chosen - chosen.detach() - 0.1 * SIGNS).exp()
    return -torch.minimum(ratio * SIGNS, ratio.clamp(0.8, 1.2) * SIGNS).mean()


for name, loss in LOSSES.items():
    of(f"loss: {name}", lambda x, loss=loss: loss(x @ WEIGHT), X)
