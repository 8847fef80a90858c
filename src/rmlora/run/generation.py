"""Letting a language model complete held-out prompts, to be read and to be compared with what people wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import torch

from rmlora.files import write_text
from rmlora.run.completion_limits import positions
from rmlora.run.folder import RunFolder
from rmlora.run.plan import Plan
from rmlora.tasks.completions import encode_prompts
from rmlora.tasks.text_overlap import overlap


def write_generated(plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """Complete the first held-out prompts and write generated.jsonl: prompt, completions, generated.

    A prompt that occurs several times is completed once, and compared with all its completions.

    Args:
        plan: of a run that is trained; its model is left in evaluation mode.
        folder: of the run.

    Returns:
        Number of `examples`, and the metrics asked for, 0 to 1.
    """
    settings = plan.config.generation
    references: dict[str, list[str]] = {}
    for prompt, completion in zip(plan.data.eval.inputs[0], plan.data.eval.labels, strict=True):
        references.setdefault(prompt, []).append(str(completion))
    chosen = list(references)[: settings.examples]
    if not chosen:
        return {}
    generated = generate(plan, chosen)
    rows = [
        {"prompt": prompt, "completions": references[prompt], "generated": text}
        for prompt, text in zip(chosen, generated, strict=True)
    ]
    write_text(folder.generated, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    found = overlap(settings.metrics, generated, [references[prompt] for prompt in chosen])
    return {"generation": {"examples": len(chosen), **found}}


@torch.no_grad()
def generate(plan: Plan, prompts: Sequence[str]) -> list[str]:
    """Complete prompts with the likeliest token each time, which draws nothing at random.

    Args:
        plan: of the run.
        prompts: to complete.
    """
    config, tokenizer = plan.config, plan.processor
    count, limit = config.generation.max_new_tokens, positions(plan.model)
    longest = min(config.data.max_length, limit - count if limit is not None else config.data.max_length)
    ids = encode_prompts(prompts, tokenizer, longest, config.data.separator)
    plan.model.eval()
    texts = []
    for start in range(0, len(ids), config.training.eval_batch_size):
        batch = pad_left(ids[start : start + config.training.eval_batch_size], tokenizer.pad_token_id)
        inputs = {name: tensor.to(plan.model.device) for name, tensor in batch.items()}
        outputs = plan.model.generate(
            **inputs,
            max_new_tokens=count,
            do_sample=False,
            num_beams=1,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        width = inputs["input_ids"].shape[1]
        texts += tokenizer.batch_decode(outputs[:, width:], skip_special_tokens=True)
    return [text.strip() for text in texts]


def pad_left(rows: Sequence[list[int]], pad: int) -> dict[str, torch.Tensor]:
    """Pad prompts on the left, so that all end where the model goes on.

    Example:
        >>> pad_left([[1, 2], [3]], pad=0)["input_ids"].tolist()
        [[1, 2], [0, 3]]
    """
    width = max(len(row) for row in rows)
    return {
        "input_ids": torch.tensor([[pad] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }
