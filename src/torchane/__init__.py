"""Train PyTorch models on Apple's Neural Engine, without CoreML.

`torch.compile(model, backend="ane")` needs no import of this package. `torchane.explain(model, *inputs)`
says where each op of a model runs, `torchane.audit(model, batch)` what the engine's arithmetic would do to it;
both are loaded at their first use, so that the MIL tools need no torch.
"""

_LAZY = {"explain": "torchane.capture.explain", "Explanation": "torchane.capture.explain", "audit": "torchane.train.audit"}

__all__ = ["Explanation", "__version__", "audit", "explain"]


def __getattr__(name: str) -> object:
    from importlib import import_module, metadata  # inside, so that `dir` shows what is ours

    if name == "__version__":
        try:
            return metadata.version("torchane")
        except metadata.PackageNotFoundError:
            return "unknown: not installed"
    if name not in _LAZY:
        raise AttributeError(f"module 'torchane' has no attribute {name!r}")
    return getattr(import_module(_LAZY[name]), name)


def __dir__() -> list[str]:
    return __all__
