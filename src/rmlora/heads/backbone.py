"""Running a frozen backbone over examples: what comes out is what a classification layer reads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rmlora.config import RunConfig
from rmlora.errors import ConfigError
from rmlora.modeling import Loaded, load_model
from rmlora.tasks.data import Examples, TaskData
from rmlora.tasks.encode import ImageExamples, collate_images, encode_texts, pad_texts

BATCH_SIZE = 64
"""Examples per forward pass. Fixed, because padding and batching move the last bits of a feature."""

Forward = Callable[[dict[str, Tensor]], Tensor]


def compute_features(config: RunConfig, data: TaskData, parts: Sequence[Examples]) -> tuple[list[Tensor], int]:
    """Load the model and compute the features of some examples, dropout off.

    Args:
        config: of the run; `head.features` says what a feature is.
        data: for the model's number of classes.
        parts: examples of the same kind.

    Returns:
        For each part float32 `(n, d)` on the CPU, in the order of its examples; and the number of the model's
        parameters without its classification layer.

    Raises:
        ConfigError: the model cannot be loaded, or has no such feature.
    """
    with torch.random.fork_rng():
        loaded = load_model(config, data)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    model = loaded.model.to(device or "cpu").eval()
    forward = choose_forward(loaded, config)
    layer = last_linear(loaded)
    parameters = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in layer.parameters())
    return [_run(forward, part, loaded, config) for part in parts], parameters


def choose_forward(loaded: Loaded, config: RunConfig) -> Forward:
    """Return the function from a batch of inputs to its features.

    Args:
        loaded: the model, in evaluation mode.
        config: of the run. "auto" is the classifier's input for images, where the way from the encoder to the
            classifier has no weights of its own, and the mean over tokens for texts, whose poolers are new or were
            trained for something else.

    Raises:
        ConfigError: the way to the classifier holds weights the checkpoint does not have.
    """
    is_image = config.task == "image-classification"
    wanted = config.head.features
    if wanted == "mean" or (wanted == "auto" and not is_image):
        if is_image:
            raise ConfigError("head.features=mean is for texts; images have what the classifier reads (classifier)")
        return lambda batch: mean_of_tokens(loaded.model.base_model, batch)
    layer = last_linear(loaded)
    names = {module: name for name, module in loaded.model.named_modules()}
    lacking = [name for name in (*loaded.fresh, *loaded.orphans) if not f"{names[layer]}.".startswith(f"{name}.")]
    lacking += [f"{top}.{n}" for top in loaded.fresh for n in _beside(loaded.model.get_submodule(top), layer)]
    if lacking:
        raise ConfigError(
            f'head.features=classifier: "{config.model}" has no weights for {lacking[0]}, so the features would be '
            "a random map's; use head.features=mean"
        )
    return lambda batch: input_of(layer, loaded.model, batch)


def last_linear(loaded: Loaded) -> nn.Linear:
    """Return the classification layer: the last linear layer that turns features into the task's outputs.

    Raises:
        ConfigError: the model ends in something else.
    """
    outputs = loaded.model.config.num_labels
    heads = [loaded.model.get_submodule(name) for name in loaded.heads]
    found = [m for h in heads for m in h.modules() if isinstance(m, nn.Linear) and m.out_features == outputs]
    if not found:
        raise ConfigError(f"{type(loaded.model).__name__} has no linear layer with {outputs} outputs at its end")
    return found[-1]


def mean_of_tokens(encoder: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Average an encoder's last states over the tokens that are not padding.

    Args:
        encoder: a transformers model without a head.
        batch: its inputs, with `attention_mask` `(n, length)`; all tokens count where there is none.

    Returns:
        `(n, d)`.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    states: Tensor = encoder(**inputs).last_hidden_state
    mask = inputs.get("attention_mask", states.new_ones(states.shape[:2])).to(states.dtype).unsqueeze(-1)
    return (states * mask).sum(1) / mask.sum(1).clamp(min=1)


def input_of(layer: nn.Linear, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Run a model and return what one of its layers was given, `(n, d)`."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    try:
        model(**{name: value for name, value in batch.items() if name != "labels"})
    finally:
        hook.remove()
    return seen[-1].flatten(1)


def _beside(top: nn.Module, layer: nn.Linear) -> list[str]:
    """Names of a new module's parameters that are not the layer's."""
    own = set(layer.parameters())
    return [name for name, parameter in top.named_parameters() if parameter not in own]


@torch.no_grad()
def _run(forward: Forward, examples: Examples, loaded: Loaded, config: RunConfig) -> Tensor:
    device = next(loaded.model.parameters()).device
    rows: Any
    if config.task == "image-classification":
        channels = getattr(loaded.model.config, "num_channels", 3)
        rows, collate = ImageExamples(examples, "L" if channels == 1 else "RGB"), collate_images(loaded.processor)
        order = list(range(len(examples)))
    else:
        rows = encode_texts(examples, loaded.processor, config.data.max_length)
        collate = pad_texts(loaded.processor)
        # neighbours of one length need no padding: several times faster on short texts
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]["input_ids"]))
    found = []
    for start in range(0, len(order), BATCH_SIZE):
        batch = collate([rows[i] for i in order[start : start + BATCH_SIZE]])
        found.append(forward({name: value.to(device) for name, value in batch.items()}).float().cpu())
    features = torch.cat(found)
    return features[torch.tensor(order).argsort()]
