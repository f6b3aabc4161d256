"""Registers linscale's model classes with transformers when both are imported, whichever comes first.

transformers has no place where a package can announce its models before it is imported, and importing it costs seconds
that `import linscale` must not. So a finder waits for the two modules of transformers that hold its lists of classes,
lets Python load them as usual, and then imports our class for that list.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from types import ModuleType

REGISTRARS = {
    "transformers.models.auto.configuration_auto": "linscale.adapt.transformers_config",
    "transformers.models.auto.modeling_auto": "linscale.adapt.transformers_model",
}
"""The module of transformers that holds a list of classes: ours that adds to it when it is imported."""


def register_with_transformers() -> None:
    """Make AutoConfig and AutoModelForCausalLM know our models, now or when transformers is imported. Cheap."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
    for theirs, ours in REGISTRARS.items():
        if theirs in sys.modules:
            importlib.import_module(ours)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the modules of REGISTRARS where the other finders do, and has ours imported after them."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname not in REGISTRARS:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, REGISTRARS[fullname])
        return spec


class _Loader(importlib.abc.Loader):
    """Another loader, after which a module of ours is imported."""

    def __init__(self, loader: importlib.abc.Loader, ours: str) -> None:
        self.loader, self.ours = loader, ours

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        importlib.import_module(self.ours)
