"""Everything of the JAX engine that touches the device: the programs, compiled once, and the arrays they run on.

    prefill   one chunk of one prompt        [1, chunk] → hidden states, and the pages written
    score     what a prompt's tokens cost    [chunk, D] → log-probabilities and rankings
    begin     a candidate enters a slot      all that its steps need is put on the device once
    decode    the last token of every slot   [slots, 1] → hidden states, and the pages written
    sample    the one head and sampler       [slots, D] → a token for every slot, and its report

Each has one compiled shape, whatever the load; that is why neighbours cannot change a byte. Calls return at once, with
arrays that are still being computed; the device runs them in the order of the calls. So a page or a slot may be given
to the next sequence as soon as the last call that uses it has been made.
"""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import NamedSharding
from numpy.typing import NDArray

from gnomon.jax_engine import sharding
from gnomon.jax_engine.cache import SCRATCH_PAGE
from gnomon.jax_engine.kernels.choice import ChosenKernels, Kernels
from gnomon.jax_engine.kernels.panels import Packer
from gnomon.jax_engine.model import Batch, Cache, Params, empty_cache, hidden_states, over, unembed
from gnomon.jax_engine.runtime.programs import Programs
from gnomon.jax_engine.runtime.settings import SizedSettings, cache_dtype
from gnomon.jax_engine.sampler import LOWEST_TEMPERATURE, Reported, Rows, Sampled
from gnomon.reference.checkpoint.load import Checkpoint
from gnomon.reference.checkpoint.tensor_table import ParamPath
from gnomon.reference.model_config import ModelConfig
from gnomon.reference.prng import DrawKey
from gnomon.reference.sampler import SamplingParams
from gnomon.reference.system.heap import give_back
from gnomon.reference.system.sources import sources_hash

COMPILE_SECONDS, COMPILE_SECONDS_A_LAYER = 3, 0.5  # of all programs, as it took on a machine of two cores
FIRST = DrawKey(seed=0, candidate=0, step=0)  # of slots that nobody is in
SERVE_NOTHING = ("tools", "training")  # folders that decide no served number


# ---- the programs


class Slots(NamedTuple):
    """What the device knows of every slot; all of it is written by `begin` and moved on by `sample`."""

    tables: Any  # [slots, P] int32: the pages of the slot's sequence
    position: Any  # [slots] int32: where the last token stands
    token: Any  # [slots] int32: the last token
    begun: Any  # [slots, D] float32: the hidden state that prefill left for the first token
    bias: Any  # [slots, V] float32
    counts: Any  # [slots, V] int32: of the tokens sampled
    rows: Rows


class SlotEntry(NamedTuple):
    """What a candidate brings into its slot."""

    slot: Any  # int32
    table: Any  # [P] int32
    position: Any  # int32: of the prompt's last token
    hidden: Any  # [D] float32
    bias: Any  # [V] float32
    rows: Rows  # scalars
    copy_from: Any  # int32: the prompt's partly filled last page,
    copy_to: Any  # int32: and the candidate's own; both the scratch page if there is nothing to copy


def prefill(
    config: ModelConfig, kernels: Kernels, params: Params, cache: Cache, batch: Batch, last: Array
) -> tuple[Array, Array, Cache]:
    """One chunk of one prompt, [1, chunk] → hidden states [chunk, D], that of row `last` [D], and the pages."""
    x, cache = hidden_states(config, kernels, params, batch, cache)
    return x[0], x[0, last], cache


def decode(
    config: ModelConfig, kernels: Kernels, params: Params, cache: Cache, slots: Slots, live: Array
) -> tuple[Array, Cache]:
    """The last token of every live slot → hidden states [slots, D], and the pages."""
    batch = Batch(slots.token[:, None], slots.position[:, None], live[:, None], slots.tables)
    x, cache = hidden_states(config, kernels, params, batch, cache)
    return x[:, 0], cache


