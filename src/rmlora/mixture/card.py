"""The card of a mixture with gates: what it is, what it needs, and how it is used."""

from __future__ import annotations

from typing import Any

import yaml

from rmlora.config_source import dump
from rmlora.mixture.plan import MixtureRun
from rmlora.modeling import label_settings, loader_name
from rmlora.run.card import describe_results


def write_mixture_card(run: MixtureRun, result: dict[str, Any], versions: dict[str, str | None]) -> str:
    """Return the text of README.md.

    Args:
        run: finished.
        result: as in result.json.
        versions: of the packages that trained it.
    """
    plan = run.plan
    config = plan.config
    front = {"base_model": config.model, "tags": ["rmlora", "mole", "mixture-of-lora"], "metrics": [plan.metric]}
    used = ", ".join(f"{name} {versions[name]}" for name in ("rmlora", "peft", "transformers", "torch"))
    parts = (
        f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n",
        f"# A mixture of {len(run.experts)} LoRA experts on {config.model}\n",
        f"Gates over frozen adapters (MoLE, arXiv 2404.13628) for {config.task}. It needs rmlora, the base and the "
        "experts; it is no adapter, and does not merge into the base, for its gates depend on the input.\n",
        "| expert | adapter_model.safetensors (SHA-256) | mean gate |\n|---|---|---|",
        "\n".join(f"| `{e.name}` | `{e.sha256}` | {result['last'][f'gate_{e.name}']:.3f} |" for e in run.experts)
        + "\n",
        "## Results\n",
        describe_results(plan, result),
        "## Use\n",
        f"```python\n{_usage(run)}\n```\n",
        "## Training\n",
        f"{plan.counts.trainable:,} trainable parameters, {result['steps']} optimizer steps. Trained with {used}.\n",
        f"```yaml\n{dump(config)}```\n",
    )
    return "\n".join(parts)


def _usage(run: MixtureRun) -> str:
    config = run.plan.config
    is_image = config.task == "image-classification"
    auto, processor = loader_name(config.task), "AutoImageProcessor" if is_image else "AutoTokenizer"
    labels = "".join(f", {k}={v}" for k, v in label_settings(run.plan.data).items() if k == "num_labels")
    places = ", ".join(f'"{expert.name}": "{expert.path}"' for expert in run.experts)
    return (
        "import rmlora\n"
        f"from transformers import {auto}, {processor}\n\n"
        f'base = {auto}.from_pretrained("{config.model}"{labels})\n'
        f"experts = {{{places}}}  # where they are now\n"
        'mixture = rmlora.load_mixture(base, "<this folder>", experts=experts)\n'
        f'processor = {processor}.from_pretrained("{config.model}")'
    )
