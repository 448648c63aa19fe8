"""Which kernels an engine is traced with, and what is said of it."""

from __future__ import annotations

import pytest

from gnomon.jax_engine.kernels import choice
from gnomon.jax_engine.kernels.choice import XLA, choose_kernels
from gnomon.jax_engine.kernels.native import NoNativeKernels


def chosen(wants_native: bool, devices: int = 1) -> tuple[choice.ChosenKernels, list[str]]:
    told: list[str] = []
    return choose_kernels(wants_native, devices, None, 3, told.append, told.append), told


def test_who_wants_nothing_native_gets_xla_and_no_word() -> None:
    assert chosen(False) == ((XLA, XLA, "XLA", None), [])


def test_several_devices_get_xla_and_the_reason() -> None:
    assert chosen(True, 2) == ((XLA, XLA, "XLA", None), ["products by XLA, not natively: there are several devices"])


def test_what_cannot_be_built_is_xlas_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "load_native", lambda cache, announce: NoNativeKernels("no compiler"))
    assert chosen(True) == ((XLA, XLA, "XLA", None), ["products by XLA, not natively: no compiler"])


def test_xlas_form_is_not_native() -> None:
    assert not chosen(False)[0].are_native


def test_all_is_native_and_a_product_rounds_where_many_rows_are_prefilled_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[bool] = []

    class Native:
        description = "a library"
        attend = norm = rotate = activate = draw = report = staticmethod(lambda *arguments: None)

        def share_between(self, threads: int) -> None:
            asked.append(threads == 3)

        def linear(self, rows: object, weight: object, rounded: bool = False) -> None:
            asked.append(rounded)

        def packer(self) -> str:
            return "a packer"

    monkeypatch.setattr(choice, "load_native", lambda cache, announce: Native())
    kernels, told = chosen(True)
    linears: tuple[object, ...] = (kernels.many.linear, kernels.few.linear)
    for linear in linears:
        assert callable(linear)
        linear(None, None)
    assert asked == [True, True, False]
    said: tuple[object, ...] = (kernels.description, kernels.packer, kernels.are_native)
    assert said == ("a library", "a packer", True)
    assert told == ["products by a library, on 3 threads"]
    for name in ("attend", "norm", "rotate", "activate", "draw", "report"):
        assert getattr(kernels.many, name) is getattr(kernels.few, name) is getattr(Native, name)
