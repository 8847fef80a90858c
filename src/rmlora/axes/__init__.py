"""The mask beyond LoRA: along whatever axis of directions a PEFT tuner trains."""

from rmlora.axes.mask_axes import MaskedAxes, mask_axes

__all__ = ["MaskedAxes", "mask_axes"]
