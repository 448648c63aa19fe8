"""Which form of each operation the compiled programs call. A program uses one of them, always."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from jax import Array

from gnomon.jax_engine import sampler
from gnomon.jax_engine.kernels import xla
from gnomon.jax_engine.kernels.native import NoNativeKernels, load_native
from gnomon.jax_engine.kernels.panels import Packer


class LinearKernel(Protocol):
    """x [R, in] · each weight [out, in] → [R, out] in float32; only the rows that are live [R] matter."""

    def __call__(self, x: Array, weights: Sequence[Any], live: Array) -> list[Array]: ...


class AttendKernel(Protocol):
    """See `xla.attend`."""

    def __call__(
        self,
        q: Array,
        keys: Array,
        values: Array,
        tables: Array,
        positions: Array,
        lengths: Array,
        window: int | None,
        score_cap: float | None,
    ) -> Array: ...


class NormKernel(Protocol):
    """x [..., D], each row normed by itself; weight, bias [D]. Only the rows that are live matter, here and below; live
    has x's first axes: all but the last, or, where rows of D stand beside each other, as heads do, fewer."""

    def __call__(self, x: Array, weight: Array, bias: Array | None, kind: str, eps: float, live: Array) -> Array: ...


class RotateKernel(Protocol):
    """See `xla.rotate`."""

    def __call__(self, x: Array, cos: Array, sin: Array, live: Array) -> Array: ...


class ActivateKernel(Protocol):
    """See `xla.activate`."""

    def __call__(self, factors: Sequence[Array], kind: str, live: Array) -> Array: ...


class DrawKernel(Protocol):
    """See `sampler.sample`."""

    def __call__(
        self, logits: Array, bias: Array, counts: Array, rows: sampler.Rows, live: Array
    ) -> sampler.Sampled: ...


class ReportKernel(Protocol):
    """See `sampler.report_ids`: the draw without its token, for ids that are given."""

    def __call__(self, logits: Array, ids: Array, live: Array) -> sampler.Reported: ...


class Kernels(NamedTuple):
    """What a program is traced with."""

    linear: LinearKernel
    attend: AttendKernel
    norm: NormKernel
    rotate: RotateKernel
    activate: ActivateKernel
    draw: DrawKernel
    report: ReportKernel


class ChosenKernels(NamedTuple):
    many: Kernels  # for prefill, where arithmetic is the limit
    few: Kernels  # for decode and the head, where reading the weights is
    description: str  # of all that decides their bits
    packer: Packer | None = None  # of the weights that they take; None: they take them as they are, [out, in]

    @property
    def are_native(self) -> bool:
        """Then only live rows cost."""
        return self.few is not XLA


XLA = Kernels(xla.linear_rows, xla.attend, xla.norm, xla.rotate, xla.activate, sampler.sample, sampler.report_ids)


def choose_kernels(
    wants_native: bool,
    devices: int,
    cache: Path | None,
    threads: int,
    progress: Callable[[str], None],
    announce: Callable[[str], None],
) -> ChosenKernels:
    """The native operations where they are wanted and can be had for one device, else XLA's. cache, announce: see
    `load_native`; threads: that they share their work between; progress: is told which it is, and why not the other."""
    if not wants_native:
        return ChosenKernels(XLA, XLA, "XLA")
    native = load_native(cache, announce) if devices == 1 else NoNativeKernels("there are several devices")
    if isinstance(native, NoNativeKernels):
        progress(f"products by XLA, not natively: {native}")
        return ChosenKernels(XLA, XLA, "XLA")
    native.share_between(threads)
    progress(f"products by {native.description}, on {threads} thread{'s' if threads > 1 else ''}")
    few = Kernels(native.linear, native.attend, native.norm, native.rotate, native.activate, native.draw, native.report)
    many = few._replace(linear=partial(native.linear, rounded=True))
    return ChosenKernels(many, few, native.description, native.packer())
