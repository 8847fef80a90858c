"""What is measured on: four models by their geometry alone, or the configuration in a folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rmlora.errors import ConfigError, nearest

Kind = Literal["sequences", "images", "language"]

_LENGTH = 64
_BATCH = 8


@dataclass(frozen=True)
class Subject:
    """A model by its geometry, and the batch it is measured with.

    Attributes:
        name: as the user wrote it.
        kind: what it reads and which head it has.
        batch: examples a step, unless the user says otherwise.
        length: tokens of a text, unless the user says otherwise; None for images.
        model_type: transformers' name of the architecture.
        geometry: what differs from the architecture's default configuration.
        folder: where the configuration lies, instead of `model_type` and `geometry`.
    """

    name: str
    kind: Kind
    batch: int = _BATCH
    length: int | None = _LENGTH
    model_type: str = ""
    geometry: dict[str, Any] = field(default_factory=dict)
    folder: Path | None = None

    def config(self) -> Any:
        """Return transformers' configuration, newly made."""
        import transformers

        if self.folder is not None:
            return read_folder(self.folder)
        return transformers.AutoConfig.for_model(self.model_type, **self.geometry)


# A frozen embedding costs what its rows cost to look up, so DeBERTa's 128,100 rows are not kept.
_DEBERTA_V3_BASE = {
    "vocab_size": 8192,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": "p2c|c2p",
    "max_relative_positions": -1,
    "position_biased_input": False,
    "type_vocab_size": 0,
    "layer_norm_eps": 1e-7,
}
_MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}

SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("minilm", "sequences", batch=32, length=64, model_type="bert", geometry=_MINILM),
        Subject("vit-b16", "images", batch=4, length=None, model_type="vit"),
        Subject("gpt2", "language", batch=4, length=128, model_type="gpt2"),
        Subject("deberta-v3-base", "sequences", batch=8, length=64, model_type="deberta-v2", geometry=_DEBERTA_V3_BASE),
    )
}
"""The models that are measured where none is named."""


def choose_subjects(model: str | None, length: int | None = None) -> list[Subject]:
    """Return what to measure: one model, or all of `SUBJECTS`.

    Args:
        model: a name of `SUBJECTS`, a local folder with config.json, or None for all of them.
        length: tokens the user asks for, checked against what the models can read.

    Raises:
        ConfigError: there is no such name or folder, the folder holds no model that can be measured, or the length
            does not fit.

    Example:
        >>> [subject.name for subject in choose_subjects("gpt2")]
        ['gpt2']
    """
    if model is None:
        chosen = list(SUBJECTS.values())
    elif model in SUBJECTS:
        chosen = [SUBJECTS[model]]
    else:
        chosen = [_from_folder(model)]
    if length is not None:
        for subject in chosen:
            _check_length(subject, length, only=len(chosen) == 1)
    return chosen


def read_folder(folder: Path) -> Any:
    """Read a folder's config.json; nothing is fetched and no foreign code runs.

    Raises:
        ConfigError: it is not a configuration this version of transformers knows.
    """
    import transformers

    try:
        return transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f'"{folder}" holds no configuration that transformers knows: {reason}') from error


def _from_folder(name: str) -> Subject:
    from rmlora.modeling import check_model_name

    if not Path(name).expanduser().is_dir():
        if "/" not in name:
            raise ConfigError(
                f'no model "{name}"{nearest(name, list(SUBJECTS))}; `rmlora bench --list` names those there are, or '
                "give a local folder with config.json"
            )
        raise ConfigError(f'no model folder "{name}"; a folder with config.json is needed, its weights are not')
    check_model_name(name)
    folder = Path(name).expanduser()
    config = read_folder(folder)
    kind = _kind_of(config, name)
    length = None if kind == "images" else int(min(_LENGTH, _longest(config)))
    return Subject(name, kind, length=length, folder=folder)


def _kind_of(config: Any, name: str) -> Kind:
    from transformers.models.auto import modeling_auto as auto

    heads: dict[Kind, Any] = {
        "images": auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
        "language": auto.MODEL_FOR_CAUSAL_LM_MAPPING,
        "sequences": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    }
    possible = [kind for kind, known in heads.items() if type(config) in known]
    if not possible:
        raise ConfigError(
            f'model "{name}" is a {config.model_type}, which transformers cannot give a head for images, texts or '
            "language; choose another"
        )
    named = (getattr(config, "architectures", None) or [""])[0]
    is_language = named.endswith(("ForCausalLM", "LMHeadModel")) or "sequences" not in possible
    return possible[0] if "language" not in possible or is_language else "sequences"


def _check_length(subject: Subject, length: int, only: bool) -> None:
    if subject.kind == "images":
        if only:
            raise ConfigError(f'--length counts the tokens of a text, but "{subject.name}" reads images; leave it out')
        return
    longest = _longest(subject.config())
    if length > longest:
        raise ConfigError(f'--length: "{subject.name}" reads at most {longest:.0f} tokens, got {length}')
    if subject.kind == "language" and length < 2:
        raise ConfigError("--length: a language model needs 2 tokens to predict one, got 1")


def _longest(config: Any) -> float:
    """Return how many tokens a model can read; infinite where its configuration sets no limit."""
    return getattr(config, "max_position_embeddings", None) or float("inf")
