"""Loading a model with what prepares its inputs, and naming the parts that are new."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rmlora.config import RunConfig, Task
from rmlora.errors import ConfigError
from rmlora.tasks.data import TaskData

_HEADS: dict[Task, str] = {
    "image-classification": "ImageClassification",
    "question-answering": "QuestionAnswering",
    "causal-lm": "CausalLM",
}


@dataclass(frozen=True)
class Loaded:
    """A model as it comes from its checkpoint, with a fresh head.

    Attributes:
        model: in float32, on the CPU.
        processor: its tokenizer, or its image processor.
        heads: names of the modules outside the encoder, such as pooler and classifier, and of every other
            module the checkpoint has no weights for. They are trained and saved whole.
        fresh: the names among `heads` that the checkpoint had no weights for.
        orphans: parameters the checkpoint lacks although it has the rest of their module.
    """

    model: Any
    processor: Any
    heads: tuple[str, ...]
    fresh: tuple[str, ...]
    orphans: tuple[str, ...]


def load_model(config: RunConfig, data: TaskData) -> Loaded:
    """Load the model of a run with a head for its task.

    The head is drawn from the global torch generator: seed it before. Weights are read as float32 whatever
    their stored dtype, and only from safetensors: a pickled checkpoint can run code.

    Args:
        config: of the run.
        data: says how many classes there are and what they are called.

    Raises:
        ConfigError: the model is missing, of another kind, damaged, or not in safetensors.
    """
    import transformers

    check_model_name(config.model)
    loader = getattr(transformers, loader_name(config.task))
    with _loading(config.model):
        model, report = loader.from_pretrained(
            config.model,
            dtype=torch.float32,
            use_safetensors=True,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            trust_remote_code=config.trust_remote_code,
            **label_settings(data),
        )
    missing = set(report["missing_keys"]) | {entry[0] for entry in report["mismatched_keys"]}
    fresh, orphans = new_modules(model, missing)
    # what lies outside a language model's blocks is part of what was pretrained
    outside = [] if config.task == "causal-lm" else _outside_encoder(model)
    heads = tuple(dict.fromkeys((*fresh, *outside)))
    processor = load_processor(config, model)
    return Loaded(model, processor, heads, fresh, orphans)


def check_model_name(name: str) -> None:
    """Refuse a folder that is not there or holds no model before anything tries the Hub.

    Raises:
        ConfigError: `name` is written like a path but no model lies there.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            inside = sorted(p.parent.name for p in path.glob("*/config.json"))
            hint = f'; did you mean "{path / inside[0]}"?' if inside else ""
            raise ConfigError(f'model folder "{name}" has no config.json{hint}')
        return
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1 or (os.sep != "/" and os.sep in name)
    if is_path or path.exists():
        raise ConfigError(f'no model folder "{name}"; give a local folder or a Hub id such as "owner/name"')


def load_processor(config: RunConfig, model: Any) -> Any:
    """Load the tokenizer or image processor of a model; a missing pad token becomes the end token.

    Raises:
        ConfigError: it cannot be loaded, there is no token to pad with, or none to end a generated text.
    """
    import transformers

    with _loading(config.model, "the preprocessing"):
        if config.task == "image-classification":
            # the name at the top of the package asks for torchvision, which most processors do without
            from transformers.models.auto.image_processing_auto import AutoImageProcessor

            return AutoImageProcessor.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
        tokenizer = transformers.AutoTokenizer.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    if config.task == "causal-lm" and tokenizer.eos_token_id is None:
        raise ConfigError(f'the tokenizer of "{config.model}" has no end token, so no completion could learn to end')
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise ConfigError(f'the tokenizer of "{config.model}" has neither a padding nor an end token')
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        raise ConfigError(
            f'the tokenizer of "{config.model}" knows {len(tokenizer)} tokens, its embedding has {rows} rows: '
            "they do not belong together"
        )
    return tokenizer


def new_modules(model: nn.Module, missing: set[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Find the topmost modules none of whose parameters came from the checkpoint.

    Args:
        model: as loaded.
        missing: names of parameters the checkpoint lacks.

    Returns:
        Names of the modules, and of missing parameters that lie in no such module.

    Example:
        >>> from collections import OrderedDict
        >>> model = nn.Sequential(OrderedDict(body=nn.Linear(2, 2), head=nn.Sequential(nn.Linear(2, 1))))
        >>> new_modules(model, {"head.0.weight", "head.0.bias", "body.bias"})
        (('head',), ('body.bias',))
    """
    names = {name for name, _ in model.named_parameters()}
    missing = missing & names
    found: list[str] = []
    for name, module in model.named_modules():
        held = {f"{name}.{p}" for p, _ in module.named_parameters()}
        inside = any(name.startswith(f"{top}.") for top in found)
        if name and held and held <= missing and not inside:
            found.append(name)
    covered = tuple(f"{top}." for top in found)
    return tuple(found), tuple(sorted(p for p in missing if not p.startswith(covered or ("\0",))))


def _outside_encoder(model: Any) -> list[str]:
    encoder = model.base_model_prefix
    if not hasattr(model, encoder):
        return []
    return [
        name
        for name, module in model.named_children()
        if name != encoder and next(module.parameters(), None) is not None
    ]


def loader_name(task: Task) -> str:
    """Name the class of transformers that loads a model with a head for a task.

    Example:
        >>> loader_name("text-regression")
        'AutoModelForSequenceClassification'
    """
    return f"AutoModelFor{_HEADS.get(task, 'SequenceClassification')}"


def label_settings(data: TaskData) -> dict[str, Any]:
    """Say in the words of a model's configuration what its head gives."""
    if data.task == "question-answering":
        return {"num_labels": 2}  # a logit to start the answer, one to end it
    if data.task == "causal-lm":
        return {}
    if data.classes is None:
        return {"num_labels": 1, "problem_type": "regression"}
    names = dict(enumerate(data.classes.names))
    return {
        "num_labels": len(names),
        "id2label": names,
        "label2id": {name: i for i, name in names.items()},
        "problem_type": "single_label_classification",
    }


@contextlib.contextmanager
def _loading(name: str, what: str = "the model") -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise ConfigError(f'the weights of "{name}" are damaged: {error}') from error
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        if isinstance(error, ConfigError):
            raise
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = " ".join(lines)[:300] or type(error).__name__
        raise ConfigError(f'cannot load {what} of "{name}": {reason}') from error
