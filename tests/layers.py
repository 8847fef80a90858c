"""The layers of the building from the ground up, and what each may see; `test_architecture.py` holds the code to it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """Modules (or packages) of the same height, and the layers below that they may see."""

    modules: tuple[str, ...]
    sees: tuple[str, ...]


LIBRARY = (
    "errors",
    "ground",
    "contract",
    "links",
    "methods",
    "kernels",
    "engine",
    "attach",
    "axes",
    "sugar",
    "experts",
)
LAYERS: dict[str, Layer] = {
    "errors": Layer(("errors",), ()),
    "ground": Layer(
        ("files", "schedules", "draws", "leaves", "shards", "pairs", "stacking", "linear_ranks"), ("errors",)
    ),
    "contract": Layer(("transform", "combine", "restrict"), ("errors", "ground")),
    "links": Layer(("transforms",), ("errors", "ground", "contract")),
    "methods": Layer(("methods",), ("errors", "ground", "contract", "links")),
    "kernels": Layer(("kernels",), ("errors",)),
    "engine": Layer(
        (
            "optimizers",
            "step_hooks",
            "gates",
            "triplet_gates",
            "kept_rows",
            "siblings",
            "fast_layers",
            "sampled_layers",
            "live",
            "active",
            "one_step",
            "binding",
            "bound_layers",
            "saving",
        ),
        ("errors", "ground", "contract", "kernels"),
    ),
    "analysis": Layer(("analysis",), ("errors", "ground")),
    "attach": Layer(
        (
            "attach",
            "averages",
            "ensemble",
            "handle",
            "instance_passes",
            "instance_rows",
            "leading_export",
            "moved_base",
            "prune_export",
            "replicate",
            "sampling",
            "shared_pass",
            "staged_saving",
            "triplets",
            "truncated_export",
            "vectors",
        ),
        ("errors", "ground", "contract", "engine", "analysis"),
    ),
    "axes": Layer(("axes",), ("errors", "ground", "contract", "links", "engine")),
    "sugar": Layer(
        ("peft_config", "two_parts"), ("errors", "ground", "contract", "links", "methods", "engine", "attach")
    ),
    "experts": Layer(("experts",), ("errors", "ground", "analysis", "attach")),
    "package": Layer(("",), LIBRARY),
    "tasks": Layer(("sections", "tasks", "config", "config_source"), ("errors", "ground")),
    "models": Layer(("modeling", "adapting"), ("errors", "ground", "analysis", "tasks")),
    "train": Layer(("run", "train"), (*LIBRARY, "package", "analysis", "tasks", "models")),
    "heads": Layer(("heads",), (*LIBRARY, "package", "analysis", "tasks", "models", "train")),
    "derivative_free": Layer(("derivative_free",), ("errors", "ground", "tasks", "train", "heads")),
    "mixture": Layer(("mixture",), ("errors", "ground", "experts", "tasks", "models", "train")),
    "continual": Layer(("continual",), (*LIBRARY, "package", "analysis", "tasks", "models", "train")),
    "federated": Layer(("federated",), (*LIBRARY, "package", "analysis", "tasks", "models", "train", "heads")),
    "scopes": Layer(
        ("scopes",),
        ("errors", "ground", "tasks", "train", "heads", "mixture", "continual", "federated", "derivative_free"),
    ),
    "replay": Layer(("replay",), ("errors", "ground", "tasks", "train", "heads", "scopes")),
    "compare": Layer(("compare",), (*LIBRARY, "package", "analysis", "tasks", "models", "train", "heads", "scopes")),
    "report": Layer(("report",), ("errors", "ground", "analysis", "compare")),
    "reproduce": Layer(("reproduce",), ("errors", "ground", "methods", "tasks", "train", "heads", "compare", "report")),
    "verify": Layer(("verify",), ("errors", "ground", "attach", "analysis", "tasks", "models", "train")),
    "demo": Layer(("demo",), (*LIBRARY, "package", "analysis", "tasks", "models", "train", "compare")),
    "doctor": Layer(("doctor",), (*LIBRARY, "package", "analysis", "tasks", "models", "train")),
    "bench": Layer(("bench",), (*LIBRARY, "tasks", "models", "train")),
    "cli": Layer(
        ("cli", "__main__", "commands"),
        (
            *LIBRARY,
            "package",
            "analysis",
            "tasks",
            "models",
            "train",
            "heads",
            "mixture",
            "continual",
            "federated",
            "derivative_free",
            "scopes",
            "replay",
            "compare",
            "report",
            "reproduce",
            "verify",
            "demo",
            "doctor",
            "bench",
        ),
    ),
}
