"""Does training begin where it should?"""

from __future__ import annotations

from pathlib import Path

import torch

from rmlora.doctor.finding import Finding
from rmlora.doctor.subject import Subject

_NAME = "base_model.model.{}.lora_{}.weight"


def starts_from_adapter(subject: Subject) -> Finding:
    """Tell whether the factors before the first step are those of the adapter to go on training."""
    plan = subject.plan
    if plan.config.init_adapter is None:
        return Finding("start", "skipped", "a new adapter")
    if "begin" in plan.handle.method.hooks():
        return Finding("start", "skipped", f"method {plan.config.method} begins with factors of its own")
    stored = _read(Path(plan.config.init_adapter))
    other = []
    for pair in plan.pairs:
        now = subject.steps[0].before[pair.name]
        was = [stored.get(_NAME.format(pair.name, side)) for side in "AB"]
        if any(
            b is None or not torch.equal(a.flatten(1), b.flatten(1).to(a.dtype)) for a, b in zip(now, was, strict=True)
        ):
            other.append(pair.name)
    seen = f"{len(plan.pairs) - len(other)} of {len(plan.pairs)} modules begin as {plan.config.init_adapter} left them"
    if other:
        remedy = "the adapter was not loaded, or its names are others: training would begin anew"
        return Finding("start", "problem", f"{seen}; not {other[0]}", remedy, {"other": other})
    return Finding("start", "ok", seen)


def _read(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(folder / "adapter_model.safetensors"))
