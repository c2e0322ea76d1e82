"""The modules beside the runners, as a runner imports them."""

import importlib
import sys
from types import ModuleType

from edgekit.catalog import data_root


def load(name: str) -> ModuleType:
    folder = str(data_root() / "targets" / "runners")
    if folder not in sys.path:
        sys.path.append(folder)
    return importlib.import_module(name)
