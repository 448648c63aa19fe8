"""The model and the engine that a command is to run, opened, or one line of why that cannot be. The only file of the
server and its commands that names an engine.

Everything heavy is imported where it is used: `gnomon --help` needs none of it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from gnomon.http.cli.console import fail, warn
from gnomon.http.observe.text import as_utf8
from gnomon.http.settings import Settings
from gnomon.reference.checkpoint.load import Say
from gnomon.reference.system.options import named, option, options
from gnomon.reference.text.infill import InfillOptions, Order

if TYPE_CHECKING:
    from gnomon.reference.checkpoint.load import Checkpoint
    from gnomon.reference.engine import ServedEngine
    from gnomon.reference.tokenizer import Tokenizer


class EngineName(StrEnum):
    reference = "reference"
    jax = "jax"


class DtypeName(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


MODEL_GROUP, ENGINE_GROUP = "Model", "Engine"


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """Which form of a model is meant."""

    revision: str | None = option(
        None, "A branch, tag or commit of a hub id. Default: main.", MODEL_GROUP, metavar="NAME"
    )
    max_model_len: int | None = option(
        None,
        "Positions of a prompt and its completion together, no more than the model was made for. Default: that.",
        MODEL_GROUP,
        min=1,
        metavar="N",
    )
    fim_prefix: str | None = option(
        None,
        "The fill-in-the-middle token before the prompt, as its literal; with --fim-suffix. "
        "Default: as the model's files say.",
        MODEL_GROUP,
        metavar="TOKEN",
    )
    fim_suffix: str | None = option(
        None, "The one before the suffix. Default: as the files say.", MODEL_GROUP, metavar="TOKEN"
    )
    fim_middle: str | None = option(
        None,
        "The one before the middle, which the order spm can do without. Default: as the files say.",
        MODEL_GROUP,
        metavar="TOKEN",
    )
    fim_order: Order | None = option(
        None,
        "Their order: psm is PREFIX prompt SUFFIX suffix MIDDLE, spm is SUFFIX suffix PREFIX prompt MIDDLE, "
        "spm-joined is PREFIX SUFFIX suffix MIDDLE prompt. Default: what is known of the tokens, which a line at the "
        "start tells.",
        MODEL_GROUP,
        metavar="ORDER",
    )

    def told(self) -> InfillOptions:
        """What they say of the fill-in-the-middle tokens. One without those it needs ends the command."""
        given = {
            f"--{name.replace('_', '-')}": getattr(self, name) for name in ("fim_prefix", "fim_suffix", "fim_middle")
        }
        needed = list(given)[:2] if self.fim_middle is None and self.fim_order in (None, Order.spm) else list(given)
        missing = [flag for flag in needed if given[flag] is None]
        if missing and any(literal is not None for literal in given.values()):
            fail(f"{', '.join(needed)} go together; missing: {', '.join(missing)}", 2)
        return InfillOptions(self.fim_prefix, self.fim_suffix, self.fim_middle, self.fim_order)


@dataclass(frozen=True, slots=True)
class JaxOptions:
    """What the JAX engine alone is told."""

    slots: int | None = option(
        None,
        "Sequences decoded at a time; only with --engine jax. Default: 32 with the native kernels, to which a slot "
        "that nobody is in costs little, else 8; fewer where memory is short.",
        ENGINE_GROUP,
        min=1,
        max=65536,
        metavar="N",
    )
    dtype: DtypeName = option(DtypeName.float32, "The dtype of the weights; only with --engine jax.", ENGINE_GROUP)
    kv_cache_memory: int | None = option(
        None,
        "Memory for keys and values in MiB; only with --engine jax. Default: room for a context a slot, "
        "32 at least or four a slot, in at most a quarter of the device's memory.",
        ENGINE_GROUP,
        min=1,
        metavar="MIB",
    )
    tensor_parallel: int = option(
        1, "Cut the model over N devices of this host; only with --engine jax.", ENGINE_GROUP, min=1, metavar="N"
    )
    native: bool = option(
        True,
        "On a CPU, compute by the kernels that are built with this machine's C++ compiler, if it has one, "
        "and not by XLA; only with --engine jax.",
        ENGINE_GROUP,
    )
    threads: int | None = option(
        None,
        "Threads that this kernel computes with, the same bytes with any number; only with --engine jax. "
        "Default: the processors that this process may use.",
        ENGINE_GROUP,
        min=1,
        max=1024,
        metavar="N",
    )
    cache_dir: str | None = option(
        None,
        "Where that kernel and the compiled programs are kept for the next start; only with --engine jax. "
        "Default: gnomon in $XDG_CACHE_HOME, or in ~/.cache.",
        ENGINE_GROUP,
        metavar="DIR",
        file=True,
    )


def model_name(model: str | None) -> str:
    """The name a model is served under by default: a hub id itself, of a directory its name."""
    from gnomon.reference.checkpoint.hub import is_hub_id

    if model is None:
        return Settings().served_model_name
    if is_hub_id(model):
        return model
    try:
        return as_utf8(os.path.basename(os.path.realpath(model)))  # of links in a circle too
    except OSError:  # relative to a directory that has been removed
        return as_utf8(os.path.basename(model))


def read_model(
    model: str | None, which: ModelOptions, say: Say, warned: Say | None = None
) -> tuple[Checkpoint, Tokenizer]:
    """The embedded model if none is named. `warned` gets a line for whatever of the files is not taken as it says; left
    out, it is printed as a warning. Raises CheckpointError or OSError."""
    from gnomon.reference.checkpoint.hub import locate
    from gnomon.reference.checkpoint.load import default_model_path, load_checkpoint
    from gnomon.reference.tokenizer import load_tokenizer

    if model == "":
        fail("the model's directory is an empty string; leave it out for the embedded model", 1)
    path = locate(default_model_path() if model is None else model, which.revision, say)
    checkpoint = load_checkpoint(path, which.max_model_len, say, warned or warn)
    return checkpoint, load_tokenizer(path, checkpoint.config.vocab_size, which.told())


def open_model(
    engine: EngineName,
    model: str | None,
    which: ModelOptions,
    jax_options: JaxOptions,
    say: Say,
    announce: Say,
    warned: Say | None = None,
) -> tuple[ServedEngine, Tokenizer, Checkpoint]:
    """The engine, its tokenizer, and what both were made from. `say` gets a line for every step of the start, and
    `announce` one before those that take long, and what is not kept for the next start."""
    from gnomon.reference.checkpoint.errors import CheckpointError
    from gnomon.reference.engine import ReferenceEngine

    try:
        checkpoint, tokenizer = read_model(model, which, say, warned)
        say(f"fill-in-the-middle: {tokenizer.infill_note}")
        match engine:
            case EngineName.reference:
                return ReferenceEngine(checkpoint, say), tokenizer, checkpoint
            case EngineName.jax:
                return _jax_engine(checkpoint, jax_options, say, announce), tokenizer, checkpoint
    except (CheckpointError, OSError) as error:  # weights are read by the engine
        fail(str(error), 1)


def require_jax(announce: Say) -> None:
    """Ends the command if jax cannot run here: before modules are imported whose tracebacks tell a user nothing."""
    from gnomon.jax_engine.runtime.backend import NoDevice, require_devices

    try:
        require_devices(announce)
    except NoDevice as error:
        fail(str(error), 1)


def cache_dir() -> str | None:
    """The directory of GNOMON_CACHE_DIR, for commands without the option; None: the default one."""
    variable = named(options(JaxOptions), "cache_dir").env
    assert variable is not None
    directory = os.environ.get(variable)
    if directory is not None and not directory.strip():
        fail(f"{variable} is set and empty; give it a value, or unset it", 2)
    return directory


def _jax_engine(checkpoint: Checkpoint, jax_options: JaxOptions, say: Say, announce: Say) -> ServedEngine:
    require_jax(announce)
    from gnomon.jax_engine.engine import JaxEngine
    from gnomon.jax_engine.runtime import store
    from gnomon.jax_engine.runtime.settings import EngineSettings, bytes_per_token

    settings = EngineSettings(
        slots=jax_options.slots,
        dtype=jax_options.dtype,
        tensor_parallel=jax_options.tensor_parallel,
        native=jax_options.native,
        threads=jax_options.threads,
    )
    per_token = bytes_per_token(checkpoint.config, settings)
    if jax_options.kv_cache_memory is not None:
        settings = replace(settings, pool_tokens=jax_options.kv_cache_memory * 2**20 // per_token)
    with store.opened(jax_options.cache_dir, os.environ, announce) as directory:
        try:
            engine = JaxEngine(checkpoint, replace(settings, compilation_cache=directory), say, announce)
        except (ValueError, MemoryError) as error:
            fail(str(error) or "there is not enough memory", 1)
    tokens, taken = engine.settings.pool_tokens, engine.settings.pool_tokens * per_token / 2**20
    say(f"key/value pool: {tokens:,} tokens, {taken:,.1f} MiB")
    return engine
