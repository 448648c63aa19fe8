"""Compiled programs of an engine without the engine."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax

from gnomon.jax_engine.engine import JaxEngine
from gnomon.jax_engine.tools.clients import ClientError


class BarePrograms:
    """Compiled programs of an engine without the engine, called with what the engine itself passed in a real run.

    All that bench knows of an engine's insides is here: the dict name → compiled program that its calls go through,
    and `programs()[name].donated`, the arguments that a call consumes. A consumed argument is taken anew from the
    result: the part of the same shapes and dtypes.
    """

    STEP = ("decode", "sample")

    def __init__(self, engine: JaxEngine, names: Sequence[str], at: int, load: Callable[[], object]) -> None:
        """Runs `load`, and keeps the arguments of each program's call number `at`, from 1. The engine must be idle."""
        compiled, programs = engine.device.compiled, engine.programs()
        self._programs = {name: compiled[name] for name in names}
        self._donated = {name: programs[name].donated for name in names}
        self._arguments: dict[str, list[Any]] = {}

        def recorded(name: str, calls: list[None], *arguments: Any) -> Any:
            calls.append(None)
            if len(calls) == at:
                weights = programs[name].arguments[0]  # the only large thing that nothing consumes
                self._arguments[name] = [
                    a if a is weights else jax.tree.map(lambda leaf: leaf.copy(), a) for a in arguments
                ]
            return self._programs[name](*arguments)

        try:
            compiled.update({name: partial(recorded, name, []) for name in names})
            load()
        finally:
            compiled.update(self._programs)
        if missing := set(names) - set(self._arguments):
            raise ClientError(f"the engine did not call {', '.join(missing)} {at} times")

    def milliseconds(self, calls: int) -> float:
        """The mean time of a call of each program, added up. The calls of one program follow each other on the device
        without a pause: each takes what the one before gave back."""
        total = 0.0
        for name in self._programs:
            began = time.perf_counter()
            results = [self._call(name) for _ in range(calls)]
            jax.block_until_ready(results[-1])  # type: ignore[no-untyped-call]
            total += (time.perf_counter() - began) / calls
        return 1e3 * total

    def _call(self, name: str) -> Any:
        """The parts of the result that the next call does not take."""
        arguments = self._arguments[name]
        kinds = {i: _kind(arguments[i]) for i in self._donated[name]}
        parts = list(self._programs[name](*arguments))
        for i, kind in kinds.items():
            arguments[i] = parts.pop(next(j for j, part in enumerate(parts) if _kind(part) == kind))
        return parts


def _kind(tree: Any) -> tuple[Any, ...]:
    return jax.tree.structure(tree), *((leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree))
