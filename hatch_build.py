"""Puts the data trees into wheels as ``edgekit/_data``. Editable installs read them from the checkout instead."""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TREES = ("targets", "device_profiles", "calibration")


class DataTrees(BuildHookInterface):  # type: ignore[type-arg]
    """Adds the trees to standard wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before a build; ``version`` is "standard" or "editable"."""
        if version == "standard":
            build_data["force_include"] |= {tree: f"edgekit/_data/{tree}" for tree in TREES}
