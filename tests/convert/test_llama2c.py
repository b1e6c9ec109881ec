"""llama2.c's files: what run.c computes from them is what transformers computes; bytes come back; damage is an error."""

import struct
from pathlib import Path

import numpy as np
import pytest
import small_models
import torch

from torchane.convert import hf, llama2c
from torchane.errors import ParseError, UsageError

TOKENS = list(range(5, 29))
UNTIED, TIED = {"rms_norm_eps": 1e-5}, {"rms_norm_eps": 1e-5, "tie_word_embeddings": True}


def run_c(path: Path, tokens: list[int]) -> np.ndarray:
    """What run.c computes from a file of version 0, in float64: an independent reading of its layout. (S, V)."""
    data = np.fromfile(path, "<f4", offset=28).astype(np.float64)
    dim, hidden, layers, heads, kv_heads, vocab, positions = np.fromfile(path, "<i4", 7)
    head, at = dim // heads, 0

    def take(*shape: int) -> np.ndarray:
        nonlocal at
        at += int(np.prod(shape))
        return data[at - int(np.prod(shape)) : at].reshape(shape)

    embedding, attention_norm = take(abs(vocab), dim), take(layers, dim)
    wq, wk, wv, wo = (take(layers, rows, dim) for rows in (dim, kv_heads * head, kv_heads * head, dim))
    ffn_norm, w1, w2, w3 = take(layers, dim), take(layers, hidden, dim), take(layers, dim, hidden), take(layers, hidden, dim)
    final = take(dim)
    take(positions, head // 2), take(positions, head // 2)
    classifier = embedding if vocab > 0 else take(abs(vocab), dim)
    assert at == len(data)

    def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

    def turn(x: np.ndarray) -> np.ndarray:  # neighbours x[2i], x[2i + 1], as in run.c
        angles = np.arange(len(x))[:, None, None] / 10000.0 ** (np.arange(0, head, 2) / head)
        even, odd, cos, sin = x[..., ::2], x[..., 1::2], np.cos(angles), np.sin(angles)
        return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)

    x = embedding[tokens]
    mask = np.triu(np.full((len(x), len(x)), -np.inf), 1)
    for n in range(layers):
        h = norm(x, attention_norm[n])
        q, k, v = (turn((h @ wq[n].T).reshape(len(x), heads, head)), turn((h @ wk[n].T).reshape(len(x), kv_heads, head)), (h @ wv[n].T).reshape(len(x), kv_heads, head))
        k, v = (np.repeat(each, heads // kv_heads, axis=1) for each in (k, v))
        scores = np.einsum("shd,thd->hst", q, k) / np.sqrt(head) + mask
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        x = x + np.einsum("hst,thd->shd", weights, v).reshape(len(x), dim) @ wo[n].T
        h = norm(x, ffn_norm[n])
        gate = h @ w1[n].T
        x = x + (gate / (1 + np.exp(-gate)) * (h @ w3[n].T)) @ w2[n].T
    return norm(x, final) @ classifier.T


@pytest.fixture(scope="module", params=[UNTIED, TIED], ids=["untied", "tied"])
def folder(request, tmp_path_factory):
    return small_models.save(tmp_path_factory.mktemp("model") / "m", **request.param)


def test_run_c_computes_from_our_file_what_transformers_computes(folder, tmp_path):
    llama2c.write(hf.read(folder), tmp_path / "m.bin", 0)
    ours = torch.from_numpy(run_c(tmp_path / "m.bin", TOKENS))
    assert small_models.close(ours, small_models.logits(folder, TOKENS).double()) < 1e-5


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_file_that_is_read_and_written_has_the_same_bytes(folder, tmp_path, version):
    llama2c.write(hf.read(folder), tmp_path / "one.bin", version)
    llama2c.write(llama2c.read(tmp_path / "one.bin"), tmp_path / "two.bin", version)
    assert (tmp_path / "one.bin").read_bytes() == (tmp_path / "two.bin").read_bytes()


@pytest.mark.parametrize(("version", "error"), [(0, 0), (1, 0), (2, 1 / 127)])
def test_weights_come_back_within_the_type_of_the_version(folder, tmp_path, version, error):
    model = hf.read(folder)
    llama2c.write(model, tmp_path / "m.bin", version)
    back = llama2c.read(tmp_path / "m.bin")
    for name, weight in back.weights.items():
        assert (weight - model.weights[name]).abs().max() <= error / 2 * 1.001 * model.weights[name].abs().max(), name
    assert back.quantised == ("int8" if version == 2 else None)


def test_the_header_of_version_2_says_groups_at_byte_37(folder, tmp_path):
    llama2c.write(hf.read(folder), tmp_path / "m.bin", 2)
    head = (tmp_path / "m.bin").read_bytes()[:256]
    assert struct.unpack_from("<Ii7iBi", head) == (0x616B3432, 2, 64, 96, 3, 4, 2, 320, 128, "Tied" in str(folder) or hf.read(folder).is_tied, 32)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({}, "rms_norm_eps 1e-06, and llama2.c has 1e-05"), ({**UNTIED, "head_dim": 24}, "head_dim 24"), ({**UNTIED, "rope_theta": 5e5}, "positions of default 500000")],
)
def test_what_run_c_has_not_is_refused(tmp_path, changes, said):
    small_models.save(tmp_path / "m", tokenizer=False, **changes)
    with pytest.raises(UsageError, match=said):
        llama2c.write(hf.read(tmp_path / "m"), tmp_path / "m.bin")


def test_another_architecture_is_refused(tmp_path):
    small_models.save(tmp_path / "m", "qwen3", tokenizer=False)
    with pytest.raises(UsageError, match="is qwen3, and llama2.c knows only llama"):
        llama2c.write(hf.read(tmp_path / "m"), tmp_path / "m.bin")


@pytest.mark.parametrize("version", [0, 1, 2])
def test_a_file_that_is_cut_short_says_how_many_bytes_it_should_have(folder, tmp_path, version):
    path = tmp_path / "m.bin"
    llama2c.write(hf.read(folder), path, version)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(ParseError, match=f"{len(whole) - 1:,} bytes.*{len(whole):,}. It is cut short"):
        llama2c.read(path)


def test_headers_of_noise_are_errors_and_take_no_memory(tmp_path):
    path, random = tmp_path / "noise.bin", np.random.default_rng(0)
    for trial in range(100):
        noise = random.integers(0, 256, random.integers(0, 600), dtype=np.uint8).tobytes()
        path.write_bytes((struct.pack("<Ii", llama2c.MAGIC, 1 + trial % 2) if trial % 3 else b"") + noise)
        with pytest.raises(ParseError):
            llama2c.read(path)


@pytest.mark.parametrize("width", [640, 1152])
def test_a_width_that_looks_like_the_mark_of_a_pickle_is_none(tmp_path, width):
    small_models.save(tmp_path / "m", tokenizer=False, hidden_size=width, num_hidden_layers=1, rms_norm_eps=1e-5)
    llama2c.write(hf.read(tmp_path / "m"), tmp_path / "m.bin")
    assert (tmp_path / "m.bin").read_bytes()[0] == 0x80 and llama2c.read(tmp_path / "m.bin").config["hidden_size"] == width


def test_a_pickle_is_refused(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "m.bin")
    with pytest.raises(ParseError, match="is a pickle, which can run any code"):
        llama2c.read(tmp_path / "m.bin")
