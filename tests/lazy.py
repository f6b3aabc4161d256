"""Modules that are imported when something of them is first asked for.

Every worker of pytest-xdist imports every file of tests, and runs half of them: what takes long to import and serves
few files is left to the worker that runs these.
"""

import importlib
import importlib.util
from typing import Any

import pytest


class Lazy:
    def __init__(self, name: str) -> None:
        object.__setattr__(self, "_name", name)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_"):  # pytest asks whether it is a fixture
            raise AttributeError(attribute)
        return getattr(importlib.import_module(self._name), attribute)

    def __setattr__(self, attribute: str, value: Any) -> None:
        """Not here: monkeypatch.setattr takes "module.attribute", and could not undo what it did to this."""
        raise AttributeError(f"{self._name}.{attribute}: set it by the module's own name")


def lazy_or_skip(name: str) -> Any:
    """As pytest.importorskip: where there is no such package, the file that asks for it is skipped."""
    package = name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"could not find {package}", allow_module_level=True)
    return Lazy(name)
