"""Are the scale of the update and the types of numbers sane?"""

from __future__ import annotations

from collections import Counter

import torch

from rmlora.doctor.finding import Finding
from rmlora.doctor.subject import Subject

SANE = (0.25, 8.0)
"""Scales s of s B A that published recipes use: RoBERTa in LoRA 1, GPT-2 in LoRA 32 / 4 = 8."""

POSSIBLE = (1 / 64, 64.0)
"""Beyond these the update hardly acts, or drowns the model at the usual learning rates."""


def scale_is_sane(subject: Subject) -> Finding:
    """Tell the effective scale of s B A in every module, rsLoRA considered, and whether it is a usual one."""
    pairs, lora = subject.plan.pairs, subject.plan.config.lora
    if not pairs or pairs[0].kind == "VERA":
        return Finding("scale", "skipped", "there is no alpha")
    scales = sorted({round(pair.scale, 6) for pair in pairs})
    root = "sqrt(r)" if lora.use_rslora else "r"
    told = f"{scales[0]:g}" if len(scales) == 1 else f"{scales[0]:g} to {scales[-1]:g}"
    seen = f"s = alpha / {root} = {told} (alpha {lora.lora_alpha:g}, r {lora.r})"
    values = {"least": scales[0], "most": scales[-1], "range": SANE}
    if scales[0] < POSSIBLE[0] or scales[-1] > POSSIBLE[1]:
        remedy = f"lora.scale=2, or another between {SANE[0]:g} and {SANE[1]:g}"
        return Finding("scale", "problem", f"{seen}; beyond {POSSIBLE[0]:.3g} to {POSSIBLE[1]:g}", remedy, values)
    if scales[0] < SANE[0] or scales[-1] > SANE[1]:
        remedy = "lora.scale=2 keeps it when r changes; alpha alone does not"
        return Finding("scale", "warning", f"{seen}; usual is {SANE[0]:g} to {SANE[1]:g}", remedy, values)
    if lora.use_rslora:
        remedy = f"lora.use_rslora=false lora.scale={scales[-1]:g} trains the same and is served right"
        seen += "; servers that ignore use_rslora (SGLang, llama.cpp) would divide by r"
        return Finding("scale", "warning", seen, remedy, values)
    return Finding("scale", "ok", seen, values=values)


def dtypes_are_safe(subject: Subject) -> Finding:
    """Tell whether what learns is kept in a type fine enough for its steps, and the base for merging."""
    model, config = subject.plan.model, subject.plan.config
    counts = {learns: Counter(_name(p.dtype) for p in _floats(model, learns)) for learns in (True, False)}
    learning, frozen = counts[True], counts[False]
    seen = f"trained in {_list(learning)}" + (f", frozen in {_list(frozen)}" if frozen else "")
    seen += f"; computed in {config.training.precision}"
    if "float16" in learning:
        remedy = "keep what learns in float32 (PEFT: autocast_adapter_dtype=True)"
        return Finding("dtype", "problem", f"{seen}: float16 steps underflow, and scalers refuse them", remedy)
    if "bfloat16" in learning:
        remedy = "keep what learns in float32: bfloat16 has 8 bits, and steps below 1/256 of a weight are lost"
        return Finding("dtype", "warning", seen, remedy)
    half = [name for name in frozen if name in ("float16", "bfloat16")] or _stored_half(model)
    if half and subject.plan.handle is not None:
        seen += f"; the checkpoint is in {half[0]}" if half[0] not in frozen else ""
        remedy = f"serve the adapter unmerged, or merge in float32: merging into {half[0]} loses small updates"
        return Finding("dtype", "warning", seen, remedy)
    return Finding("dtype", "ok", seen)


def _floats(model: torch.nn.Module, learns: bool) -> list[torch.nn.Parameter]:
    return [p for p in model.parameters() if p.is_floating_point() and p.requires_grad is learns]


def _stored_half(model: torch.nn.Module) -> list[str]:
    """The type the published checkpoint says it is in, if a short one."""
    told = str(getattr(model.config, "dtype", None) or "").removeprefix("torch.")
    return [told] if told in ("float16", "bfloat16") else []


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _list(counts: Counter[str]) -> str:
    return " and ".join(counts) or "nothing"
