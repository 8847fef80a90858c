"""The nine tasks of GLUE: their columns, classes and official metrics, and how many held-out examples they have."""

from __future__ import annotations

from dataclasses import dataclass

from rmlora.config import DataConfig, RunConfig, Task
from rmlora.errors import ConfigError


@dataclass(frozen=True)
class GlueTask:
    """One task of GLUE.

    Attributes:
        texts: columns the model reads.
        labels: names of class 0, 1, ...; empty for STS-B, whose labels are numbers from 0 to 5.
        metrics: the official ones, of the names of `rmlora.tasks.metrics`; the first decides the best epoch.
        dev_examples: of the public held-out split, which all papers report; MNLI's matched one.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    dev_examples: int

    @property
    def task(self) -> Task:
        """Kind of task."""
        return "text-classification" if self.labels else "text-regression"

    @property
    def one_example(self) -> float | None:
        """Points of accuracy that one held-out example is worth; None where the metric is no share of examples."""
        return 100 / self.dev_examples if "accuracy" in self.metrics else None


_SENTENCES = ("sentence1", "sentence2")
GLUE: dict[str, GlueTask] = {
    "cola": GlueTask(("sentence",), ("unacceptable", "acceptable"), ("matthews",), 1043),
    "sst2": GlueTask(("sentence",), ("negative", "positive"), ("accuracy",), 872),
    "mrpc": GlueTask(_SENTENCES, ("not_equivalent", "equivalent"), ("accuracy", "f1"), 408),
    "stsb": GlueTask(_SENTENCES, (), ("pearson", "spearman"), 1500),
    "qqp": GlueTask(("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1"), 40430),
    "mnli": GlueTask(("premise", "hypothesis"), ("entailment", "neutral", "contradiction"), ("accuracy",), 9815),
    "qnli": GlueTask(("question", "sentence"), ("entailment", "not_entailment"), ("accuracy",), 5463),
    "rte": GlueTask(_SENTENCES, ("entailment", "not_entailment"), ("accuracy",), 277),
    "wnli": GlueTask(_SENTENCES, ("not_entailment", "entailment"), ("accuracy",), 71),
}
MISMATCHED = "validation_mismatched"  # MNLI's second held-out split: 9832 examples of other genres


def glue_name(data: DataConfig) -> str | None:
    """Return which GLUE task the data are, as `data.glue` or the name of the Hub data set says; None for none.

    Example:
        >>> glue_name(DataConfig(dataset="glue/rte")), glue_name(DataConfig(train="a.jsonl"))
        ('rte', None)
    """
    if data.glue is not None:
        return data.glue
    *owner, name = (data.dataset or "").strip("/").split("/")
    return name if name in GLUE and owner in (["glue"], ["nyu-mll", "glue"]) else None


def settle_glue(config: RunConfig) -> RunConfig:
    """Fill in what GLUE fixes: kind of task, columns, names of the classes, metric; what the user set stays.

    Args:
        config: of a run; not mutated, and returned as it is if the data are no GLUE task.

    Raises:
        ConfigError: the kind of task was set to another, or mismatched data are given for a task without.

    Example:
        >>> settled = settle_glue(RunConfig(model="m", data=DataConfig(glue="stsb", train="a", eval="b")))
        >>> settled.task, settled.training.metric, settled.data.text_pair
        ('text-regression', 'pearson', 'sentence2')
    """
    name = glue_name(config.data)
    if config.data.eval_mismatched is not None and name != "mnli":
        raise ConfigError("data.eval_mismatched is for MNLI, which has two held-out splits: set data.glue=mnli")
    if name is None:
        return config
    known, data = GLUE[name], config.data
    if "task" in config.model_fields_set and config.task != known.task:
        raise ConfigError(f"glue/{name} is {known.task}, but task is {config.task}: leave task out")
    found: dict[str, object] = {"glue": name}
    if data.text is None:
        found |= dict(zip(("text", "text_pair"), known.texts, strict=False))
    if data.label_names is None and known.labels:
        found["label_names"] = list(known.labels)
    metric = config.training.metric or known.metrics[0]
    return config.model_copy(
        update={
            "task": known.task,
            "data": data.model_copy(update=found),
            "training": config.training.model_copy(update={"metric": metric}),
        }
    )


def official(name: str, row: dict[str, float]) -> dict[str, float]:
    """Pick a task's official metrics out of an epoch's row; of MNLI both splits.

    Example:
        >>> official("mnli", {"eval_accuracy": 0.8, "mismatched_accuracy": 0.7, "eval_loss": 1.0})
        {'accuracy': 0.8, 'mismatched accuracy': 0.7}
    """
    found = {metric: row[f"eval_{metric}"] for metric in GLUE[name].metrics}
    if "mismatched_accuracy" in row:
        found["mismatched accuracy"] = row["mismatched_accuracy"]
    return found


def difference(name: str, held_out: int) -> str | None:
    """Say that the held-out examples are not the official ones, where their number tells.

    Example:
        >>> difference("rte", 277) is None, difference("rte", 50)
        (True, "not GLUE's own held-out split, which has 277 examples of rte")
    """
    dev = GLUE[name].dev_examples
    return None if held_out == dev else f"not GLUE's own held-out split, which has {dev} examples of {name}"
