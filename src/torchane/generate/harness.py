"""Tasks of EleutherAI's lm-evaluation-harness, asked of a model on any device.

    task ─► the harness: prompts, choices, tokens, metrics ─► rows of tokens ─► Evaluator (scores), Writer (texts) ─► the harness
The harness's own class for transformers' models does all but call the model: rows are filled up to few widths and one number of rows, so that few
programs are compiled, and texts are written with a cache of fixed length.
"""

from collections.abc import Sequence
from typing import Any

import torch

from torchane.errors import UsageError
from torchane.generate.evaluate import Evaluator


def measure(asked: Evaluator, tasks: Sequence[Any], *, limit: int | None = None, num_shots: int | None = None, is_talk: bool = False) -> dict[str, Any]:
    """The results by task. num_shots: solved examples before each question; None: the task's own. is_talk: questions are messages.
    Raises UsageError where the harness is not installed, or a task is not to be had."""
    try:
        import lm_eval  # noqa: PLC0415
    except ImportError as error:
        raise UsageError(f"--tasks are those of lm-evaluation-harness, which is not installed ({error}): pip install lm-eval. Without it: --data FILE.") from error
    model = _model(asked)
    try:
        found = lm_eval.simple_evaluate(model=model, tasks=list(tasks), limit=limit, num_fewshot=num_shots, apply_chat_template=is_talk)
    except (KeyError, ValueError, OSError, ImportError, AssertionError) as error:  # what it raises for tasks, data sets and what these need
        if model.was_asked:  # the tasks were there: something else is wrong
            raise
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        raise UsageError(
            f"lm-evaluation-harness does not measure {', '.join(map(str, tasks))}: {said} ({type(error).__name__}). `lm_eval ls tasks` lists what it knows; "
            "most tasks fetch their data over the network when they are first used."
        ) from error
    return {task: {name: value for name, value in values.items() if isinstance(value, int | float)} for task, values in found["results"].items()}


def _model(asked: Evaluator) -> Any:
    """A model of the harness."""
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    class Asked(HFLM):  # type: ignore[misc]
        was_asked = False

        def _model_call(self, inps: torch.Tensor, attn_mask: torch.Tensor | None = None, labels: torch.Tensor | None = None) -> torch.Tensor:
            """inps (B, S), filled up behind by the harness -> logits (B, S, V)."""
            self.was_asked = True
            assert attn_mask is None and labels is None  # of models with an encoder
            return asked.scores(inps.tolist())[: inps.shape[0], : inps.shape[1]]

        def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **settings: Any) -> torch.Tensor:
            """context (B, S), filled up before by the harness -> (B, S + what was written)."""
            self.was_asked = True
            count, width = context.shape
            mask = settings.pop("attention_mask").bool()
            rows = [ids[here].tolist() for ids, here in zip(context, mask, strict=True)]
            more = max_length - width
            if asked.writer.device != "host":
                rows = [*rows, *[rows[0]] * (asked.batch_size - count)]
            with asked.writer.asking():
                ids, filled, cache = asked.writer.ready(rows, more)
                done = super()._model_generate(ids, ids.shape[1] + more, stop, attention_mask=filled, disable_compile=True, **cache, **settings)
            return torch.cat([context, done[:count, ids.shape[1] :]], dim=1)

    return Asked(pretrained=asked.model, tokenizer=asked.tokenizer, batch_size=asked.batch_size)
