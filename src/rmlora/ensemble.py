"""The test-time ensemble: the average of several instances of a model, each with its own dropout masks."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from rmlora.averages import Average, RunningAverage, check_average
from rmlora.binding import Binding
from rmlora.bound_layers import bindings_of
from rmlora.errors import AttachError, MethodError
from rmlora.instance_passes import InstancePasses, call
from rmlora.instance_rows import check_batch, fields_of
from rmlora.sampling import Draws, evaluating

_TARGETS = ("labels", "start_positions", "end_positions", "next_sentence_label")
_NOT_AVERAGED = ("output_attentions", "output_hidden_states", "past_key_values", "use_cache")


class Ensemble(nn.Module):
    r"""Average what a model answers under several draws of its method's dropout.

    A method that drops parts of A and B at random, as LoRA Dropout does, trains many models in one; at inference the
    mean of several of them, `1/N sum_i M(x; W0 + s B_i A_i)`, makes smaller errors than one where they differ. All
    instances are computed in one pass over a stacked batch, and what comes before the first block with an adapted
    module is computed once. A method that draws nothing is answered by one plain pass.

    The model stays as it is: the masks act while the ensemble runs, and no longer. It predicts, without gradient and
    in evaluation mode.

    Args:
        model: with a method attached (`rmlora.attach`).
        n: instances N, >= 1. The cost grows with it, by the share of the model that is not computed once.
        seed: of the masks. The same seed gives the same instances for every batch, on every machine.
        average: "logits" averages what the model returns, which is what the source says and is right for regressions
            too. "probabilities" averages the distributions the logits stand for and returns their logarithm as logits,
            so that a softmax gives the mean (of a multi-label head, so that a sigmoid does).
        chunk: instances computed at a time, >= 1; memory grows with it. None computes all at once. What is shared is
            computed once per chunk.
        step: optimizer step that the draws stand for; None is the model's own. With it a model that was loaded gives
            the instances it gave when it was trained.

    Raises:
        MethodError: n or chunk is below 1, or there is no such average.
        AttachError: no method is attached to the model.

    Example:
        >>> from peft import LoraConfig, get_peft_model
        >>> import rmlora
        >>> base = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> model = get_peft_model(base, LoraConfig(r=4, target_modules=["0"]))
        >>> handle = rmlora.attach(model, rmlora.lora())
        >>> x = torch.ones(3, 8)
        >>> torch.equal(Ensemble(model, n=4)(x), model.eval()(x))
        True

    Source:
        LoRA Dropout, arXiv:2404.09610, the test-time ensemble. Deviations: all instances in one pass; what is the
        same for all is computed once; `average="probabilities"`.
    """

    def __init__(
        self,
        model: nn.Module,
        n: int = 8,
        seed: int = 0,
        *,
        average: str = "logits",
        chunk: int | None = None,
        step: int | None = None,
    ) -> None:
        super().__init__()
        for name, value in (("n", n), ("chunk", chunk)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise MethodError(f"an ensemble needs {name} of at least 1, got {value!r}")
        self.model = model
        self.n = n
        self.seed = seed
        self.average: Average = check_average(average)
        self.chunk = chunk
        self._bindings = _bindings(model)
        self._passes = InstancePasses(model, self._bindings, Draws(seed, step))
        self.training = False

    @property
    def config(self) -> Any:
        """The model's configuration."""
        return self.model.config

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return next(self.model.parameters()).device

    @property
    def draws(self) -> bool:
        """Whether the method gives different instances; without, one plain pass is the ensemble."""
        return any(binding.method.samples for binding in self._bindings)

    @property
    def path(self) -> str:
        """How instances were last computed, and why not in a cheaper way; `docs/ensemble.md` lists the ways."""
        return self._passes.path if self.draws else "plain: the method draws nothing"

    def extra_repr(self) -> str:
        """Describe the ensemble."""
        return f"n={self.n}, seed={self.seed}, average={self.average!r}, chunk={self.chunk}"

    def train(self, mode: bool = True) -> Ensemble:
        """Stay in evaluation mode.

        Raises:
            MethodError: training mode was asked for.
        """
        if mode:
            raise MethodError("an ensemble predicts; train the model inside it (`ensemble.model`)")
        self.model.eval()
        return self

    def generate(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse to generate.

        Raises:
            MethodError: always.
        """
        raise MethodError(
            "an ensemble does not generate: every token would need the average of all instances, each with its own "
            "cache; generate with the model inside it (`ensemble.model`), or score texts with forward"
        )

    @torch.no_grad()
    def forward(self, *args: Any, **inputs: Any) -> Any:
        """Return the average over the instances, in what the model itself returns.

        Args:
            args: as the model takes them.
            inputs: likewise; all tensors begin with the batch. No labels: the ensemble gives no loss.

        Returns:
            The model's own kind of output, with averaged `logits` (or `start_logits` and `end_logits`, ...) and
            without what cannot be averaged, such as a cache; of a model that returns a tensor, a tensor.

        Raises:
            MethodError: labels, a cache, attentions or hidden states were asked for; probabilities of a regression;
                an input that cannot be stacked.
        """
        given = dict(enumerate(args)) | {name: value for name, value in inputs.items() if value is not None}
        _check_inputs(given)
        if _takes_cache(self.model):
            given["use_cache"] = False
        check_batch(given)
        with evaluating(self.model):
            if not self.draws:
                return self._join([(1, call(self.model, given))])
            step = self.chunk or self.n
            chunks = [(start, min(step, self.n - start)) for start in range(0, self.n, step)]
            return self._join((count, self._passes.run(given, start, count)) for start, count in chunks)

    def _join(self, chunks: Any) -> Any:
        means: dict[str, RunningAverage] = {}
        outputs: Any = None
        for count, outputs in chunks:
            for name, value in fields_of(outputs).items():
                average = self.average if name.endswith("logits") or isinstance(outputs, Tensor) else "logits"
                if average == "probabilities" and value.shape[-1] < 2 and not self._is_multilabel:
                    raise MethodError(
                        f'average="probabilities" needs several classes, and {name} has one column, as a '
                        'regression has; use average="logits"'
                    )
                mean = means.setdefault(name, RunningAverage(average, self._is_multilabel))
                mean.add(value.view(count, -1, *value.shape[1:]))
        if isinstance(outputs, Tensor):
            return means["logits"].finish()
        return type(outputs)(**{name: mean.finish() for name, mean in means.items()})

    @property
    def _is_multilabel(self) -> bool:
        config = getattr(self.model, "config", None)
        return getattr(config, "problem_type", None) == "multi_label_classification"


def _bindings(model: nn.Module) -> list[Binding]:
    found = {id(one): one for module in model.modules() for one in bindings_of(module).values()}
    if not found:
        raise AttachError(
            "an ensemble averages what a method's dropout draws, and no method is attached to this model; "
            "call rmlora.attach(model, method) first"
        )
    return list(found.values())


def _check_inputs(given: Mapping[Any, Any]) -> None:
    for name in _TARGETS:
        if name in given:
            raise MethodError(f"an ensemble gives no loss, so leave out {name!r}, and compute a loss from its outputs")
    for name in _NOT_AVERAGED:
        if given.get(name):
            raise MethodError(f"an ensemble has no {name.removeprefix('output_')} to return; leave out {name!r}")
    if given.get("return_dict") is False:
        raise MethodError("an ensemble returns the model's named outputs; leave out return_dict=False")


def _takes_cache(model: nn.Module) -> bool:
    """Whether the model fills a cache of keys and values unless it is told not to."""
    base: Any = model
    if hasattr(base, "get_base_model"):
        base = base.get_base_model()
    is_on = bool(getattr(getattr(base, "config", None), "use_cache", False))
    return is_on and "use_cache" in inspect.signature(base.forward).parameters
