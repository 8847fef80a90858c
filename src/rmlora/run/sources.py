"""Where a run gets its examples, model and encodings: read anew, or kept between the runs of one process."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar

import torch

from rmlora.config import RunConfig
from rmlora.modeling import Loaded, load_model
from rmlora.tasks.data import TaskData, load_data

T = TypeVar("T")


class Sources:
    """Read everything from disk each time it is asked for."""

    def data(self, config: RunConfig) -> TaskData:
        """Return the examples of a run; they are not to be changed."""
        return load_data(config.data, config.task, config.training.seed)

    def model(self, config: RunConfig, data: TaskData, seed: Callable[[int], None]) -> Loaded:
        """Return a model for one run to change as it likes, its head drawn with the run's seed."""
        seed(config.training.seed)
        return load_model(config, data)

    def encoded(self, config: RunConfig, part: str, encode: Callable[[], Any]) -> Any:
        """Return what `encode` makes of one part of the data."""
        return encode()


class KeptSources(Sources):
    """Keep what was read, for runs that differ in method, rank, learning rate or seed.

    The numbers are those of `Sources`: a kept model is copied, and its head is drawn again with the seed of the run.
    Where that would not give the same head as loading does, which is tried out on the first load, the model is loaded
    each time. Files are taken not to change while the process lives.

    Args:
        size: how many data sets, and how many encoded parts, are kept; the least recently used goes first. Of models
            only one is kept.
    """

    def __init__(self, size: int = 8) -> None:
        self.size = size
        self.datas: OrderedDict[str, TaskData] = OrderedDict()
        self.parts: OrderedDict[str, Any] = OrderedDict()
        self.models: OrderedDict[str, Loaded | None] = OrderedDict()

    def data(self, config: RunConfig) -> TaskData:
        """Return the examples of a run; they are not to be changed."""
        return _keep(self.datas, _data_key(config), self.size, lambda: super(KeptSources, self).data(config))

    def encoded(self, config: RunConfig, part: str, encode: Callable[[], Any]) -> Any:
        """Return what `encode` makes of one part of the data, made once; it is not to be changed."""
        key = json.dumps([config.model, part, _data_key(config)])
        return _keep(self.parts, key, 2 * self.size, encode)

    def model(self, config: RunConfig, data: TaskData, seed: Callable[[int], None]) -> Loaded:
        """Return a copy of the model with a head drawn with the run's seed."""
        classes = None if data.classes is None else data.classes.names
        key = json.dumps([config.model, config.task, config.trust_remote_code, classes])
        kept = self.models.get(key)
        if kept is not None:
            loaded = _copy(kept)
            seed(config.training.seed)
            draw_heads(loaded)
            return loaded
        loaded = super().model(config, data, seed)
        if key not in self.models:
            self.models.clear()
            self.models[key] = _if_head_can_be_drawn_again(loaded, config.training.seed, seed)
        return loaded


def draw_heads(loaded: Loaded) -> None:
    """Draw the modules the checkpoint has no weights for anew, from the global generator, as loading does.

    Args:
        loaded: its model is changed in place.
    """
    for name in loaded.fresh:
        loaded.model.get_submodule(name).apply(_draw(loaded.model))


def _draw(model: Any) -> Callable[[Any], None]:
    def draw(module: Any) -> None:
        # transformers marks what has been drawn, and passes over it
        for holder in (module, *module.parameters(recurse=False)):
            if hasattr(holder, "_is_hf_initialized"):
                del holder._is_hf_initialized
        model._init_weights(module)

    return draw


def _if_head_can_be_drawn_again(loaded: Loaded, number: int, seed: Callable[[int], None]) -> Loaded | None:
    """Return a copy to keep if drawing its head anew gives the loaded one, generator included; the latter stays."""
    if loaded.orphans:
        return None
    after = torch.get_rng_state()
    kept = _copy(loaded)
    seed(number)
    draw_heads(kept)
    same = torch.equal(torch.get_rng_state(), after)
    own = loaded.model.state_dict()
    same = same and all(torch.equal(own[name], tensor) for name, tensor in kept.model.state_dict().items())
    torch.set_rng_state(after)
    return kept if same else None


def _copy(loaded: Loaded) -> Loaded:
    return replace(loaded, model=copy.deepcopy(loaded.model))


def _data_key(config: RunConfig) -> str:
    sizes = (config.data.train_examples, config.data.train_per_class, config.data.eval_examples)
    samples = any(size is not None for size in sizes)
    seed = config.training.seed if samples and config.data.sample_seed is None else None
    return json.dumps([config.task, config.data.model_dump(mode="json"), config.trust_remote_code, seed])


def _keep(kept: OrderedDict[str, T], key: str, size: int, make: Callable[[], T]) -> T:
    if key not in kept:
        kept[key] = make()
    kept.move_to_end(key)
    while len(kept) > size:
        kept.popitem(last=False)
    return kept[key]