def sample_slots(
    config: ModelConfig,
    kernels: Kernels,
    whole: NamedSharding,
    params: Params,
    slots: Slots,
    hidden: Array,
    is_new: Array,
    running: Array,
) -> tuple[Sampled, Slots]:
    """The one head and one sampler: a token for every running slot; new ones have their hidden state in `begun`."""
    logits = unembed(config, params, jnp.where(is_new[:, None], slots.begun, hidden), over(running, kernels.linear))
    drawn = kernels.draw(_constrain(logits, whole), slots.bias, slots.counts, slots.rows, running)
    ones = running.astype(jnp.int32)
    return drawn, slots._replace(
        token=drawn.token,
        position=slots.position + ones,
        counts=slots.counts.at[jnp.arange(len(ones)), drawn.token].add(ones),
        rows=slots.rows._replace(step=slots.rows.step + ones.astype(jnp.uint32)),
    )


def _constrain(x: Array, home: NamedSharding) -> Array:
    constrained: Array = jax.lax.with_sharding_constraint(x, home)  # type: ignore[no-untyped-call]
    return constrained


def score(
    config: ModelConfig,
    kernels: Kernels,
    whole: NamedSharding,
    params: Params,
    hidden: Array,
    targets: Array,
    count: Array,
) -> Reported:
    """What is reported of the first `count` of targets [chunk], given hidden [chunk, D]."""
    live = jnp.arange(len(targets)) < count
    logits = _constrain(unembed(config, params, hidden, over(live, kernels.linear)), whole)
    return kernels.report(logits, targets, live)


def begin(cache: Cache, slots: Slots, entry: SlotEntry) -> tuple[Cache, Slots]:
    """A candidate enters a slot: its row of every array is set, its counts cleared, its partial page copied."""
    i, (to, origin) = entry.slot, (entry.copy_to, entry.copy_from)
    copied = [(k.at[to].set(k[origin]), v.at[to].set(v[origin])) for k, v in cache]
    return copied, Slots(
        tables=slots.tables.at[i].set(entry.table),
        position=slots.position.at[i].set(entry.position),
        token=slots.token,
        begun=slots.begun.at[i].set(entry.hidden),
        bias=slots.bias.at[i].set(entry.bias),
        counts=slots.counts.at[i].set(0),
        rows=Rows(*(row.at[i].set(value) for row, value in zip(slots.rows, entry.rows, strict=True))),
    )


class Program(NamedTuple):
    """A function to compile, its arguments, which of them it may overwrite, and where its results live."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]  # arrays, or what they are like: shape, dtype, where they live
    donated: tuple[int, ...]
    results: Any  # shardings, a prefix of the results' tree

    def jitted(self, whole: NamedSharding) -> Any:
        """What comes from the host goes whole to every device."""
        homes = jax.tree.map(lambda leaf: getattr(leaf, "sharding", whole), self.arguments)
        return jax.jit(self.function, donate_argnums=self.donated, in_shardings=homes, out_shardings=self.results)


def abstract(tree: Any, home: NamedSharding) -> Any:
    """What the arrays of a tree are like, wherever they are now, when they live at `home`."""

    def like(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=home)  # type: ignore[no-untyped-call]

    return jax.tree.map(like, tree)


def rows_of(params: SamplingParams, key: DrawKey) -> Rows:
    """The sampling parameters of one candidate and its next draw's key, as scalars."""
    return Rows(
        temperature=np.float32(max(params.temperature, LOWEST_TEMPERATURE)),
        top_p=np.float32(params.top_p),
        frequency_penalty=np.float32(params.frequency_penalty),
        presence_penalty=np.float32(params.presence_penalty),
        is_greedy=np.bool_(params.temperature == 0),
        is_nucleus=np.bool_(params.temperature != 0 and params.top_p != 1),
        is_biased=np.bool_(bool(params.logit_bias)),
        seed_high=np.uint32(key.seed % 2**64 >> 32),
        seed_low=np.uint32(key.seed % 2**32),
        candidate=np.uint32(key.candidate),
        step=np.uint32(key.step),
    )


# ---- the device


class Placed(NamedTuple):
    params: Params
    digest: bytes  # of the weights' bits


