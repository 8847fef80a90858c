"""How much a study will train and how long it may take: counts from shapes, times from the machine's own speed."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rmlora.reproduce.presets import DEBERTA, GPT2, VIT

STEP_SECONDS = 2e-3
"""Of one step of a classification layer on cached features: overheads, not arithmetic."""

UTILISATION = 0.4
"""Share of a plain matrix product's speed that a transformer reaches."""


@dataclass(frozen=True)
class Shape:
    """The size of a transformer.

    Attributes:
        hidden: width.
        layers: number of blocks.
        intermediate: width inside the feed-forward part.
        fused: whether query, key and value are one projection, as in GPT-2.
        has_pooler: whether a classifier comes with a new pooler, as in DeBERTa.
    """

    hidden: int
    layers: int
    intermediate: int
    fused: bool = False
    has_pooler: bool = False

    @property
    def body(self) -> int:
        """Parameters of the blocks' projections: what each token is multiplied with."""
        return self.layers * (4 * self.hidden**2 + 2 * self.hidden * self.intermediate)

    def adapter(self, r: int) -> int:
        """Count the entries of A and B on every projection of every block.

        Example:
            >>> Shape(768, 12, 3072).adapter(1), Shape(768, 12, 3072, fused=True).adapter(1)
            (165888, 147456)
        """
        attention = (4 + 2) * self.hidden if self.fused else 4 * 2 * self.hidden
        return r * self.layers * (attention + 2 * (self.hidden + self.intermediate))

    @property
    def modules(self) -> int:
        """Number of projections, each of which can be adapted."""
        return self.layers * (4 if self.fused else 6)

    def head(self, outputs: int) -> int:
        """Count the entries of a new head.

        Example:
            >>> Shape(768, 12, 3072, has_pooler=True).head(2)
            592130
        """
        pooler = self.hidden * (self.hidden + 1) if self.has_pooler else 0
        return pooler + outputs * (self.hidden + 1)


@dataclass(frozen=True)
class Size:
    """A data set: examples to train on and to evaluate on, tokens of each as padded batches see them, outputs."""

    train: int
    eval: int
    tokens: int
    outputs: int = 2


_BASE = (768, 12, 3072)
SHAPES = {
    DEBERTA: Shape(*_BASE, has_pooler=True),
    GPT2: Shape(*_BASE, fused=True),
    VIT: Shape(*_BASE),
}
SIZES = {
    "cola": Size(8551, 1043, 16),
    "stsb": Size(5749, 1500, 48, 1),
    "qnli": Size(104743, 5463, 96),
    "mnli": Size(392702, 9815, 64, 3),
    "wnli": Size(635, 71, 64),
    "rte": Size(2490, 277, 112),
    "mrpc": Size(3668, 408, 72),
    "qqp": Size(363846, 40430, 48),
    "sst2": Size(67349, 872, 32),
    "squad": Size(88524, 10784, 384),
    "squad local": Size(4200, 3000, 384),
    "cifar100": Size(50000, 10000, 197, 100),
    "cifar100 local": Size(10000, 2000, 197, 100),
    "food101": Size(75750, 25250, 197, 101),
    "banking77": Size(10003, 3080, 20, 77),
}


def shape_of(model: str) -> Shape | None:
    """Return the size of one of the paper's models, or read it off a local folder; None if it is not known."""
    if model in SHAPES:
        return SHAPES[model]
    try:
        told: dict[str, Any] = json.loads((Path(model).expanduser() / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    hidden, layers = told.get("hidden_size", told.get("n_embd")), told.get("num_hidden_layers", told.get("n_layer"))
    if not isinstance(hidden, int) or not isinstance(layers, int):
        return None
    inside = told.get("intermediate_size") or told.get("n_inner") or 4 * hidden
    kind = str(told.get("model_type"))
    return Shape(hidden, layers, int(inside), fused=kind == "gpt2", has_pooler=kind.startswith("deberta"))


def count_trainable(shape: Shape, outputs: int, r: int | None, mode: str, method: str = "lora") -> int | None:
    """Count what is trained, head included; None where that is the whole model.

    Args:
        shape: of the model.
        outputs: of the head.
        r: directions; None without an adapter.
        mode: "whole" or "head"; in the latter the head's weight is frozen under an adapter, its bias trained.
        method: SoRA trains a gate on every direction, AdaLoRA a singular value, and begins with 1.5 times r.
    """
    if mode == "head":
        return outputs + (shape.hidden * outputs if r is None else r * (shape.hidden + outputs))
    if r is None:
        return None
    r = math.ceil(1.5 * r) if method == "adalora" else r
    between = r * shape.modules if method in ("sora", "adalora") else 0
    return shape.adapter(r) + between + shape.head(outputs)


def measure_speed(seconds: float = 0.3) -> float:
    """Return the floating-point operations per second of a matrix product on this machine's best device."""
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    size = 1024 if device is None else 8192
    x = torch.ones(size, size, device=device or "cpu")
    float((x @ x)[0, 0])
    done, begun = 0, time.perf_counter()
    while time.perf_counter() - begun < seconds:
        float((x @ x)[0, 0])
        done += 1
    return done * 2 * size**3 / (time.perf_counter() - begun)


def estimate_seconds(shape: Shape, size: Size, training: dict[str, Any], mode: str, speed: float, full: bool) -> float:
    """Guess how long one run takes, features not counted, from operations alone: right to a factor of three or so.

    Args:
        shape: of the model.
        size: of the data.
        training: the study's training section, with epochs and batch_size.
        mode: "whole" or "head".
        speed: from `measure_speed`.
        full: whether every weight gets a gradient: then backward costs twice a forward, else once.
    """
    epochs = int(training.get("epochs", 3))
    if mode == "head":
        return epochs * (size.train / int(training.get("batch_size", 32))) * STEP_SECONDS
    forwards = epochs * (size.train * (3 if full else 2) + size.eval + min(size.train, 1000))
    return forwards * size.tokens * 2 * shape.body / (speed * UTILISATION)


def feature_seconds(shape: Shape, size: Size, speed: float) -> float:
    """Guess how long the features of a data set take, once for all runs."""
    return (size.train + size.eval) * size.tokens * 2 * shape.body / (speed * UTILISATION)
