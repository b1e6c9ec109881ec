"""What torch or we leave to PyTorch is said, with the user's names; what no program can take is refused."""

import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

import torchane
from torchane.capture import backend
from torchane.errors import TorchaneWarning


@pytest.fixture(autouse=True)
def nothing_compiled_before():
    torch._dynamo.reset()
    warnings.filterwarnings("ignore", "The .grad attribute of a Tensor that is not a leaf")  # Dynamo, after a break
    yield
    torch._dynamo.reset()


def run(model: nn.Module, *inputs: torch.Tensor, **options: object) -> torch.Tensor:
    return torch.compile(model, backend=backend.ane, options={"device": "twin"}, **options)(*inputs)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Linear(8, 8)


class Branching(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.proj(x)
        if y.sum() > 0:
            return self.proj(y)
        return y


class Skipped(Net):
    """A break inside of a try cannot be resumed: torch gives the whole frame up."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            try:
                x = self.proj(x)
                if x.sum().item() > 1e9:
                    break
            finally:
                pass
        return x


class Sparse(Net):
    def forward(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm(a, self.proj(x))


class Inverse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.linalg.inv_ex(x)[0]


class Complex(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.view_as_complex(self.proj(x).view(-1, 4, 2))
        return torch.view_as_real(z * z)


class InPlace(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x.mul_(2)
        return self.proj(x)


def test_control_flow_on_values_is_reported_with_its_line() -> None:
    with pytest.warns(TorchaneWarning, match=r"(?s)Branching.forward .*if y.sum\(\) > 0.*Data-dependent branching.*fullgraph=True"):
        run(Branching(), torch.randn(2, 8))


def test_with_fullgraph_torchs_error_stands_alone() -> None:
    with pytest.raises(torch._dynamo.exc.Unsupported, match="Data-dependent branching"):
        run(Branching(), torch.randn(2, 8), fullgraph=True)


def test_a_graph_of_complex_numbers_alone_is_reported() -> None:
    with pytest.warns(TorchaneWarning, match="No program runs in this forward graph.*torch.complex64"):
        torch.compile(lambda z: z * z, backend=backend.ane, options={"device": "twin"})(torch.randn(2, 8, dtype=torch.complex64))


@pytest.mark.parametrize("options, said", [({"device": 3}, "device is 3"), ({"chip": None}, "chip is None"), ({"dump": 1}, "dump is 1")])
def test_an_option_of_the_wrong_kind_is_refused(options: dict, said: str) -> None:
    with pytest.raises(Exception, match=f"UsageError: .*{said}"):
        torch.compile(nn.Linear(8, 8), backend=backend.ane, options={"device": "twin", **options})(torch.randn(2, 8))


def test_a_frame_that_torch_gives_up_is_reported() -> None:
    before = len(backend.COMPILED)
    with pytest.warns(TorchaneWarning, match=r"cannot trace all of Skipped.forward .*runs in PyTorch"):
        run(Skipped(), torch.randn(2, 8))
    assert len(backend.COMPILED) == before  # no backend was asked, and still it was said


@pytest.mark.parametrize("make", [lambda: nn.LSTM(8, 8), lambda: nn.GRU(8, 8), lambda: nn.Sequential(nn.Linear(8, 8), nn.RNN(8, 8))])
def test_a_module_of_torchs_own_that_is_compiled_by_itself_is_reported(make) -> None:
    module = make()
    name = f"{type(module).__module__}.{type(module).__name__}"
    with pytest.warns(TorchaneWarning, match=rf"cannot trace all of {name}: .*RNN, GRU, or LSTM"):
        torch.compile(module, backend="ane")(torch.randn(2, 5, 8))


class OwnName(nn.Sequential):
    """A class of the user's whose forward is torch's."""


class Block(Net):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.proj(x)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU()), r"Sequential.compile\(backend=\"ane\"\) compiles nothing: .* as nn.Sequential's is"),
        (lambda: OwnName(nn.Linear(8, 8)), r"OwnName.compile\(backend=\"ane\"\) compiles nothing: .* as nn.Sequential's is"),
        (lambda: nn.Sequential(Block(), nn.ReLU()), "compiles Block in it alone, each by itself"),
    ],
    ids=["torch's own", "a subclass", "with the user's inside"],
)
def test_a_compilation_in_place_that_torch_leaves_out_is_reported(make, said) -> None:
    with pytest.warns(TorchaneWarning, match=said):
        make().compile(backend=backend.ane, options={"device": "twin"})


def test_a_compilation_in_place_that_torch_takes_is_not_reported() -> None:
    model = Block()
    model.compile(backend="ane", options={"device": "twin"})
    nn.Sequential(nn.Linear(8, 8)).compile(backend="eager")
    model(torch.ones(1, 8))


def test_the_first_compilation_in_place_of_a_process_is_reported_too() -> None:
    """torch imports the backend while it is under way."""
    code = "import torch; torch.nn.Sequential(torch.nn.Linear(8, 8)).compile(backend='ane')"
    done = subprocess.run([sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, timeout=300, check=True)
    assert done.stderr.count("compiles nothing: torch leaves out a forward that is its own") == 1


def test_sparse_tensors_are_reported() -> None:
    with pytest.warns(TorchaneWarning, match="does not support sparse Tensors"):
        run(Sparse(), torch.randn(4, 8), torch.eye(4).to_sparse())


def test_another_backend_is_not_reported_on() -> None:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        torch.compile(Branching(), backend="eager")(torch.randn(2, 8))
    assert not [one for one in said if issubclass(one.category, TorchaneWarning)]


def test_a_report_turned_into_an_error_leaves_torch_usable() -> None:
    with pytest.raises(Exception, match="TorchaneWarning: torch.compile cannot trace all"):
        run(Branching(), torch.randn(2, 8))
    torch._dynamo.reset()  # asserts that no compilation is pending
    with pytest.warns(TorchaneWarning):
        run(Branching(), torch.randn(2, 8))


def test_a_graph_without_any_program_is_reported_with_op_line_and_reason() -> None:
    with pytest.warns(TorchaneWarning, match=r"No program runs in this forward graph.*linalg_inv_ex.*test_reports.py:\d+ \(torchane has no rule"):
        run(Inverse(), torch.eye(3))


def test_complex_numbers_run_on_the_host_and_are_reported() -> None:
    model, x = Complex(), torch.randn(2, 8)
    with pytest.warns(TorchaneWarning, match="view_as_complex.*torch.complex64"):
        y = run(model, x)
    torch.testing.assert_close(y, model(x), rtol=0.01, atol=0.01)


def test_integer_work_is_not_worth_a_report() -> None:
    assert run(nn.Identity(), torch.arange(3)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("dtype, cure", [(torch.float64, "model.float"), (torch.complex64, "two real parameters")])
def test_a_parameter_of_unsupported_dtype_is_refused_by_name(dtype: torch.dtype, cure: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8, dtype=dtype))
    with pytest.raises(Exception, match=f"CaptureError: The parameter 0.weight is {dtype}.*{cure}"):
        run(model, torch.randn(2, 8, dtype=dtype))


def test_a_parameter_on_another_device_is_refused_by_name() -> None:
    with pytest.raises(Exception, match="The parameter weight is on the device meta.*keep model and inputs on the CPU"):
        run(nn.Linear(8, 8, device="meta"), torch.randn(2, 8, device="meta"))


def test_an_input_written_in_place_is_written_as_in_eager() -> None:
    model, ours, theirs = InPlace(), torch.ones(2, 8), torch.ones(2, 8)
    y = run(model, ours)
    torch.testing.assert_close(y, model(theirs), rtol=0.01, atol=0.01)
    assert torch.equal(ours, theirs)


def test_a_half_precision_model_gets_gradients_of_its_own_dtype() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        model = nn.Linear(8, 8).to(dtype)
        run(model, torch.randn(2, 8, dtype=dtype)).sum().backward()
        assert model.weight.grad.dtype == dtype


@pytest.mark.parametrize(
    ("layer", "shape", "size", "limit"),
    [
        (nn.Conv2d(8, 70_000, 1), (1, 8, 2, 2), "70000 entries", "65536"),
        (nn.Conv2d(3, 4, 3, padding=1), (1, 3, 2, 20_000), "20002 entries", "16777216"),
    ],
    ids=["channels", "width"],
)
def test_an_image_or_a_channel_count_beyond_the_chip_is_the_hosts_with_op_size_and_limit(layer, shape, size, limit) -> None:
    torch._dynamo.reset()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        explained = torchane.explain(layer, torch.randn(shape))
    assert any(row.place == "host" and row.macs for row in explained.rows)
    text = str(next(one.message for one in said if issubclass(one.category, TorchaneWarning)))
    assert "aten.convolution" in text
    assert size in text
    assert limit in text
