"""Packages of the extras, which take seconds to import and may not be installed."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import pytest


class _Later:
    """A module that is imported when one of its names is first used."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith(("_pytest", "__")):  # what pytest looks for in every global of a module
            raise AttributeError(attribute)
        return getattr(import_module(self._name), attribute)


def extra(name: str, *packages: str) -> Any:
    """The first of the packages, imported when it is used and not when tests are collected; where one of them is not
    installed the file is skipped."""
    if any(find_spec(package) is None for package in packages):
        pytest.skip(f"needs the extra `{name}`: pip install 'gnomon[{name}]'", allow_module_level=True)
    return _Later(packages[0])
