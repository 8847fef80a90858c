"""A study made by hand: plain JSON and safetensors, as `rmlora compare` leaves it, its numbers from a formula."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from safetensors.numpy import save_file

# label: (method, final accuracy, gap, effective rank as a share of r, orthogonality loss)
METHODS: dict[str, tuple[str, float, float, float, float]] = {
    "LoRA": ("lora", 0.760, 0.090, 0.55, 410.0),
    "GM-LoRA": ("gm-lora", 0.762, 0.070, 0.56, 175.0),
    "R-LoRA": ("r-lora", 0.800, 0.060, 0.88, 80.0),
    "RM-LoRA": ("rm-lora", 0.815, 0.050, 0.84, 58.0),
    "full": ("full", 0.735, 0.140, 0.0, 0.0),
}
NUM_EXAMPLES = 400
EPOCHS = 6


@dataclass
class FakeStudy:
    """What to make.

    Attributes:
        methods: by label, as in METHODS.
        ranks: r of the adapters.
        seeds: of the final runs.
        tasks: names.
        model: its name.
        args: of a method, by label.
        select: learning rates that were tried; empty searches nothing.
    """

    methods: dict[str, tuple[str, float, float, float, float]] = field(default_factory=lambda: dict(METHODS))
    ranks: tuple[int, ...] = (8,)
    seeds: tuple[int, ...] = (0, 1, 2)
    tasks: tuple[str, ...] = ("rte",)
    model: str = "encoder-small"
    args: dict[str, dict[str, Any]] = field(default_factory=dict)
    select: tuple[float, ...] = ()

    def write(self, folder: Path, name: str = "four-methods") -> Path:
        """Write it; returns the folder."""
        folder.mkdir(parents=True)
        spec = {"name": name, "methods": [{"name": m[0], "label": label} for label, m in self.methods.items()]}
        spec |= {"tasks": [{"name": task} for task in self.tasks], "models": [self.model], "ranks": list(self.ranks)}
        (folder / "study.yaml").write_text(yaml.safe_dump(spec | {"seeds": list(self.seeds)}))
        versions = {"rmlora": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0"}
        told = {"python": "3.11.7", "versions": versions, "data": {"train.jsonl": "0f" * 32}}
        (folder / "environment.json").write_text(json.dumps(told))
        rows = [
            self._cell(folder, name, task, label, r, seed)
            for task in self.tasks
            for label, (method, *_) in self.methods.items()
            for r in (self.ranks if method != "full" else (None,))
            for seed in self.seeds
        ]
        rows += [
            row | {"kind": "select", "lr": lr, "cell": f"{i:016x}"}
            for i, row in enumerate(rows[:5])
            for lr in self.select
        ]
        rows.sort(key=lambda row: row["cell"])
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder

    def _cell(self, folder: Path, name: str, task: str, label: str, r: int | None, seed: int) -> dict[str, Any]:
        cell = hashlib.blake2b(repr((task, label, r, seed)).encode(), digest_size=8).hexdigest()
        place = folder / "cells" / cell
        place.mkdir(parents=True)
        epochs = self._epochs(task, label, r, seed)
        right = _right(self._accuracy(label, r, seed), task, seed)
        epochs[-1]["eval_accuracy"] = float(right.mean())
        (place / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in epochs))
        save_file(
            {"logits": np.eye(2, dtype=np.float32)[right.astype(int)], "labels": np.ones(NUM_EXAMPLES, dtype=np.int64)}
            | {"correct": right},
            place / "predictions.safetensors",
        )
        row = {
            "study": name,
            "cell": cell,
            "kind": "final",
            "model": self.model,
            "task": task,
            "label": label,
            "method": self.methods[label][0],
            "method_args": self.args.get(label, {}),
            "r": r,
            "lr": 1e-3,
            "seed": seed,
            "metric": "accuracy",
            "best": max(epochs, key=lambda e: e["eval_accuracy"]),
            "last": epochs[-1],
            "majority": 0.53,
            "examples": {"train": 2000, "eval": NUM_EXAMPLES},
            "parameters": _parameters(r),
            "folder": f"cells/{cell}",
            "seconds": 61.5,
        }
        (place / "result.json").write_text(json.dumps(row))
        (place / "config.yaml").write_text(yaml.safe_dump({"model": self.model, "method": row["method"]}))
        return row

    def _accuracy(self, label: str, r: int | None, seed: int) -> float:
        rng = np.random.default_rng([seed, r or 0])
        return self.methods[label][1] + 0.004 * float(rng.normal()) + 0.004 * np.log2((r or 8) / 8)

    def _epochs(self, task: str, label: str, r: int | None, seed: int) -> list[dict[str, Any]]:
        method, _, gap, share, loss = self.methods[label]
        rng = np.random.default_rng([seed, len(label)])
        found = []
        for epoch in range(1, EPOCHS + 1):
            learnt = 1 - np.exp(-epoch / 1.5)
            value = self._accuracy(label, r, seed) * (0.6 + 0.4 * learnt) + 0.003 * float(rng.normal())
            row = {
                "epoch": epoch,
                "step": 60 * epoch,
                "train_accuracy": value + gap * learnt,
                "eval_accuracy": value,
                "eval_loss": 1.2 - value,
                "eval_ece": 0.05,
                "gap": gap * learnt,
            }
            if r:
                row |= {
                    "penalty": loss * 2,
                    "effective_rank": max(1.0, share * r * learnt) + 0.1 * float(rng.normal()),
                    "stable_rank": 0.4 * share * r,
                    "rank": float(r),
                    "rank_tolerance": 9.2e-5,
                    "orthogonality_loss": loss * (2 - learnt) * (1 + 0.05 * float(rng.normal())),
                    "orthogonality_floor": 36.0,
                    "masked_share": 0.45 if "gm" in method or "rm" in method else None,
                }
            found.append(row)
        return found


def _parameters(r: int | None) -> dict[str, int]:
    adapter, base = (0, 9_000_000) if r is None else (18432 * r, 0)
    whole = adapter + base + 770
    kept = {"inference_adapter": adapter, "inference": whole}
    return {"adapter": adapter, "head": 770, "base": base, "trainable": whole} | kept


def _right(accuracy: float, task: str, seed: int) -> np.ndarray:
    """Which examples are answered rightly: the hard ones are hard for all."""
    hard = np.random.default_rng(len(task)).random(NUM_EXAMPLES)
    return hard + np.random.default_rng([seed, 7]).normal(0, 0.03, NUM_EXAMPLES) < accuracy


def grid(folder: Path) -> Path:
    """A study of weight times directions."""
    methods, args = {"LoRA": METHODS["LoRA"]}, {}
    for i, weight in enumerate((1e-4, 1e-3, 1e-2)):
        for j, directions in enumerate((0.25, 0.5, 1.0)):
            label = f"RM-LoRA weight={weight:g} directions={directions:g}"
            methods[label] = ("rm-lora", 0.76 + 0.02 * i - 0.015 * i * i + 0.004 * j, 0.05, 0.8, 60.0)
            args[label] = {"weight": weight, "directions": directions}
    return FakeStudy(methods=methods, args=args).write(folder, "weight-by-directions")


def adapter(place: Path) -> None:
    """Put an adapter into a cell's folder."""
    rng = np.random.default_rng(0)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8}
    (place / "adapter_config.json").write_text(json.dumps(config))
    factors = {f"layer.{i}.q.lora_A.weight": rng.normal(size=(4, 6)).astype(np.float32) for i in range(2)}
    factors |= {f"layer.{i}.q.lora_B.weight": rng.normal(size=(5, 4)).astype(np.float32) for i in range(2)}
    save_file(factors, place / "adapter_model.safetensors")
