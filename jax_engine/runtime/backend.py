"""What jax runs on here, found before anything needs it; what cannot be is one sentence that says what to do.

    1 XLA_FLAGS    tried in a process of its own, for XLA ends the process that gives it a flag it does not know
    2 import jax   which reads its own variables, and raises for a value it does not know, or a jaxlib that does not fit
    3 plugins      jax finds them itself; what it logs of one that does not start is kept for the sentence
    4 devices      the platforms of JAX_PLATFORMS must all be there: none is passed over for another

This file imports jax only when it is asked.
"""

from __future__ import annotations

import logging
import os
import pkgutil
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import Distribution, distributions, entry_points, requires, version
from typing import NamedTuple

EXTRAS = {"rocm": "rocm", "cuda": "cuda"}  # platform → the extra of this package that brings its plugin
GPU_KINDS = {"rocm": ("rocm",), "cuda": ("cuda",), "gpu": ("rocm", "cuda")}
PLUGINS = {"rocm": "rocm", "cuda": "cuda", "tpu": "tpu"}  # platform → what the name of its plugin has in it
FLAG_SECONDS = 60  # for XLA to read its flags, which takes a fifth of a second
READ_FLAGS = "from jaxlib import xla_client; xla_client.CompileOptions()"


_started: list[bool] = []  # once a process, as jax has it


class NoDevice(Exception):
    """Why jax has no device to run on; the message is one line for the user."""


class Plugin(NamedTuple):
    module: str
    platform: str  # its name as JAX_PLATFORMS has it, as far as the module's name tells


def require_devices(warn: Callable[[str], None] = warnings.warn) -> None:
    """Starts jax on the devices that its variables ask for, unless it was started here before. Raises NoDevice.

    warn: is told of a plugin that is installed and not used, where jax has gone on without it.
    """
    if not _started:
        _start(warn)
        _started.append(True)


def _start(warn: Callable[[str], None]) -> None:
    _check_flags()
    try:
        import jax
    except ImportError:  # a package that is missing or broken; whoever runs the command says how to install it
        raise
    except ValueError as error:  # of a variable's value
        raise NoDevice(f"jax does not start: {one_line(error)}{_variable_in(error)}") from None
    except Exception as error:  # RuntimeError, AttributeError: of packages whose versions do not fit together
        raise NoDevice(f"jax cannot be imported: {one_line(error)} {_versions()}") from None
    wanted = str(jax.config.jax_platforms or "")  # type: ignore[attr-defined]
    with _kept_log() as said:
        try:
            jax.devices()
        except Exception as error:  # RuntimeError, AssertionError, or what a plugin raises
            raise NoDevice(_reason(wanted, error, said)) from None
        from jax.extend.backend import backends

        here = set(backends())
    missing = [name for name in wanted.split(",") if wanted and not here & {name, *GPU_KINDS.get(name, ())}]
    if missing:  # the first of them was there, and jax is content with that
        raise NoDevice(_not_here(wanted, missing[0], said))
    for line in said:
        warn(f"jax goes on without a plugin that is installed{_heard([line])}")
    if not wanted and not said:
        for plugin in plugins():
            if plugin.platform not in here:
                warn(f"jax goes on without {plugin.module}, installed here; JAX_PLATFORMS={plugin.platform} tells why")


