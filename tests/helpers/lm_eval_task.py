"""A small evaluation of our own for lm-evaluation-harness: a dozen items over all kinds of request it makes.

`loglikelihood` (last words, and texts too long for the context), `multiple_choice` (which end fits),
`loglikelihood_rolling` (a whole text from the beginning) and `generate_until` (greedy, with stop strings). Nothing is
downloaded: the documents are below, and the harness is handed task objects.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

Doc = dict[str, Any]

STORIES = (
    "Mia had a small red boat. She put it in the pond and the wind pushed it to the other side.",
    "The old dog could not see well, but he could smell the bread that Tom had in his bag.",
    "It rained all day. Anna and her brother built a house of pillows and told each other stories in it.",
)
LAST_WORDS: tuple[Doc, ...] = (
    {"context": "The cat sat on the", "continuation": " mat"},
    {"context": "Ben was sad because he had lost his", "continuation": " favorite toy."},
    {"context": '"Can I have an apple?" she asked. Her mom said,', "continuation": ' "Yes, you can!"'},
    {"context": "In the café they drank", "continuation": " çay ☕."},
    {"context": "", "continuation": "Once upon a time"},
)
CHOICES: tuple[Doc, ...] = (
    {
        "question": "Lily planted a seed and gave it water. After a week there was",
        "choices": ["a flower", "a loud truck", "no more soup in the pot"],
        "answer": 0,
    },
    {
        "question": "Sam's ice cream fell on the ground. Sam",
        "choices": ["flew", "began to cry", "was made of stone and very old"],
        "answer": 1,
    },
    {
        "question": "The sun went down and the birds went to",
        "choices": ["school", "the shop to buy a hat", "sleep"],
        "answer": 2,
    },
)
BEGINNINGS: tuple[Doc, ...] = (
    {"context": "Once upon a time, there was a", "continuation": ""},
    {"context": "Max and his mom went to the", "continuation": ""},
)


def tasks(more_last_words: Sequence[Doc] = ()) -> list[Any]:
    """The harness's task objects; `more_last_words` are added to the loglikelihood items."""
    common = {"doc_to_text": "{{context}}", "doc_to_target": "{{continuation}}", "target_delimiter": ""}
    accuracy = {"metric": "acc", "aggregation": "mean", "higher_is_better": True}
    return [
        _task("last_words", "loglikelihood", (*LAST_WORDS, *more_last_words), [accuracy], **common),
        _task(
            "which_end",
            "multiple_choice",
            CHOICES,
            [accuracy],
            doc_to_text="{{question}}",
            doc_to_target="{{answer}}",
            doc_to_choice="{{choices}}",
        ),
        _task(
            "whole_stories",
            "loglikelihood_rolling",
            [{"text": story} for story in STORIES],
            [{"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False}],
            doc_to_text="",
            doc_to_target="{{text}}",
        ),
        _task(
            "go_on",
            "generate_until",
            BEGINNINGS,
            [{"metric": "bypass", "aggregation": "bypass", "higher_is_better": False}],
            generation_kwargs={"until": [".", "\n"], "max_gen_toks": 12, "do_sample": False, "temperature": 0},
            **common,
        ),
    ]


def _task(name: str, output_type: str, docs: Sequence[Doc], metrics: list[Doc], **entries: Any) -> Any:
    datasets, api = import_module("datasets"), import_module("lm_eval.api.task")  # of an extra that may be missing
    config = {
        "task": name,
        "output_type": output_type,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(list(docs))},
        "test_split": "test",
        "metric_list": metrics,
        "metadata": {"version": 1},
        **entries,
    }
    return api.ConfigurableTask(config=config)
