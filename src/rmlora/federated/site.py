"""Where something of a run is computed: model, examples and their deal, the same at the server and at every client."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.adapting import add_adapter
from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.federated.averaging import State
from rmlora.federated.partition import deal_by_class
from rmlora.federated.turns import Part, part_of
from rmlora.modeling import Loaded
from rmlora.pairs import find_pairs
from rmlora.run.choice import choose_method, describe_links
from rmlora.run.encoding import encode_parts
from rmlora.run.plan import Described, check_device, count_parameters
from rmlora.run.sources import Sources
from rmlora.stacking import stack_pairs
from rmlora.tasks.data import TaskData
from rmlora.tasks.metrics import choose_metric


@dataclass(frozen=True, eq=False)
class Site(Described):
    """A run of scope federated, ready to train or to be evaluated.

    Attributes:
        model: a PEFT model without a method; every use begins by writing into it what it needs.
        processor: tokenizer or image processor.
        heads: modules trained whole.
        encoded: what the model reads of each part, "train" and "eval".
        deal: for each client the positions of its examples.
        initial: the trained tensors as training begins, on the CPU.
    """

    model: Any
    processor: Any
    heads: tuple[str, ...]
    encoded: Mapping[str, Any]
    deal: list[list[int]]
    initial: State

    @property
    def trained(self) -> dict[str, nn.Parameter]:
        """Everything some round may train, by name."""
        return {name: p for name, p in self.model.named_parameters() if name in self.initial}

    def names(self, parts: Iterable[Part]) -> list[str]:
        """Names of the trained tensors of some parts, in the model's order."""
        wanted = frozenset(parts)
        return [name for name in self.initial if part_of(name) in wanted]

    @torch.no_grad()
    def write(self, state: Mapping[str, Tensor]) -> None:
        """Give all trained tensors the values of a state; those it lacks become what they were at the start."""
        for name, parameter in self.trained.items():
            parameter.copy_(state.get(name, self.initial[name]))

    def read(self, names: Iterable[str]) -> State:
        """Return copies of some trained tensors, on the CPU."""
        now = self.trained
        return {name: now[name].detach().cpu().clone() for name in names}

    def fingerprint(self) -> str:
        """Hash all weights that training begins with: a site with another hash cannot take part."""
        digest = hashlib.sha256()
        for name, parameter in self.model.named_parameters():
            tensor = self.initial[name] if name in self.initial else parameter.detach().cpu()
            digest.update(name.encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def make_site(config: RunConfig, sources: Sources | None = None, *, own: bool = False) -> Site:
    """Read the data, deal it to the clients, load the model and adapt it.

    Args:
        config: from `complete_federated`.
        sources: where examples and model come from; None reads them from disk.
        own: the examples are one client's own, all of them, so nothing is dealt.

    Raises:
        RmloraError: whatever would stop the run later; nothing has been written.
    """
    method = choose_method(config)
    transform = method.build(**config.method_args)
    check_device(config)
    sources = sources or Sources()
    data = sources.data(config)
    outputs = len(data.classes) if data.classes is not None else 1
    metric = choose_metric(config.training.metric, config.task, outputs)
    deal = [list(range(len(data.train)))] * config.federated.clients if own else _deal(config, data)
    with torch.random.fork_rng():
        loaded = sources.model(config, data, _seed)
        encoded = encode_parts(config, data, loaded, sources)
        model = add_adapter(loaded, config)
    _refuse_running_means(loaded)
    transform.init(stack_pairs(find_pairs(model)))  # refuses what no client could begin
    counts = count_parameters(model, loaded.heads)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    model = model.to(device or "cpu")
    return Site(
        config=config,
        method=method,
        data=data,
        links=describe_links(transform),
        metric=metric,
        counts=counts,
        model=model,
        processor=loaded.processor,
        heads=loaded.heads,
        encoded=encoded,
        deal=deal,
        initial={name: p.detach().cpu().clone() for name, p in model.named_parameters() if p.requires_grad},
    )


def _deal(config: RunConfig, data: TaskData) -> list[list[int]]:
    told = config.federated
    seed = config.training.seed if told.split_seed is None else told.split_seed
    return deal_by_class(data.train.labels, told.clients, told.alpha, seed)


def _refuse_running_means(loaded: Loaded) -> None:
    """Refuse layers that learn by being run: nobody would average what they have seen."""
    for name, module in loaded.model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            raise ConfigError(
                f"scope=federated averages weights, and {name} also keeps running means of its own client; use a model "
                "without batch normalisation"
            )


def _seed(seed: int) -> None:
    torch.manual_seed(seed)