def place(checkpoint: Checkpoint, layout: sharding.Layout, dtype: Any, packer: Packer | None) -> Placed:
    """The weights on their devices, one after the other, and packed if the kernels want it so; experts of a layer are
    one array a projection, [E, …]. They are hashed on their way, as they are before they are packed: reading them back
    would leave a second copy in the host's memory."""
    digests: dict[str, bytes] = {}

    def put(place: ParamPath, array: NDArray[Any]) -> Any:
        host = sharding.ready(array, dtype)
        digests[repr(place)] = hashlib.sha256(host.view(np.uint8).data).digest()
        name = str(place[-1])
        if packer is None or host.ndim == 1 or name == "embed_positions":  # of which rows are taken and no more
            return layout.put(name, host)
        return host if "experts" in place else packer.weight(host)

    def stacked(layer: Mapping[str, Any]) -> Mapping[str, Any]:
        mlp = layer["mlp"]
        if "experts" not in mlp:
            return layer
        stacks: dict[str, Any] = {}
        for name in list(mlp["experts"][0]):
            weights = [expert.pop(name) for expert in mlp["experts"]]
            stacks[name] = layout.stack(name, weights) if packer is None else packer.stack(weights)
        return {**layer, "mlp": {**mlp, "experts": stacks}}

    params = checkpoint.read(put)
    tied = params["lm_head"] is params["embed_tokens"]
    params["layers"] = [stacked(layer) for layer in params["layers"]]
    return Placed(params, hashlib.sha256(repr((tied, sorted(digests.items()))).encode()).digest())


def _sources() -> bytes:
    """A hash of every source that decides a served number."""
    wing = Path(__file__).parent
    own = sources_hash(wing, SERVE_NOTHING, (".py", ".cc", ".h"))
    return hashlib.sha256(own + sources_hash(wing.parent / "reference")).digest()


