"""The model an adapter belongs to: where it lies, of which class it is, and loading it fresh."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from rmlora.errors import AdapterError
from rmlora.modeling import check_model_name
from rmlora.verify.subject import Subject

_CLASSES = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "FEATURE_EXTRACTION": "AutoModel",
}
_HEADS = ("classifier.out_proj", "classifier", "score", "qa_outputs")


@dataclass(frozen=True)
class BaseModel:
    """The base of an adapter, not loaded yet.

    Attributes:
        name: a local folder, or a Hub id.
        subject: the adapter.
    """

    name: str
    subject: Subject

    @cached_property
    def config(self) -> Any:
        """Its transformers configuration.

        Raises:
            AdapterError: it is not there, or is no model of transformers.
        """
        from transformers import AutoConfig

        return self._loaded(lambda: AutoConfig.from_pretrained(self.name, revision=self._revision))

    @property
    def architecture(self) -> str:
        """The class its checkpoint was saved from, as config.json has it; its model type if it has none."""
        return str((self.config.architectures or [self.config.model_type])[0])

    @property
    def class_name(self) -> str:
        """The class of transformers that the adapter was trained on."""
        mapping = self.subject.config.get("auto_mapping") or {}
        if mapping.get("base_model_class"):
            return str(mapping["base_model_class"])
        return _CLASSES.get(str(self.subject.config.get("task_type")), self.architecture)

    def load(self, dtype: torch.dtype = torch.float32) -> tuple[Any, tuple[str, ...]]:
        """Load it anew, with the parts the adapter saved whole (its head) written into it.

        Args:
            dtype: of all weights.

        Returns:
            The model in evaluation mode, and the names of parameters that stand neither in the base's checkpoint nor
            in the adapter's files: they are drawn anew with every load.

        Raises:
            AdapterError: it cannot be loaded, or a saved part has another shape.
        """
        import transformers

        loader = getattr(transformers, self.class_name, None)
        if loader is None:
            raise AdapterError(f'transformers has no class "{self.class_name}", which {self.subject.path} was made for')
        model, report = self._loaded(
            lambda: loader.from_pretrained(
                self.name,
                dtype=dtype,
                revision=self._revision,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **self.head_size(),
            )
        )
        given = self.subject.whole_parts(model.state_dict().keys())
        self._write(model, given)
        lacking = {str(key) for key in report["missing_keys"]} | {str(entry[0]) for entry in report["mismatched_keys"]}
        names = {name for name, _ in model.named_parameters()}
        return model.eval(), tuple(sorted(lacking & names - given.keys()))

    def head_size(self) -> dict[str, int]:
        """Return the number of labels as a keyword, read off the saved head; nothing where there is none."""
        if "Classification" not in self.class_name and "QuestionAnswering" not in self.class_name:
            return {}
        for head in _HEADS:
            for end in ("weight", "bias"):
                tensor = self.subject.whole.get(f"{head}.{end}")
                if tensor is not None:
                    return {"num_labels": len(tensor)}
        return {}

    @property
    def _revision(self) -> str:
        return str(self.subject.config.get("revision") or "main")

    def _write(self, model: Any, given: Mapping[str, Tensor]) -> None:
        try:
            model.load_state_dict(dict(given), strict=False)
        except RuntimeError as error:
            reason = str(error).splitlines()[-1].strip()
            raise AdapterError(f'{self.subject.path} does not fit "{self.name}": {reason}') from error

    def _loaded(self, load: Any) -> Any:
        try:
            check_model_name(self.name)
            return load()
        except (OSError, ValueError, KeyError, ImportError, RuntimeError, SafetensorError) as error:
            reason = " ".join(str(error).split())[:300]
            raise AdapterError(f'cannot load the base model "{self.name}": {reason} (--model gives another)') from error


def base_of(subject: Subject, given: str | None) -> BaseModel:
    """Find the base model of an adapter.

    Args:
        subject: the adapter.
        given: folder or Hub id that a user gave; None takes what adapter_config.json names.

    Raises:
        AdapterError: neither names one.
    """
    name = given or subject.config.get("base_model_name_or_path")
    if not name and (subject.path / "frozen.safetensors").is_file():
        raise AdapterError(
            f'the run in "{subject.path}" trained the classification layer alone, which is no adapter of a model; its '
            "README.md has the code that uses it"
        )
    if not name:
        raise AdapterError(f"{subject.path / 'adapter_config.json'} names no base model; give it with --model")
    return BaseModel(str(name), subject)
