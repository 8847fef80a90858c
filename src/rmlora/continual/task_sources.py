"""What one task's training is given: its own examples, and those held out of every class seen so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import Subset

from rmlora.config import RunConfig
from rmlora.continual.partition import Tasks, pick_classes
from rmlora.modeling import Loaded
from rmlora.run.encoding import encode
from rmlora.run.sources import Sources
from rmlora.tasks.data import Examples, TaskData


class TaskSources(Sources):
    """The model as it is, and of the data what belongs to some tasks.

    Nothing is read or encoded twice if the sources behind it keep things.

    Args:
        behind: where model and data come from.
        config: of the whole run, by whose seed examples are sampled.
        learn: tasks whose training examples are given.
        measure: tasks whose held-out examples are given.
    """

    def __init__(self, behind: Sources, config: RunConfig, learn: Tasks, measure: Tasks) -> None:
        self.behind = behind
        self.config = config
        self.whole = behind.data(config)
        self.chosen = {
            "train": pick_classes(self.whole.train, _flat(learn)),
            "eval": pick_classes(self.whole.eval, _flat(measure)),
        }
        self.loaded: Loaded | None = None

    def data(self, config: RunConfig) -> TaskData:
        """Return the tasks' part of the examples; classes are those of the whole."""
        train, held_out = (_take(getattr(self.whole, part), self.chosen[part]) for part in ("train", "eval"))
        return replace(self.whole, train=train, eval=held_out)

    def model(self, config: RunConfig, data: TaskData, seed: Callable[[int], None]) -> Loaded:
        """Return a model with an output for every class of the whole."""
        self.loaded = self.behind.model(config, data, seed)
        return self.loaded

    def encoded(self, config: RunConfig, part: str, encode_part: Callable[[], Any]) -> Any:
        """Return the tasks' part of the encoded examples."""
        loaded = self.loaded
        assert loaded is not None
        examples: Examples = getattr(self.whole, part)
        whole = self.behind.encoded(self.config, part, lambda: encode(self.config, examples, loaded))
        chosen = self.chosen[part]
        return [whole[i] for i in chosen] if isinstance(whole, list) else Subset(whole, chosen)


def _flat(tasks: Tasks) -> list[int]:
    return [c for task in tasks for c in task]


def _take(examples: Examples, chosen: Sequence[int]) -> Examples:
    inputs = tuple([column[i] for i in chosen] for column in examples.inputs)
    return Examples(inputs, [examples.labels[i] for i in chosen])
