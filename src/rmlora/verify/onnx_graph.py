"""Target `onnx`: the merged model as an ONNX graph, run by onnxruntime."""

from __future__ import annotations

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rmlora.verify.base_model import BaseModel
from rmlora.verify.certificate import Check
from rmlora.verify.exported import merge
from rmlora.verify.subject import Subject
from rmlora.verify.torch_exporting import capture, compared, could_not

METHOD = (
    "merged, exported by torch.onnx with any number of rows, checked by onnx, run by onnxruntime on the CPU and held "
    "against PEFT unmerged, fp32"
)
TOLERANCE = 1e-4


def check_onnx(subject: Subject, base: BaseModel) -> list[Check]:
    """Export the merged model to ONNX, run it on two batches, and compare.

    Raises:
        AdapterError: base and adapter do not fit, or the model cannot be probed.
    """
    merged = merge(subject, base)
    try:
        with tempfile.TemporaryDirectory(prefix="rmlora-onnx-") as folder, _quiet(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            file = Path(folder) / "model.onnx"
            program: Any = torch.onnx.export(capture(merged), dynamo=True, verbose=False)
            program.save(str(file), external_data=True)
            run = _session(file)
            found, other = _run(run, merged.inputs), _run(run, merged.other)
    except Exception as error:  # exporters fail in their own ways; each is a verdict about the model, not our error
        return [merged.complete, could_not("ONNX export", error)]
    return [merged.complete, *compared(merged, found, other, TOLERANCE)]


def _session(file: Path) -> Any:
    import onnx
    import onnxruntime

    onnx.checker.check_model(str(file))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def _run(session: Any, inputs: dict[str, Tensor]) -> Tensor:
    given = {slot.name: tensor.numpy() for slot, tensor in zip(session.get_inputs(), inputs.values(), strict=True)}
    return torch.from_numpy(session.run(None, given)[0])


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' remarks off the terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
