"""What checkpoints call their tensors, and which of them hold several projections: rows only.

tensor_table.py reads them; families.py says whose they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple


class Fused(NamedTuple):
    """Several projections in one tensor: one below the other, or by groups of heads, each with its queries, its key
    and its value."""

    name: str
    of: tuple[str, ...]
    by_heads: bool = False


@dataclass(frozen=True, slots=True)
class TensorNames:
    """Where a checkpoint keeps what: our name → its name, `.weight` and `.bias` aside."""

    layers: str  # what comes before the names of layer {i}
    outer: Mapping[str, str]
    layer: Mapping[str, str]
    fused: tuple[Fused, ...] = ()
    are_transposed: bool = False  # matrices of layers are stored [in, out]
    masks: tuple[str, ...] = ()  # ends of names under which older files keep attention's masks
    other_head: str = ""  # another name of the head

    @property
    def prefix(self) -> str:
        """What files of a class without a head leave out before every name, and GPT-2's first files did."""
        return self.layers.partition(".")[0] + "."


ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
QKV = ATTENTION[:3]
MLP = ("gate_proj", "up_proj", "down_proj")


def same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


SELF_ATTN = tuple(f"self_attn.{name}" for name in ATTENTION)
LLAMA_OUTER = {"embed_tokens": "model.embed_tokens", "norm": "model.norm", "lm_head": "lm_head"}
LLAMA = TensorNames(
    "model.layers.{i}.",
    LLAMA_OUTER,
    same("input_layernorm", *SELF_ATTN, "post_attention_layernorm", *(f"mlp.{name}" for name in MLP)),
)
NORMED = same("self_attn.q_norm", "self_attn.k_norm")
FEED_FORWARD_NORMS = same("pre_feedforward_layernorm", "post_feedforward_layernorm")


def llama_with(*more: Mapping[str, str], without: tuple[str, ...] = (), fused: tuple[Fused, ...] = ()) -> TensorNames:
    layer = {our: their for our, their in LLAMA.layer.items() if our not in without}
    for names in more:
        layer |= names
    return TensorNames(LLAMA.layers, LLAMA_OUTER, layer, fused)


EXPERTS = {f"mlp.experts.{name}": f"mlp.experts.{{e}}.{name}" for name in MLP}
MIXTRAL_EXPERTS = {
    "mlp.router": "block_sparse_moe.gate",
    "mlp.experts.gate_proj": "block_sparse_moe.experts.{e}.w1",
    "mlp.experts.down_proj": "block_sparse_moe.experts.{e}.w2",
    "mlp.experts.up_proj": "block_sparse_moe.experts.{e}.w3",
}
PLAIN_MLP = tuple(f"mlp.{name}" for name in MLP)
GPT2 = TensorNames(
    "transformer.h.{i}.",
    {"embed_tokens": "transformer.wte", "embed_positions": "transformer.wpe", "norm": "transformer.ln_f",
     "lm_head": "lm_head"},
    {"input_layernorm": "ln_1", "self_attn.o_proj": "attn.c_proj", "post_attention_layernorm": "ln_2",
     "mlp.up_proj": "mlp.c_fc", "mlp.down_proj": "mlp.c_proj"},
    (Fused("attn.c_attn", tuple(f"self_attn.{name}" for name in QKV)),),
    are_transposed=True,
    masks=("attn.bias", "attn.masked_bias"),
)  # fmt: skip
NEOX = TensorNames(
    "gpt_neox.layers.{i}.",
    {"embed_tokens": "gpt_neox.embed_in", "norm": "gpt_neox.final_layer_norm", "lm_head": "embed_out"},
    {**same("input_layernorm", "post_attention_layernorm"), "self_attn.o_proj": "attention.dense",
     "mlp.up_proj": "mlp.dense_h_to_4h", "mlp.down_proj": "mlp.dense_4h_to_h"},
    (Fused("attention.query_key_value", tuple(f"self_attn.{name}" for name in QKV), by_heads=True),),
    masks=("attention.bias", "attention.masked_bias"),
    other_head="lm_head",
)  # fmt: skip
STARCODER2 = TensorNames(
    LLAMA.layers,
    LLAMA_OUTER,
    {**same("input_layernorm", *SELF_ATTN, "post_attention_layernorm"), "mlp.up_proj": "mlp.c_fc",
     "mlp.down_proj": "mlp.c_proj"},
)  # fmt: skip
PHI = TensorNames(
    LLAMA.layers,
    {**LLAMA_OUTER, "norm": "model.final_layernorm"},
    {**same("input_layernorm", *SELF_ATTN[:3]), "self_attn.o_proj": "self_attn.dense", "mlp.up_proj": "mlp.fc1",
     "mlp.down_proj": "mlp.fc2"},
)  # fmt: skip
