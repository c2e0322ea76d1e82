"""Which tools made a result."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

from edgekit import __version__

_LIBRARIES = ("ai-edge-litert", "numpy", "onnx", "onnxruntime", "openvino", "scipy")


def versions() -> dict[str, str]:
    """Name -> version of edgekit, Python and the libraries that the numbers depend on."""
    found = {"edgekit": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
