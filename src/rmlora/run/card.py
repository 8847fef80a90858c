"""The model card: what was trained, how well it does, and how to load it without this package."""

from __future__ import annotations

from typing import Any

import yaml

from rmlora.config_source import dump
from rmlora.modeling import label_settings, loader_name
from rmlora.run.plan import Described

_PIPELINES = {
    "image-classification": "image-classification",
    "question-answering": "question-answering",
    "causal-lm": "text-generation",
}
_KINDS = {"LORA": "LoRA adapter", "ADALORA": "LoRA adapter", "VERA": "VeRA adapter"}


def write_card(
    plan: Described, result: dict[str, Any], versions: dict[str, str | None], what: str = "", usage: str = ""
) -> str:
    """Return the text of README.md.

    Args:
        plan: of the run.
        result: as in result.json.
        versions: of the packages that trained it.
        what: it is, where that is neither an adapter of the whole model nor the model.
        usage: Markdown that says how to load that.
    """
    config = plan.config
    is_adapter = not plan.method.trains_base
    front = {
        "base_model": config.model,
        "library_name": "peft" if is_adapter else "transformers",
        "pipeline_tag": _PIPELINES.get(config.task, "text-classification"),
        "tags": ["rmlora", config.method, *([_KINDS[plan.method.adapts].split()[0].lower()] if is_adapter else [])],
        "metrics": [plan.metric],
    }
    used = ", ".join(f"{name} {versions[name]}" for name in ("rmlora", "peft", "transformers", "torch"))
    what = what or (_KINDS[plan.method.adapts] if is_adapter else "model")
    parts = (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# {config.method} on {config.model}\n",
        f"A plain {what} for {config.task}, trained by rmlora with the method "
        f"`{config.method}`: {plan.method.summary}. It loads without rmlora installed.\n",
        "## Results\n",
        describe_results(plan, result),
        "## Use\n",
        usage or f"```python\n{_usage(plan)}\n```\n",
        "## Training\n",
        f"{plan.counts.trainable:,} trainable parameters ({plan.counts.share:.2%} of the model), "
        f"{result['steps']} optimizer steps. Trained with {used}.\n",
        f"```yaml\n{dump(config)}```\n",
    )
    return "\n".join(parts)


def describe_results(plan: Described, result: dict[str, Any]) -> str:
    """Return Markdown with best and last epoch, and what they are to be seen against."""
    metric = plan.metric
    lines = [
        f"| epoch | eval {metric} | train {metric} | gap | eval loss |",
        "|---|---|---|---|---|",
    ]
    for which in ("best", "last"):
        row = result[which]
        cells = (row[f"eval_{metric}"], row.get(f"train_{metric}"), row["gap"], row["eval_loss"])
        values = " | ".join("-" if cell is None else f"{cell:.4f}" for cell in cells)
        lines.append(f"| {which} ({row['epoch']}) | {values} |")
    notes = [f"The weights are those of the {result['saved']} epoch."]
    held_out = len(plan.data.eval)
    worth = "" if plan.config.task == "causal-lm" else f", so one of them is {100 / held_out:.2f} points"
    notes.append(f"Held out: {held_out} examples{worth}.")
    if plan.data.majority is not None:
        notes.append(f"Always naming the commonest class scores {plan.data.majority:.4f}.")
    notes.append("This is one seed: no evidence that one method is better than another.")
    return "\n".join(lines) + "\n\n" + " ".join(notes) + "\n"


def _usage(plan: Described) -> str:
    config = plan.config
    is_image = config.task == "image-classification"
    auto = loader_name(config.task)
    processor = "AutoImageProcessor" if is_image else "AutoTokenizer"
    if plan.method.trains_base:
        return (
            f"from transformers import {auto}, {processor}\n\n"
            f'model = {auto}.from_pretrained("<this folder>")\n'
            f'processor = {processor}.from_pretrained("<this folder>")'
        )
    labels = "".join(f", {k}={v}" for k, v in label_settings(plan.data).items() if k == "num_labels")
    return (
        "from peft import PeftModel\n"
        f"from transformers import {auto}, {processor}\n\n"
        f'base = {auto}.from_pretrained("{config.model}"{labels})\n'
        'model = PeftModel.from_pretrained(base, "<this folder>")\n'
        f'processor = {processor}.from_pretrained("{config.model}")'
    )
