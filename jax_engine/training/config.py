"""What the model is, and how it is trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from gnomon.jax_engine.training.data import DataError


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The shape of the model, in the words of a Hugging Face config.json."""

    vocab_size: int = 2048  # V
    hidden_size: int = 192  # D
    num_hidden_layers: int = 4  # L
    num_attention_heads: int = 6  # N
    num_key_value_heads: int = 2  # K
    head_dim: int = 32  # H
    intermediate_size: int = 512  # F
    max_position_embeddings: int = 512
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise DataError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.head_dim % 2:
            raise DataError("head_dim must be even: rotary embeddings turn pairs")


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a model is trained. `tokens` and `decay` may change when an interrupted run is resumed."""

    model: ModelShape = dataclasses.field(default_factory=ModelShape)
    tokens: int = 15_500_000  # tokens seen in all; the decay ends there
    batch_tokens: int = 4096  # tokens a step, B*T
    ramp_tokens: int = 1_000_000  # until then steps are half as large
    short_context: int = 256  # T at first: attention costs less
    context: int = 512  # T in the end
    context_part: float = 0.25  # the last part of `tokens`, in rows of `context`
    warmup_steps: int = 50
    decay: float = 0.55  # the last part of `tokens`, in which the learning rate falls to zero
    muon_rate: float = 0.02
    adam_rate: float = 0.006
    weight_decay: float = 0.05  # on the hidden matrices, times the learning rate
    newton_schulz_steps: int = 5
    fim_rate: float = 0.5  # of the documents, cut for fill-in-the-middle
    middle_weight: float = 4.0  # of a middle's tokens in the loss during the decay; before it, all count one
    seed: int = 0
    checkpoint_minutes: float = 4.0
    held_out_every: int = 500_000  # tokens between two measurements of the held-out loss
    held_out_stories: int = 40  # of the held-out file, measured during training

    def __post_init__(self) -> None:
        if self.batch_tokens % (2 * self.context) or self.batch_tokens % (2 * self.short_context):
            raise DataError("batch_tokens must be an even multiple of context and of short_context")
        if not (0 < self.decay <= 1 and 0 <= self.context_part <= 1 and 0 <= self.fim_rate <= 1):
            raise DataError("decay, context_part and fim_rate are parts of 1; decay is not 0")
        if self.context > self.model.max_position_embeddings:
            raise DataError("context exceeds the model's max_position_embeddings")
