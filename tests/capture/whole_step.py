"""One step of a preset in a process of its own: python whole_step.py OUT '{"preset": .., "seq_len": .., "chip": .., "planned": ..}'

OUT gets the gradients. chip: null for PyTorch in float32. planned: as a chip's plan has it; else every layer in programs of its own and logits whole.
The last line of output is JSON: the loss, dispatches, the ports that hold scores, seconds of the processor, the largest memory.
"""

import json
import resource
import sys
import time

import torch
from torch import nn

from torchane.capture import backend, vocabulary
from torchane.models.build import build_model
from torchane.models.presets import preset
from torchane.plan.partition import by_layer


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    return nn.functional.cross_entropy(model(tokens)[:, :-1].flatten(0, 1), tokens[:, 1:].flatten())


def main() -> None:
    out, asked = sys.argv[1], json.loads(sys.argv[2])
    torch.manual_seed(0)
    config = preset(asked["preset"]).config
    model = build_model(config)
    tokens = torch.randint(0, config.vocab_size, (1, asked["seq_len"]), generator=torch.Generator().manual_seed(1))
    step = loss_of
    if asked["chip"] is not None:
        options = {"device": "twin", "chip": asked["chip"], "progress": "off"}
        if not asked["planned"]:
            vocabulary.LEAST_SCORES = sys.maxsize
            options["partition"] = by_layer
        step = torch.compile(loss_of, backend=backend.ane, dynamic=False, options=options)
    loss = step(model, tokens)
    loss.backward()
    torch.save({name: parameter.grad for name, parameter in model.named_parameters()}, out)
    plans = [plan for compiled in backend.COMPILED for plan in compiled.plans.values()]
    sizes = [port.layout.shape for plan in plans for spec in plan.programs for port in (*spec.inputs, *spec.outputs)]
    print(json.dumps({
        **asked, "loss": loss.item(), "dispatches": sum(len(plan.dispatches) for plan in plans),
        "has_all_scores": any(sum(size == config.vocab_size for size in shape) for shape in sizes),
        "processor_s": round(time.process_time(), 1), "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
