"""PyTorch and onnx2torch, which the ``torch`` extra brings."""

from __future__ import annotations

import warnings
from importlib import import_module
from typing import Any

from edgekit.errors import MissingToolError


def torch_modules(wanted_by: str) -> tuple[Any, Any]:
    """The module torch and ``onnx2torch.convert``, by name: the base installation has neither them nor their types.

    Raises:
        MissingToolError: one of them is not installed, or not as the other needs it; says who it was ``wanted_by``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return import_module("torch"), import_module("onnx2torch").convert
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that was built for another torch
        raise MissingToolError(
            f"{wanted_by} needs torch and onnx2torch: {error}", "pip install 'edgekit-sdk[torch]'"
        ) from None


def has_torch() -> bool:
    """Whether both can be imported."""
    try:
        torch_modules("")
    except MissingToolError:
        return False
    return True
