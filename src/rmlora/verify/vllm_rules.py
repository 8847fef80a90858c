"""Target `vllm`: vLLM's own rules for adapters, applied to the folder. vLLM itself is not run.

The rules are those of vllm-project/vllm, paraphrased: vllm/lora/peft_helper.py at
e745bafffc44744aa601169f8c6f325e47ca7cd5 (what adapter_config.json may ask for; one scale for all modules),
vllm/config/lora.py at a78dc92f43ae2471dd40675a47079aa1a9a157c1 (choices of max_lora_rank), vllm/lora/utils.py at
0fd157078c53638b7ffc9ce7f2c8b8d7ef7a7d28 and vllm/lora/lora_model.py at 0306474e9d1f26d8717aad457b9511f0c9e57d60
(names of tensors and modules). Pull request 53555 lets `score` and `classifier` be saved whole; older versions refuse
them, and the code after it was not read.
"""

from __future__ import annotations

import math
from typing import Any

from rmlora.verify.base_model import BaseModel
from rmlora.verify.certificate import Check, within
from rmlora.verify.subject import Subject
from rmlora.verify.vllm_architectures import LIKE_LLAMA, LLAMA_LAYERS, WITH_LORA, WITHOUT_LORA

METHOD = "adapter_config.json and tensor names held against vLLM's rules as read in its source; vLLM was not run"
RULES = "source (not run): peft_helper.py e745bafffc44, lora_model.py 0306474e9d1f"
MAX_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
SCALE_TOLERANCE = 1e-6
PORTABLE = "rewrite it with --portable OUT"
_REFUSED = {
    "use_dora": "merge it and serve the model",
    "alora_invocation_tokens": "vLLM drops this setting and would let the adapter act from the first token on",
    "trainable_token_indices": "train without it",
    "target_parameters": "adapt modules instead",
    "layer_replication": "merge it and serve the model",
    "use_qalora": "merge it and serve the model",
    "use_bdlora": "merge it and serve the model",
    "lora_bias": "train with lora_bias=False",
}


def check_vllm(subject: Subject, base: BaseModel) -> list[Check]:
    """Apply vLLM's rules.

    Raises:
        AdapterError: the base model's config.json cannot be read.
    """
    return [
        _architecture(base),
        *_settings(subject.config),
        _tensors(subject),
        _modules(subject, base),
        _rank(subject),
        _scale(subject),
    ]


def _architecture(base: BaseModel) -> Check:
    name = base.architecture
    if name in WITH_LORA:
        return Check("architecture", True, detail=name)
    known = "stands without LoRA in" if name in WITHOUT_LORA else "is not in our copy of"
    return Check(
        "architecture",
        False,
        detail=f"{name} {known} vLLM's table of supported models",
        remedy="merge the adapter and serve the model, if vLLM serves that",
    )


def _settings(config: dict[str, Any]) -> list[Check]:
    kind = str(config.get("peft_type")).upper()
    checks = [Check("peft_type", kind == "LORA", detail=kind, remedy="" if kind == "LORA" else PORTABLE)]
    asked = [name for name in _REFUSED if config.get(name)]
    remedy = "; ".join(f"{name}: {_REFUSED[name]}" for name in asked)
    checks.append(Check("no variants of LoRA", not asked, detail=", ".join(asked), remedy=remedy))
    bias = config.get("bias", "none")
    remedy = "" if bias == "none" else 'train with bias="none"'
    checks.append(Check("bias", bias == "none", detail=str(bias), remedy=remedy))
    whole = config.get("modules_to_save") or []
    only_head = bool(whole) and set(whole) <= {"score", "classifier"}
    newer = ", or use a vLLM that has pull request 53555" if only_head else ""
    remedy = f"{PORTABLE}, which puts them beside the adapter, and put them into the base model{newer}" if whole else ""
    checks.append(Check("modules_to_save", not whole, detail=", ".join(whole), remedy=remedy))
    return checks


def _tensors(subject: Subject) -> Check:
    odd = subject.odd
    more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    return Check(
        "tensors are lora_A and lora_B alone",
        not odd,
        detail=f"{odd[0]}{more}" if odd else "",
        remedy=PORTABLE if odd else "",
    )


def _modules(subject: Subject, base: BaseModel) -> Check:
    ends = sorted({pair.name.rpartition(".")[2] for pair in subject.pairs})
    if base.architecture not in LIKE_LLAMA:
        return Check("target modules", True, detail=f"{', '.join(ends)}: not checked for {base.architecture}")
    odd = [end for end in ends if end not in LLAMA_LAYERS]
    remedy = "train without these" if odd else ""
    return Check("target modules", not odd, detail=", ".join(odd or ends), remedy=remedy)


def _rank(subject: Subject) -> Check:
    ranks = sorted({pair.r for pair in subject.pairs})
    if ranks[-1] > MAX_RANKS[-1]:
        remedy = f"vLLM takes at most {MAX_RANKS[-1]}: export it at a smaller rank (export_truncated)"
        return Check("rank", False, detail=f"r = {ranks[-1]}", remedy=remedy)
    if ranks != [subject.config.get("r")]:
        told = f"r = {subject.config.get('r')}, tensors have {', '.join(map(str, ranks))}"
        return Check("rank", False, detail=told, remedy=f"vLLM judges by r alone: {PORTABLE}")
    choice = next(most for most in MAX_RANKS if most >= ranks[-1])
    return Check("rank", True, detail=f"r = {ranks[-1]}: start vLLM with --max-lora-rank {choice} or more")


def _scale(subject: Subject) -> Check:
    config = subject.config
    if not config.get("r") or config.get("lora_alpha") is None:
        return Check("scale", False, detail="r or lora_alpha is missing", remedy=PORTABLE)
    r = config["r"]
    scale = config["lora_alpha"] / (math.sqrt(r) if config.get("use_rslora") else r)
    error = max(abs(scale / pair.scale - 1.0) if pair.scale else float(scale != 0.0) for pair in subject.pairs)
    remedy = f"vLLM reads no rank_pattern and no alpha_pattern: {PORTABLE}"
    return within("scale", error, SCALE_TOLERANCE, f"vLLM would apply s = {scale:g} to every module", remedy)
