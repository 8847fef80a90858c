"""A mixture of LoRA experts: a frozen model, frozen experts, and a gate per block that learns which of them to hear."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.errors import AdapterError, AttachError, MethodError, nearest
from rmlora.experts.adding import add_experts
from rmlora.experts.balance import balance_loss
from rmlora.experts.expert import Expert
from rmlora.experts.gate import Gate
from rmlora.experts.mixed_block import Mixing, Moment, adapted_layers, mix_block, rest
from rmlora.experts.resting import rest_frozen
from rmlora.instance_rows import find_blocks


class Mixture(nn.Module):
    """Made by `mix_experts` or `load_mixture`, and called as the model is.

    In training a loss that the model returns has `balance` times the balance loss added. `state_dict` holds what is
    learnt, gates and heads, and nothing that is frozen.

    Attributes:
        model: the base with the experts on it, its blocks mixing.
        gates: one per mixed block.
        experts: in the order of the gates' outputs.
        blocks: names of the mixed blocks.
        heads: names of modules that are trained with the gates.
        balance: weight of the balance loss.
    """

    def __init__(
        self,
        model: nn.Module,
        experts: Sequence[Expert],
        gates: Sequence[Gate],
        blocks: Sequence[str],
        heads: Sequence[str] = (),
        balance: float = 0.0,
    ) -> None:
        super().__init__()
        self.model = model
        self.gates = nn.ModuleList(gates)
        self.experts, self.blocks, self.heads = tuple(experts), tuple(blocks), tuple(heads)
        self.balance = balance
        self._moment = Moment(torch.ones(len(experts), dtype=torch.bool))
        self._usage: Tensor | None = None
        for i, (name, gate) in enumerate(zip(blocks, gates, strict=True)):
            block = model.get_submodule(name)
            layers = tuple(layer for _, layer in adapted_layers(block))
            rest(layers)
            mix_block(block, Mixing(i, layers, gate, len(experts), self._moment))
        model.requires_grad_(False)
        for head in heads:
            model.get_submodule(head).requires_grad_(True)
        rest_frozen(model)
        self.register_state_dict_post_hook(_learnt_only)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_post_hook(_frozen_is_there)  # type: ignore[no-untyped-call]

    @property
    def config(self) -> Any:
        """The model's own."""
        return getattr(self.model, "config", None)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return next(self.gates.parameters()).device

    @property
    def without(self) -> tuple[str, ...]:
        """Names of the experts that are masked; may be set, also by index.

        The gates of the others are divided by their sum. A masked expert is still computed: the gates read what all
        experts do. Setting raises MethodError for a name there is not, or if no expert is left.
        """
        keep = self._moment.keep.tolist()
        return tuple(expert.name for expert, kept in zip(self.experts, keep, strict=True) if not kept)

    @without.setter
    def without(self, names: Iterable[str | int]) -> None:
        keep = [True] * len(self.experts)
        for name in names:
            keep[self._index(name)] = False
        if not any(keep):
            raise MethodError("every expert is masked; leave at least one")
        self._moment.keep = torch.tensor(keep, device=self.device)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model; arguments and outputs are its own. `attention_mask` says which tokens the gates look at."""
        mask = kwargs.get("attention_mask")
        moment = self._moment
        moment.keep = moment.keep.to(self.device)
        moment.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None
        moment.gates.clear()
        outputs = self.model(*args, **kwargs)
        loss = getattr(outputs, "loss", None)
        if not self.training:
            seen = self.last_gates.detach().sum(1).cpu().double()
            self._usage = seen if self._usage is None else self._usage + seen
        elif self.balance and loss is not None:
            outputs["loss"] = loss + self.balance * balance_loss(list(moment.gates.values()))
        return outputs

    @property
    def temperatures(self) -> list[float]:
        """tau of each block's gate."""
        return [float(gate.temperature.detach()) for gate in self.gates if isinstance(gate, Gate)]

    @property
    def last_gates(self) -> Tensor:
        """What the gates said about the last batch, `(blocks, B, N)`."""
        gates = self._moment.gates
        return torch.stack([gates[i] for i in range(len(self.gates))])

    def take_usage(self) -> Tensor:
        """Return the mean gate of each block and expert, `(blocks, N)`, over what was evaluated since the last call.

        Raises:
            AttachError: nothing was.
        """
        total, self._usage = self._usage, None
        if total is None:
            raise AttachError("no batch was evaluated since the last call; call the mixture in evaluation mode first")
        return total / total.sum(-1, keepdim=True)

    def merge_and_unload(self) -> None:
        """Refuse: there is no one weight that a mixture is.

        Raises:
            AttachError: always.
        """
        raise AttachError(
            "a mixture does not merge: its gates depend on the input; use it as it is, or train mixture.combine=linear"
        )

    def _index(self, name: str | int) -> int:
        names = [expert.name for expert in self.experts]
        if isinstance(name, int) and 0 <= name < len(names):
            return name
        if name not in names:
            raise MethodError(f'no expert "{name}"{nearest(str(name), names)}; there are {", ".join(names)}')
        return names.index(str(name))