def one_line(error: BaseException) -> str:
    """An error's text as one line, or its kind where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _versions() -> str:
    """What is installed of jax, and how to have versions that fit."""
    names = sorted({name for name in map(_name, distributions()) if re.fullmatch(r"jax|jaxlib|jax[_-].*plugin", name)})
    here = ", ".join(f"{name} {version(name)}" for name in names)
    asked = {re.split(r"[^\w-]", line)[0]: line for line in requires("gnomon") or [] if ";" not in line}
    wanted = " ".join(shlex.quote(asked.get(name, name)) for name in names)
    return f"(here: {here}); these must fit together: {sys.executable} -m pip install --upgrade {wanted}"


def _name(distribution: Distribution) -> str:
    return str(distribution.metadata["Name"] or "").lower()


def plugins() -> list[Plugin]:
    """What is installed for jax to run on, the CPU aside."""
    try:
        import jax_plugins  # type: ignore[import-not-found, unused-ignore]

        modules = {f"jax_plugins.{found.name}" for found in pkgutil.iter_modules(jax_plugins.__path__)}
    except ImportError:
        modules = set()
    modules |= {entry.value for entry in entry_points(group="jax_plugins")}
    named = [(module, [p for p, part in PLUGINS.items() if part in module.rpartition(".")[2]]) for module in modules]
    return sorted(Plugin(module, found[0] if found else module.rpartition(".")[2]) for module, found in named)


def _check_flags() -> None:
    flags = os.environ.get("XLA_FLAGS", "")
    if not flags.strip() or not sys.executable or "jaxlib.xla_client" in sys.modules:
        return  # where XLA is loaded already it may have read them, and it is not ours to end what lives with it
    try:
        done = subprocess.run(
            [sys.executable, "-c", READ_FLAGS],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=FLAG_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return
    said = [re.match(r"[EF]\d{4} \S+ +\d+ \S+\] (.*)", line) for line in done.stderr.splitlines()]
    if done.returncode and (first := next(filter(None, said), None)):  # its own log's form: it is no error of Python's
        raise NoDevice(f"XLA_FLAGS={flags!r}: {first[1].rstrip('.')}; correct the flag, or unset the variable")


def _variable_in(error: ValueError) -> str:
    """The variable that an error of jax's means, where it says only the option's name."""
    named = re.search(r"\bjax_\w+", str(error))
    value = os.environ.get(named[0].upper()) if named else None
    return "" if named is None or value is None else f" (the variable {named[0].upper()}={value!r})"


class _Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = record.getMessage()
        except (TypeError, ValueError):  # jax has a message whose arguments do not fit
            text = record.msg
        if record.exc_info and record.exc_info[1] is not None:
            text += f": {one_line(record.exc_info[1])}"
        self.lines.append(" ".join(text.split()))


@contextmanager
def _kept_log() -> Iterator[list[str]]:
    """What jax logs while it looks for devices, instead of lines and tracebacks on standard error."""
    kept, log = _Kept(), logging.getLogger("jax._src.xla_bridge")
    propagate, log.propagate = log.propagate, False
    log.addHandler(kept)
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            yield kept.lines
        kept.lines += [one_line(w.message) for w in warned if isinstance(w.message, Warning)]
    finally:
        log.removeHandler(kept)
        log.propagate = propagate


def _reason(wanted: str, error: Exception, said: list[str]) -> str:
    failed = re.search(r"Unable to initialize backend '(\w+)'", str(error))
    names = [name for name in wanted.split(",") if name and name != "cpu"]
    if not names:
        name = os.environ.get("JAX_PLATFORM_NAME") or os.environ.get("JAX_XLA_BACKEND")
        if name and not failed:
            which = "JAX_PLATFORM_NAME" if os.environ.get("JAX_PLATFORM_NAME") else "JAX_XLA_BACKEND"
            return f"{which}={name!r}: {_missing(name, said)}"
        hint = "; JAX_PLATFORMS=cpu leaves plugins out" if plugins() else ""
        return f"jax has no device: {_short(error)}{_heard(said)}{hint}"
    name = next((n for n in names if failed and failed[1] in {n, *GPU_KINDS.get(n, ())}), names[0])
    installed = any(plugin.platform in {name, *GPU_KINDS.get(name, ())} for plugin in plugins())
    unknown = isinstance(error, AssertionError) or "not in the list of known backends" in str(error)
    if installed and not unknown:
        said = [*said, _short(error)]
    return _not_here(wanted, name, said)


def _not_here(wanted: str, name: str, said: list[str]) -> str:
    source = "JAX_PLATFORMS" if os.environ.get("JAX_PLATFORMS") == wanted else "jax_platforms"
    return f"{source}={wanted!r}: {_missing(name, said)}"


def _missing(name: str, said: list[str]) -> str:
    """That a platform is not here, which are, and what would bring it."""
    installed = plugins()
    here = ", ".join(["cpu", *dict.fromkeys(plugin.platform for plugin in installed)])
    own = [plugin for plugin in installed if plugin.platform in {name, *GPU_KINDS.get(name, ())}]
    if own:
        which = ", ".join(plugin.module for plugin in own)
        why = _heard(said) or f": it found no device{_driver(name)}"
        left = ", ".join(["cpu", *dict.fromkeys(p.platform for p in installed if p not in own)])
        return f"the plugin {which} is installed, but cannot be used{why}; here: {left}"
    if name == "tpu":
        return f"there is no plugin for it; here: {here}; to install it: pip install 'jax[tpu]'"
    if name not in GPU_KINDS:
        return f"jax has no platform {name!r}; here: {here}; with a plugin also: {', '.join(EXTRAS)}"
    extras = " or ".join(f"'.[{EXTRAS[kind]}]'" for kind in GPU_KINDS[name])
    return f"its plugin is not installed; here: {here}; to install it, in the clone: pip install {extras}"


def _driver(name: str) -> str:
    return {"rocm": " (is ROCm 7 in /opt/rocm?)", "cuda": " (does nvidia-smi show one?)"}.get(name, "")


def _short(error: Exception) -> str:
    """A backend's error without what jax wraps it in."""
    text = re.sub(r"^Unable to initialize backend '\w+': ", "", one_line(error))
    return re.sub(r" \((set JAX_PLATFORMS|you may need)[^)]*\)$", "", text)


def _heard(said: list[str]) -> str:
    short = [re.sub(r"^Jax plugin configuration error: ", "", line) for line in dict.fromkeys(said)]
    return f": {'; '.join(short)}" if short else ""
