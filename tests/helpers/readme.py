"""The tables of the documents, made from the tables in the code: the request's fields in reference/README.md, the
server's options in http/README.md. Run this file to write them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from gnomon.http.cli.options import markdown_table
from gnomon.http.cli.serve import SERVE_ROWS
from gnomon.reference.request import FIELDS, Field

README = Path(__file__).resolve().parents[2] / "README.md"
PARAMETERS = README.parent / "reference" / "README.md"
OPERATING = README.parent / "http" / "README.md"
BEGIN, END = "<!-- table: written by tests/helpers/readme.py -->", "<!-- end of table -->"

TESTS = {  # field → the test to read first
    "model": "reference/test_completion.py::test_an_unknown_model_is_not_found",
    "prompt": "reference/test_prompt.py::test_null_and_the_empty_string_are_the_end_of_text_token",
    "suffix": "reference/test_suffix.py::test_the_prompt_is_prefix_suffix_middle",
    "max_tokens": "reference/test_prompt.py::test_prompt_and_max_tokens_beyond_the_context_are_refused_never_clamped",
    "n": "reference/test_completion.py::test_choice_1_of_2_is_choice_1_of_4",
    "best_of": "reference/test_best_of.py::test_best_of_is_the_n_request_sorted_by_mean",
    "temperature": "reference/test_sampler.py::test_temper_divides_the_distances_from_the_maximum",
    "top_p": "reference/test_sampler.py::test_the_token_that_crosses_top_p_is_kept_and_the_one_after_equality_is_not",
    "frequency_penalty": "reference/test_sampler.py::test_frequency_counts_each_time_and_presence_once",
    "presence_penalty": "reference/test_completion.py::test_penalties_count_a_candidates_own_tokens_and_not_the_prompt",
    "logit_bias": "reference/test_sampler.py::test_a_bias_of_minus_100_is_minus_100_and_not_never",
    "logprobs": "reference/test_logprobs.py::test_values_do_not_depend_on_how_the_token_was_chosen_or_is_shown",
    "echo": "reference/test_echo.py::test_scores_are_those_of_each_token_given_the_ones_before_it",
    "stop": "reference/test_stop.py::test_a_completion_ends_where_generating_a_character_at_a_time_would_end",
    "seed": "reference/test_sampler.py::test_the_noise_of_a_draw_belongs_to_seed_candidate_step_and_id_only",
    "stream": "reference/test_chunks.py::test_chunks_joined_are_the_whole_and_show_nothing_that_may_be_cut",
    "stream_options": "reference/test_chunks.py"
    "::test_include_usage_is_null_on_every_chunk_and_then_one_chunk_without_choices",
    "user": "reference/test_request.py::test_user_is_accepted_and_changes_nothing_else",
}


def default(field: Field) -> str:
    return "required" if field.required else f"`{json.dumps(field.default)}`"


def fields_table() -> str:
    rows = ["| field | default | allowed | what it does | where | test |", "|---|---|---|---|---|---|"]
    for field in FIELDS:
        allowed = field.allowed.replace("|", "\\|")
        file, test = TESTS[field.name].split("::")
        link = f"[{test.removeprefix('test_').replace('_', ' ')}](../tests/{file})"
        rows.append(f"| `{field.name}` | {default(field)} | {allowed} | {field.meaning} | `{field.where}` | {link} |")
    return "\n".join(rows)


DOCUMENTS: dict[Path, Callable[[], str]] = {PARAMETERS: fields_table, OPERATING: lambda: markdown_table(SERVE_ROWS)}


def with_table(document: Path) -> str:
    """A document's text with its table as it should be."""
    before, rest = document.read_text(encoding="utf-8").split(BEGIN)
    return f"{before}{BEGIN}\n{DOCUMENTS[document]()}\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_table(document), encoding="utf-8")
