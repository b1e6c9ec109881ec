"""The order of the rows of q_proj and k_proj: transformers turns halves, Meta's files and llama.cpp's `llama` turn neighbours.

    halves      x0 x1 x2 x3 | y0 y1 y2 y3      (x_i, y_i) is a pair; Hugging Face
    neighbours  x0 y0 x1 y1 x2 y2 x3 y3        Meta, llama2.c, GGUF of architecture llama (but not qwen2, qwen3)

Source: reference of formats, "Permutation"; llama.cpp, conversion/llama.py; karpathy/llama2.c, export.py.
"""

from torch import Tensor


def to_neighbours(rows: Tensor, heads: int) -> Tensor:
    """rows (heads * head_dim, ...) in halves -> the same in neighbours."""
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def to_halves(rows: Tensor, heads: int) -> Tensor:
    """The inverse of to_neighbours."""
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)
