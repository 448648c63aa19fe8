"""`python -m gnomon.jax_engine.training`: run, export, evaluate. What each does is in the files beside this one."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer

from gnomon.jax_engine.runtime.backend import NoDevice, require_devices
from gnomon.jax_engine.training.config import TrainConfig
from gnomon.jax_engine.training.data import (
    HELD_OUT_FILE,
    TRAIN_FILE,
    DataError,
    find_corpus,
    read_stories,
    train_tokenizer,
)
from gnomon.jax_engine.training.export import export, load_export
from gnomon.jax_engine.training.judges import held_out_loss, join_check, make_scorer
from gnomon.jax_engine.training.loop import train
from gnomon.jax_engine.training.state import load_state


def run_train(args: argparse.Namespace) -> None:
    """`run`: train, or go on with what is in --out."""
    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    stories = read_stories(find_corpus(args.data, TRAIN_FILE))
    held_out = read_stories(find_corpus(args.data, HELD_OUT_FILE))
    state = None
    if (folder / "checkpoint.safetensors").is_file():
        config, state = load_state(folder)
    else:
        config = TrainConfig(seed=args.seed)
    config = dataclasses.replace(config, tokens=args.tokens or config.tokens, decay=args.decay or config.decay)
    vocabulary = folder / "tokenizer.json"
    if not vocabulary.is_file():
        train_tokenizer(stories, config.model.vocab_size).save(str(vocabulary))
    train(config, stories, held_out, Tokenizer.from_file(str(vocabulary)), folder, state)


def run_export(args: argparse.Namespace) -> None:
    """`export`: the run folder's checkpoint as a Hugging Face directory."""
    config, state = load_state(Path(args.run_folder))
    tokenizer = Tokenizer.from_file(str(Path(args.run_folder) / "tokenizer.json"))
    export(config.model, state.params, tokenizer, Path(args.out))
    print(f"{args.out}: the model after {state.position.tokens:,} tokens")


def run_evaluate(args: argparse.Namespace) -> None:
    """`evaluate`: the two measurements of the model card, of any directory that holds such a model."""
    config, params, tokenizer = load_export(Path(args.directory))
    stories = read_stories(find_corpus(args.data, HELD_OUT_FILE))
    context = config.max_position_embeddings
    loss = held_out_loss(make_scorer(config), params, tokenizer, stories, context)
    print(f"held-out loss: {loss:.4f} nats per byte, {len(stories)} stories")
    check = join_check(config, params, tokenizer, stories * 3, most=128)
    print(
        f"mean log-probability of a suffix token, {check.cuts} cuts: after the model's middle {check.fim:.3f}, "
        f"after a blind continuation {check.blind:.3f} (standard error of the difference {check.error:.3f}), "
        f"after the true middle {check.true:.3f}; "
        f"the middle joins better in {check.fim_better}, ends by itself in {check.ended}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m gnomon.jax_engine.training")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("run", help="train, or go on after an interruption")
    command.add_argument("--data")
    command.add_argument("--out", required=True)
    command.add_argument("--tokens", type=int)
    command.add_argument("--decay", type=float)
    command.add_argument("--seed", type=int, default=0)
    command.set_defaults(run=run_train)
    command = commands.add_parser("export", help="write the checkpoint as a Hugging Face directory")
    command.add_argument("run_folder")
    command.add_argument("out")
    command.set_defaults(run=run_export)
    command = commands.add_parser("evaluate", help="held-out loss and suffix check of a directory")
    command.add_argument("directory")
    command.add_argument("--data")
    command.set_defaults(run=run_evaluate)
    args = parser.parse_args(argv)
    try:
        require_devices()
        args.run(args)
    except (DataError, NoDevice) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