class Device:
    """A model's weights, pages and slots on the device, and its compiled programs.

    Not thread-safe: one thread owns it.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        settings: SizedSettings,
        kernels: ChosenKernels,
        pages: int,
        progress: Callable[[str], None],
        announce: Callable[[str], None],
    ) -> None:
        self.config = checkpoint.config
        self.settings = settings
        self.pages = pages
        self.layout = sharding.layout(self.config, settings.tensor_parallel)
        self.kernels = kernels
        progress(f"reading the weights: {checkpoint.parameter_count:,} parameters")
        dtype = jnp.dtype(settings.dtype)
        self.params, self.weights_digest = place(checkpoint, self.layout, dtype, self.kernels.packer)
        self.table_width = -(-self.config.max_position_embeddings // settings.page_size) + 1
        self.compiled = self._compile(progress, announce)
        give_back()
        self.clear()  # no sooner: while programs are compiled, nothing large is there but the weights
        self.fingerprint = self._fingerprint()
        self.slots = self._empty_slots()  # what the probe wrote into pages is read by nobody
        give_back()

    def _compile(self, progress: Callable[[str], None], announce: Callable[[str], None]) -> dict[str, Any]:
        programs = self.programs()
        kept = Programs(self.settings.compilation_cache, repr((self._decides(), _sources())), announce)
        if not kept.complete:
            about = ""
            if jax.default_backend() == "cpu":
                seconds = COMPILE_SECONDS + COMPILE_SECONDS_A_LAYER * self.config.num_hidden_layers
                about = f": about {seconds:.0f} s, the first time only"
            announce(f"compiling {len(programs)} programs for {self.config.num_hidden_layers} layers{about}")
        compiled = {}
        for name, program in programs.items():
            started = time.monotonic()
            compiled[name] = kept.compile(program.jitted(self.layout.whole).lower(*program.arguments))
            progress(f"compiled {name} in {time.monotonic() - started:.1f} s")
        kept.finish()
        return compiled

    def clear(self) -> None:
        """Empty pages and slots. Those that were there are let go first: both at a time may be more than there is."""
        for old in ("cache", "slots"):
            vars(self).pop(old, None)
        nothing = np.zeros((self.settings.slots, self.config.hidden_size), np.float32)
        self.nothing = jax.device_put(nothing, self.layout.whole)
        self.cache = self._empty_cache()
        self.slots = self._empty_slots()

    def _empty_cache(self) -> Cache:
        s, home = self.settings, self.layout.sharding("keys")
        return empty_cache(self.config, self.pages + 1, s.page_size, cache_dtype(s), home)

    def _empty_slots(self) -> Slots:
        empty: Slots = jax.device_put(self._nobody(), self.layout.whole)
        return empty

    def _nobody(self) -> Slots:
        """All slots, with nobody in them, on the host."""
        s = self.settings
        nobody = Rows(*(np.zeros(s.slots, value.dtype) for value in rows_of(SamplingParams(), FIRST)))
        return Slots(
            tables=np.full((s.slots, self.table_width), SCRATCH_PAGE, np.int32),
            position=np.zeros(s.slots, np.int32),
            token=np.zeros(s.slots, np.int32),
            begun=np.zeros((s.slots, self.config.hidden_size), np.float32),
            bias=np.zeros((s.slots, self.config.vocab_size), np.float32),
            counts=np.zeros((s.slots, self.config.vocab_size), np.int32),
            rows=nobody._replace(is_greedy=np.ones(s.slots, bool)),
        )

    def programs(self) -> dict[str, Program]:
        """Every program that the engine runs, for arguments of its one shape, and no others. Of what lives on the
        device only the weights need to be there."""
        s, D, whole = self.settings, self.config.hidden_size, self.layout.whole
        nobody = np.zeros(s.slots, bool)
        hidden = {rows: abstract(np.zeros((rows, D), np.float32), whole) for rows in (s.slots, s.chunk)}
        last = abstract(np.zeros(D, np.float32), whole)
        pages = [(self.layout.sharding("keys"), self.layout.sharding("values"))] * self.config.num_hidden_layers
        cache = abstract(jax.eval_shape(self._empty_cache), self.layout.sharding("keys"))
        slots = abstract(self._nobody(), whole)
        entry = self._entry(0, [], 1, last, SamplingParams(), FIRST, None)
        return {
            "prefill": Program(
                partial(prefill, self.config, self.kernels.many),
                (self.params, cache, self._chunk([], [], 0), np.int32(0)),
                (1,),
                (whole, whole, pages),
            ),
            "decode": Program(
                partial(decode, self.config, self.kernels.few),
                (self.params, cache, slots, nobody),
                (1,),
                (whole, pages),
            ),
            "sample": Program(
                partial(sample_slots, self.config, self.kernels.few, whole),
                (self.params, slots, hidden[s.slots], nobody, nobody),
                (1,),
                whole,
            ),
            "score": Program(
                partial(score, self.config, self.kernels.few, whole),
                (self.params, hidden[s.chunk], np.zeros(s.chunk, np.int32), np.int32(0)),
                (),
                whole,
            ),
            "begin": Program(begin, (cache, slots, entry), (0, 1), (pages, whole)),
        }

    # ---- calls

    def prefill(self, ids: Sequence[int], pages: Sequence[int], start: int) -> tuple[Array, Array]:
        """Positions `start` and on of a prompt → hidden states [chunk, D], and that of the last id, [D]."""
        hidden, last, self.cache = self.compiled["prefill"](
            self.params, self.cache, self._chunk(ids, pages, start), np.int32(len(ids) - 1)
        )
        return hidden, last

    def score(self, hidden: Array, following: Sequence[int]) -> Reported:
        """What is reported of the ids after a chunk's positions, and of others beyond them, [chunk]."""
        targets = np.zeros(self.settings.chunk, np.int32)
        targets[: len(following)] = following
        scored: Reported = self.compiled["score"](self.params, hidden, targets, np.int32(len(following)))
        return scored

    def begin(
        self,
        slot: int,
        pages: Sequence[int],
        prompt_length: int,
        hidden: Array,
        params: SamplingParams,
        key: DrawKey,
        copy: tuple[int, int] | None,
    ) -> None:
        """A candidate enters a slot. hidden: what prefill gave for the prompt's last id; key: of its first draw;
        copy: a page (from, to)."""
        entry = self._entry(slot, pages, prompt_length, hidden, params, key, copy)
        self.cache, self.slots = self.compiled["begin"](self.cache, self.slots, entry)

    def step(self, running: Collection[int], new: Collection[int]) -> Sampled:
        """One token for every running slot; `new` are those that have none yet."""
        is_running, is_new = self._among(running), self._among(new)
        hidden = self.nothing
        if len(new) < len(running):
            hidden, self.cache = self.compiled["decode"](self.params, self.cache, self.slots, is_running & ~is_new)
        drawn: Sampled
        drawn, self.slots = self.compiled["sample"](self.params, self.slots, hidden, is_new, is_running)
        return drawn

    # ---- arguments

    def _among(self, slots: Collection[int]) -> NDArray[np.bool_]:
        """Which of all slots these are."""
        among = np.zeros(self.settings.slots, bool)
        among[list(slots)] = True
        return among

    def _chunk(self, ids: Sequence[int], pages: Sequence[int], start: int) -> Batch:
        chunk = self.settings.chunk
        tokens = np.zeros((1, chunk), np.int32)
        tokens[0, : len(ids)] = ids
        positions = start + np.arange(chunk, dtype=np.int32)
        return Batch(tokens, positions[None], np.arange(chunk)[None] < len(ids), self._table(pages)[None])

    def _entry(
        self,
        slot: int,
        pages: Sequence[int],
        prompt_length: int,
        hidden: Array,
        params: SamplingParams,
        key: DrawKey,
        copy: tuple[int, int] | None,
    ) -> SlotEntry:
        bias = np.zeros(self.config.vocab_size, np.float32)
        for v, value in (params.logit_bias or {}).items():
            bias[v] = value
        copy_from, copy_to = copy or (SCRATCH_PAGE, SCRATCH_PAGE)
        rows = rows_of(params, key)
        at = (np.int32(slot), self._table(pages), np.int32(prompt_length - 1))
        return SlotEntry(*at, hidden, bias, rows, np.int32(copy_from), np.int32(copy_to))

    def _table(self, pages: Sequence[int]) -> np.ndarray[Any, np.dtype[np.int32]]:
        table = np.full(self.table_width, SCRATCH_PAGE, np.int32)
        table[: len(pages)] = pages
        return table

    # ---- the fingerprint

    def _fingerprint(self) -> str:
        """A hash of all that decides the numbers, and of the output bits of every program on a fixed probe."""
        decides = dict(self._decides())
        if self.kernels.are_native:
            del decides["sizes"]  # natively a row's bits are its own, however many there are
        digest = hashlib.sha256(_sources())
        digest.update(repr(decides).encode())
        digest.update(self.weights_digest)
        for results in self._probe():
            for bits in jax.tree.leaves(results):
                digest.update(np.asarray(bits).tobytes())
        return "gnomon-jax-" + digest.hexdigest()[:16]

    def _decides(self) -> Mapping[str, Any]:
        """What the programs depend on, the weights' values and our source aside."""
        device, s = jax.devices()[0], self.settings
        flags = [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]
        return {
            "versions": (jax.__version__, version("jaxlib")),
            "device": (device.platform, device.device_kind, platform.machine(), os.cpu_count(), flags),
            "products": self.kernels.description,
            "mesh": dict(self.layout.mesh.shape),
            "shapes": (s.page_size, s.chunk, str(s.dtype), str(cache_dtype(s))),
            "sizes": (s.slots, self.pages),
            "model": self.config,
        }

    def _probe(self) -> Iterator[Any]:
        s, V = self.settings, self.config.vocab_size
        ids = [(7 * i + 1) % V for i in range(max(1, min(s.chunk, self.config.max_position_embeddings - 2)))]
        pages = range(1, -(-(len(ids) + 2) // s.page_size) + 1)
        hidden, last = self.prefill(ids, pages, 0)
        yield hidden[: len(ids)], last, self.score(hidden, ids[1:])  # of other rows nothing is computed
        params = SamplingParams(temperature=0.7, top_p=0.9)
        self.begin(0, pages, len(ids), last, params, DrawKey(1, 0, 0), None)
        for new in ([0], []):
            yield [rows[0] for rows in self.step([0], new)]
