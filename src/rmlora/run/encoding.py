"""From the examples of a run to what its model reads."""

from __future__ import annotations

from typing import Any

from rmlora.config import RunConfig
from rmlora.modeling import Loaded
from rmlora.run.sources import Sources
from rmlora.tasks.completions import encode_completions
from rmlora.tasks.data import Examples, TaskData
from rmlora.tasks.encode import ImageExamples, encode_texts
from rmlora.tasks.squad_windows import encode_questions


def encode_parts(config: RunConfig, data: TaskData, loaded: Loaded, sources: Sources) -> dict[str, Any]:
    """Encode both parts of the data, before anything of the run is written.

    Args:
        config: of the run.
        data: its examples.
        loaded: its model and processor.
        sources: may have kept the encodings of an earlier run.

    Returns:
        "train" and "eval", and the other held-out parts by name.

    Raises:
        DataError: an example cannot be encoded.
    """
    examples = {"train": data.train, "eval": data.eval, **data.others}
    return {
        part: sources.encoded(config, part, lambda own=own: encode(config, own, loaded))  # type: ignore[misc]
        for part, own in examples.items()
    }


def encode(config: RunConfig, examples: Examples, loaded: Loaded) -> Any:
    """Turn examples into what the model reads; images are opened only when asked for."""
    if config.task == "question-answering":
        return encode_questions(examples, loaded.processor, config.data.max_length, config.data.stride)
    if config.task == "causal-lm":
        return encode_completions(examples, loaded.processor, config.data.max_length, config.data.separator)
    if config.task != "image-classification":
        return encode_texts(examples, loaded.processor, config.data.max_length)
    mode = "L" if getattr(loaded.model.config, "num_channels", 3) == 1 else "RGB"
    return ImageExamples(examples, mode)