def mix_experts(
    model: nn.Module,
    experts: Sequence[Expert],
    *,
    heads: Sequence[str] = (),
    temperature: float = 1.0,
    balance: float = 0.0,
    width: int | None = None,
) -> Mixture:
    """Put experts on a model, with a gate per block that is uniform to begin with.

    MoLE, arXiv 2404.13628: out = F(x) + sum_i G_i E_i(x) in every block from the first that an expert adapts; see
    `Gate` for G and `rmlora.experts.mixed_block.MixedForward` for E.

    Args:
        model: the base, without adapters; changed in place, all of it frozen but the heads. Its blocks must be one
            list, as transformers' encoders and decoders have them.
        experts: from `open_experts`.
        heads: names of modules to be trained with the gates, such as "classifier".
        temperature: of the gates, at the start.
        balance: weight of the balance loss in training; 0 leaves it out.
        width: numbers per token of a block's output; None reads `hidden_size` off the model's configuration.

    Raises:
        AdapterError: an expert does not fit the model, or adapts something outside its blocks.
        AttachError: the model has no one list of blocks, or its width is not known.
        MethodError: temperature or balance is out of range.
    """
    if balance < 0:
        raise MethodError(f"the weight of the balance loss must be 0 or above, got {balance:g}")
    width = width or getattr(getattr(model, "config", None), "hidden_size", None)
    if not isinstance(width, int):
        raise AttachError("how wide the blocks' outputs are cannot be read off the model; give width=")
    raw = add_experts(model, experts).base_model.model
    vars(raw).pop("peft_config", None)
    names = _blocks_of(raw, experts)
    gates = [Gate(len(experts), width, temperature) for _ in names]
    if getattr(getattr(raw, "config", None), "use_cache", False):
        raw.config.use_cache = False
    return Mixture(raw, experts, gates, names, heads, balance)


def _blocks_of(model: nn.Module, experts: Sequence[Expert]) -> list[str]:
    """Name the blocks to be mixed, from the first that is adapted on."""
    layers = dict(adapted_layers(model))
    found = find_blocks(model, list(layers.values()))
    if found is None:
        raise AttachError("a mixture needs a model whose adapted modules lie in one list of blocks; this one has not")
    names = {id(module): name for name, module in model.named_modules()}
    blocks = [names[id(block)] for block in found.blocks]
    outside = next((name for name in layers if not any(name.startswith(f"{block}.") for block in blocks)), None)
    if outside is not None:
        own = next((e for e in experts if any(p.name == outside for p in e.pairs())), experts[0])
        raise AdapterError(
            f'expert "{own.path}" adapts "{outside}", which lies in no block, so that no gate could weigh it; '
            "use mixture.combine=linear"
        )
    return blocks


def _learnt_only(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
    learnt = {f"{prefix}{name}" for name, parameter in module.named_parameters() if parameter.requires_grad}
    for name in [name for name in state if name not in learnt]:
        del state[name]


def _frozen_is_there(module: nn.Module, found: Any) -> None:
    learnt = set(module.state_dict())
    found.missing_keys[:] = [name for name in found.missing_keys if name in learnt]
