"""The targets of `rmlora verify`: what each does, which packages it needs, and what it is called."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from rmlora.errors import ConfigError, nearest
from rmlora.run.environment import package_version
from rmlora.verify import llama_cpp, onnx_graph, peft_reload, torch_exporting, vllm_rules
from rmlora.verify.base_model import BaseModel
from rmlora.verify.certificate import Check
from rmlora.verify.subject import Subject


@dataclass(frozen=True)
class Target:
    """One place where an adapter shall work.

    Attributes:
        check: looks at an adapter and its base; the last argument is a GGUF file to keep.
        method: what it does, in a line.
        packages: those that take part, as pip knows them.
        modules: those of the extra `verify` that it imports.
        rules: of a program that is not run: where its rules are from.
    """

    check: Callable[[Subject, BaseModel, Path | None], list[Check]]
    method: str
    packages: tuple[str, ...]
    modules: tuple[str, ...] = ()
    rules: str | None = None

    def versions(self) -> dict[str, str | None]:
        """Return the versions of what takes part."""
        found: dict[str, str | None] = {} if self.rules is None else {"vLLM": self.rules}
        return found | {name: package_version(name) for name in (*self.packages, "rmlora")}


TARGETS: dict[str, Target] = {
    "peft": Target(
        lambda subject, base, _: peft_reload.check_peft(subject, base),
        peft_reload.METHOD,
        ("peft", "transformers", "torch"),
    ),
    "vllm": Target(
        lambda subject, base, _: vllm_rules.check_vllm(subject, base),
        vllm_rules.METHOD,
        (),
        rules=vllm_rules.RULES,
    ),
    "llama.cpp": Target(
        llama_cpp.check_llama_cpp,
        llama_cpp.METHOD,
        ("gguf",),
        ("gguf",),
    ),
    "onnx": Target(
        lambda subject, base, _: onnx_graph.check_onnx(subject, base),
        onnx_graph.METHOD,
        ("onnx", "onnxruntime", "onnxscript", "peft", "transformers", "torch"),
        ("onnx", "onnxruntime", "onnxscript"),
    ),
    "torch-export": Target(
        lambda subject, base, _: torch_exporting.check_torch_export(subject, base),
        torch_exporting.METHOD,
        ("peft", "transformers", "torch"),
    ),
}


def choose_targets(names: list[str]) -> dict[str, Target]:
    """Return targets by name, once each; `all` is every one.

    Raises:
        ConfigError: there is none of that name, or what it needs is not installed.

    Example:
        >>> list(choose_targets(["vllm", "peft", "vllm"]))
        ['vllm', 'peft']
    """
    wanted = list(TARGETS) if "all" in names else list(dict.fromkeys(names))
    for name in wanted:
        if name not in TARGETS:
            raise ConfigError(f'--target "{name}": expected {", ".join(TARGETS)} or all{nearest(name, list(TARGETS))}')
        lacking = [module for module in TARGETS[name].modules if importlib.util.find_spec(module) is None]
        if lacking:
            raise ConfigError(f'--target {name} needs {", ".join(lacking)}: pip install "rmlora[verify]"')
    return {name: TARGETS[name] for name in wanted}
