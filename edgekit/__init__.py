"""edgekit: from a trained model to a board, within a latency, memory and accuracy budget.

    import edgekit

    result = edgekit.deploy(
        "model.onnx", "host", data="samples.npz", budget=edgekit.Budget(latency_ms=10, max_drop=0.01), out="bundle"
    )
    print(result.chosen, result.candidate(result.chosen).latency_ms.p50)

The functions are those of the command line; heavy libraries load when one is called.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from edgekit.errors import EdgekitError
from edgekit.types import Budget

if TYPE_CHECKING:
    from edgekit.api import bench, deploy, inspect, load, plan, predict, report, targets, verify

__version__ = "0.1.0"

# The onnxruntime wheel reports usage to its maker, and leaves a file in the folder for temporary files, unless told not
# to before it is imported. What is deployed here is nobody else's business.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

__all__ = [
    "Budget",
    "EdgekitError",
    "bench",
    "deploy",
    "inspect",
    "load",
    "plan",
    "predict",
    "report",
    "targets",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from edgekit import api

        return getattr(api, name)
    raise AttributeError(f"module 'edgekit' has no attribute {name!r}")
