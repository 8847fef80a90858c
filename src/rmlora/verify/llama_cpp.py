"""Target `llama.cpp`: the adapter written as a GGUF LoRA and read back; its updates are those of PEFT."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import Tensor

from rmlora.files import check_writable
from rmlora.verify.base_model import BaseModel
from rmlora.verify.certificate import Check, within
from rmlora.verify.gguf_file import EMBEDDING, Dialect, GgufLora, read_gguf, write_gguf
from rmlora.verify.probe import distance
from rmlora.verify.subject import Subject

METHOD = (
    "written as GGUF by the rules of convert_lora_to_gguf.py, read back by the gguf package, dW as llama.cpp scales "
    "it held against PEFT's, largest difference over the largest entry; llama.cpp was not run"
)
TOLERANCE = 1e-6
_ARCHITECTURES = {
    "LlamaForCausalLM": ("llama", True),
    "MistralForCausalLM": ("llama", True),
    "Qwen2ForCausalLM": ("qwen2", False),
    "Qwen3ForCausalLM": ("qwen3", False),
    "GPT2LMHeadModel": ("gpt2", False),
}
_REFUSED = ("use_dora", "lora_bias", "target_parameters", "alora_invocation_tokens", "layer_replication")
_GPT2 = (
    "convert_lora_to_gguf.py itself turns the factors of GPT-2 around with the weights, as read in its source, and "
    "llama.cpp then refuses their shapes: use the file that --gguf writes"
)


def check_llama_cpp(subject: Subject, base: BaseModel, keep: Path | None = None) -> list[Check]:
    """Write an adapter as GGUF, read it back and compare every dW.

    Args:
        subject: the adapter.
        base: its model; only config.json is read.
        keep: where the GGUF file shall stay; None throws it away.

    Raises:
        AdapterError: a module has no counterpart in llama.cpp.
    """
    if base.architecture not in _ARCHITECTURES:
        return [_unknown(base.architecture)]
    dialect = _dialect(base)
    refused = _contents(subject, base)
    if not refused.passed:
        return [refused]
    if keep is not None:
        check_writable(keep.parent)
        keep.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".gguf-", dir=None if keep is None else keep.parent) as folder:
        file = Path(folder) / "lora.gguf"
        factors = {
            dialect.name(pair.name): (pair.A.float(), dialect.rows(pair.B.float(), pair.name)) for pair in subject.pairs
        }
        write_gguf(file, dialect.arch, float(subject.config["lora_alpha"]), factors)
        found = read_gguf(file)
        checks = [refused, _header(found, dialect), _updates(subject, dialect, found)]
        if keep is not None and all(check.passed for check in checks):
            file.replace(keep)
    return checks


def _unknown(name: str) -> Check:
    remedy = "convert it with llama.cpp's own convert_lora_to_gguf.py, or merge it and convert the model"
    return Check("architecture", False, detail=f"{name} is none of {', '.join(sorted(_ARCHITECTURES))}", remedy=remedy)


def _dialect(base: BaseModel) -> Dialect:
    config = base.config
    arch, reorders = _ARCHITECTURES[base.architecture]
    heads = config.num_attention_heads
    return Dialect(arch, (heads, config.num_key_value_heads or heads) if reorders else None, config.num_hidden_layers)


def _contents(subject: Subject, base: BaseModel) -> Check:
    asked = [name for name in _REFUSED if subject.config.get(name)]
    ties = getattr(base.config, "tie_word_embeddings", False)
    tied = [pair.name for pair in subject.pairs if ties and pair.name.endswith("lm_head")]
    odd = [*asked, *subject.odd, *tied]
    if subject.adapter.peft_type != "LORA":
        odd = [subject.adapter.peft_type]
    more = f" and {len(odd) - 1} more" if len(odd) > 1 else ""
    return Check(
        "A and B alone",
        not odd,
        detail=f"{odd[0]}{more}" if odd else "",
        remedy="heads: rewrite it with --portable OUT; everything else: merge the adapter and convert the model"
        if odd
        else "",
    )


def _header(found: GgufLora, dialect: Dialect) -> Check:
    wanted = {"general.type": "adapter", "adapter.type": "lora", "general.architecture": dialect.arch}
    wrong = [name for name, value in wanted.items() if found.fields.get(name) != value]
    return Check("header", not wrong, detail=", ".join(wrong or [dialect.arch]))


def _updates(subject: Subject, dialect: Dialect, found: GgufLora) -> Check:
    errors: dict[str, float] = {}
    for pair in subject.pairs:
        name = dialect.name(pair.name)
        if name not in found.factors:
            errors[pair.name] = float("inf")
            continue
        errors[pair.name] = distance(found.update(name), _expected(pair.scale, pair.A, pair.B, dialect, pair.name))
    worst = max(errors, key=lambda name: errors[name])
    remedy = "the GGUF file has one lora_alpha and no word of rsLoRA: rewrite the adapter with --portable OUT"
    detail = f"{len(errors)} modules; largest at {worst}"
    return within("dW", errors[worst], TOLERANCE, f"{detail}. {_GPT2}" if dialect.arch == "gpt2" else detail, remedy)


def _expected(scale: float, A: Tensor, B: Tensor, dialect: Dialect, module: str) -> Tensor:
    update = scale * (B.double() @ A.double())
    return update.T if dialect.name(module) == EMBEDDING else dialect.rows(update, module)
