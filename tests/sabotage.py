"""Breaks the source on purpose, one way at a time, and expects a named test to turn red: who guards the guards.

    python tests/sabotage.py            all breaks, a line each; exit 1 if one survives
    python tests/sabotage.py --list     what they are
    python tests/sabotage.py --only N   only those whose name contains N
    python tests/sabotage.py --every N  one of N

How a break is tried:

    1 copy    source and tests go to a temporary folder, from which steps 2 and 3 import (that is checked)
    2 green   on the unbroken copy every named test passes
    3 red     one piece of text, which must occur exactly once, is replaced in the copy; the named test must now fail
              by an assertion of its own. An import error, a crash or a skip is not red.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("reference", "jax_engine", "http")
SECONDS = 300  # for one break; on an idle machine all of them together take some minutes


class Break(NamedTuple):
    """A mistake one could make."""

    name: str
    file: str
    old: str
    new: str
    test: str  # file::function below tests/, or one case of it


SAMPLER, PRNG, ENGINE, MODEL = "reference/sampler.py", "reference/prng.py", "reference/engine.py", "reference/model.py"
COMPLETION, REQUEST, TOKENIZER = "reference/completion.py", "reference/request.py", "reference/tokenizer.py"
WRITING, SIZE, STRICT = "reference/body/writing.py", "reference/body/answer_size.py", "reference/body/strict_json.py"
DECODERS, ADDED = "reference/text/decoders.py", "reference/text/added_tokens.py"
GOLDEN_JUDGE, INFILL = "reference/golden/judge.py", "reference/text/infill.py"
REPLAY, EXPLAIN, PICTURE = "reference/trace/replay.py", "reference/trace/explain.py", "reference/trace/picture.py"
RETRACE, LIFE = "http/trace.py", "http/life.py"
TOKEN_LENGTH = "reference/text/token_length.py"
PROMPT, STOP = "reference/prompt.py", "reference/stop.py"

ARRIVAL = "http/verify/cases/arrival.py"
ROOTS = "http/verify/roots.py"
ODD_MODELS = "http/verify/test_verify_odd_models.py"

BREAKS = (
    # ---- what waits, in bytes
    Break(
        "a run keeps the texts of its request",
        COMPLETION,
        'replace(request, prompts=(), suffix="", user=None)',
        "request",
        "reference/body/test_memory.py::test_a_waiting_prompt_is_four_bytes_a_token_and_no_text_unless_it_is_echoed",
    ),
    Break(
        "candidates are made while a run waits",
        COMPLETION,
        "self._candidates: dict[tuple[int, int], Candidate] = {}",
        "self._candidates: dict[tuple[int, int], Candidate] = {\n"
        "            (j, c): Candidate(tokenizer, StopMatcher(request.stop, self._tables), params)\n"
        "            for j in range(len(prompts))\n"
        "            for c in range(request.candidates)\n"
        "        }",
        "reference/body/test_memory.py::test_a_waiting_run_has_no_candidates_yet",
    ),
    Break(
        "a stop string's table is made whole at once",
        STOP,
        "while len(lengths) <= k:",
        "while len(lengths) <= len(stop):",
        "reference/body/test_memory.py::test_a_stop_strings_table_is_made_only_as_far_as_a_text_comes_in_it",
    ),
    Break(
        "a stop string may be twice as long",
        REQUEST,
        "if len(text) > most:",
        "if len(text) > 2 * most:",
        "reference/test_request.py::test_a_stop_string_and_a_user_have_at_most_1024_characters",
    ),
    Break(
        "entries of a bias are not counted in bytes",
        "reference/body/kept.py",
        "sys.getsizeof(bias) + len(bias) * BIAS_ENTRY_BYTES if bias else 0",
        "0",
        "reference/body/test_memory.py::test_what_is_counted_of_a_run_is_what_it_takes_within_a_factor_of_two",
    ),
    Break(
        "the bytes that wait are not bounded",
        "http/admission.py",
        "        self.check_bytes(answer.bytes)\n",
        "",
        "reference/body/test_memory.py::test_the_bytes_that_may_wait_are_bounded_beside_the_requests_and_the_tokens",
    ),
    Break(
        "bodies that arrive are not bounded together",
        "http/admission.py",
        "            self._admission.check_bytes(0)\n",
        "            pass\n",
        "reference/body/test_memory.py::test_bodies_that_are_arriving_count_among_the_bytes_that_wait",
    ),
    Break(
        "an error that was told keeps its request",
        "http/errors.py",
        "error.__traceback__ = error.__context__ = error.__cause__ = None",
        "pass",
        "reference/body/test_memory.py::test_the_server_lets_go_of_a_request_whatever_ended_it_without_a_collection",
    ),
    Break(
        "all bodies of middle size are prepared at once",
        "http/life.py",
        "if size <= SHORT_BODY:",
        "if size <= LONG_BODY:",
        "http/test_life.py::test_as_many_middle_sized_bodies_are_prepared_at_a_time_as_there_are_processors",
    ),
    # ---- starts, files and descriptors
    Break(
        "accepting: no pause without a descriptor",
        "http/process/accept.py",
        "        self.retry = self.loop.call_later(PAUSE_SECONDS, self.start)\n",
        "        self.retry = None\n",
        "http/process/test_descriptors.py::test_without_a_descriptor_accepting_pauses_in_one_line_and_goes_on_later",
    ),
    Break(
        "accepting: a line for every pause",
        "http/process/accept.py",
        "if self.told is None or now - self.told >= QUIET_SECONDS:",
        "if True:",
        "http/process/test_descriptors.py::test_a_line_about_pauses_comes_once_in_a_while_with_their_number",
    ),
    Break(
        "descriptors: the bound of connections ignores what the server needs",
        "http/process/descriptors.py",
        "left = limit - own",
        "left = limit",
        "http/process/test_descriptors.py::test_the_bound_is_what_the_system_gives_less_what_the_server_needs",
    ),
    Break(
        "descriptors: something is imported at first use",
        "http/run.py",
        "            importlib.import_module(name)\n",
        "            assert name\n",
        "http/process/test_descriptors.py::test_nothing_is_imported_once_the_server_answers",
    ),
    Break(
        "descriptors: a hangup without one ends the server",
        "http/run.py",
        "return error.errno in (errno.EMFILE, errno.ENFILE)",
        "return False",
        "http/process/test_descriptors.py::test_a_hangup_without_a_descriptor_is_not_taken_for_the_end_of_the_terminal",
    ),
    Break(
        "files: a pipe is waited for",
        "reference/system/files.py",
        "    if not stat.S_ISREG(found.st_mode):\n",
        "    if False:\n",
        "reference/system/test_files.py::test_what_is_no_regular_file_is_refused_at_once_by_what_it_is",
    ),
    Break(
        "files: a file is read without an end",
        "reference/system/files.py",
        "content = file.read(most + 1)",
        "content = file.read(most)",
        "reference/system/test_files.py::test_a_link_to_a_regular_file_is_read_to_its_bound_and_no_further",
    ),
    Break(
        "trace: files that were written to still make traces",
        RETRACE,
        "        return checkpoint.changed\n",
        "        return None\n",
        "http/test_trace.py::test_files_written_to_in_place_end_traces_in_words_and_capabilities_have_none",
    ),
    Break(
        "memory: a pool is not held against what is free",
        "jax_engine/runtime/settings.py",
        "    if pool + weights + slots > free:\n",
        "    if pool + weights + slots > whole:\n",
        "jax_engine/runtime/test_pool_memory.py::test_pool_weights_and_slots_together_are_held_against_the_free_memory",
    ),
    Break(
        "memory: a control group above allows what it does not",
        "jax_engine/runtime/memory.py",
        "for one in (folder, *folder.parents):",
        "for one in (folder,):",
        "jax_engine/runtime/test_pool_memory.py::test_the_least_that_a_group_or_the_machine_allows_is_there",
    ),
    Break(
        "locale: bytes that an ASCII locale could not read stay surrogates",
        "http/observe/text.py",
        "    return UNDECODED.sub(_decoded, text)\n",
        "    return text\n",
        "http/cli/test_starts.py::test_texts_of_an_ascii_locale_are_read_as_utf8",
    ),
    Break(
        "locale: a character that an output does not have is a traceback",
        "http/cli/console.py",
        '            stream.reconfigure(errors="backslashreplace")\n',
        "            pass\n",
        "http/cli/test_starts.py::test_what_every_command_prints_fits_an_ascii_output",
    ),
    # ---- the sampler's stages
    Break(
        "the bias is dropped",
        SAMPLER,
        "biased = add_bias(logits, params.logit_bias)",
        "biased = logits.copy()",
        "reference/test_completion.py::test_the_bias_moves_the_end_token_too",
    ),
    Break(
        "the frequency penalty is dropped",
        SAMPLER,
        "    z = z - frequency_penalty * counts\n",
        "",
        "reference/test_sampler.py::test_frequency_counts_each_time_and_presence_once",
    ),
    Break(
        "the presence penalty is dropped",
        SAMPLER,
        "return z - presence_penalty * (counts > 0)",
        "return z",
        "reference/test_sampler.py::test_frequency_counts_each_time_and_presence_once",
    ),
    Break(
        "penalties count the prompt",
        ENGINE,
        "np.array(sampled, np.int64)",
        "np.array([*prompt_ids, *sampled], np.int64)",
        "reference/test_completion.py::test_penalties_count_a_candidates_own_tokens_and_not_the_prompt",
    ),
    Break(
        "penalties come after temperature",
        SAMPLER,
        "    s = temper(z, params.temperature)\n",
        "    s = temper(biased, params.temperature)\n"
        "    s = penalize(s, counts, params.frequency_penalty, params.presence_penalty)\n",
        "reference/test_goldens.py::test_golden_a_every_stage_of_one_draw",
    ),
    Break(
        "nucleus comes before temperature",
        SAMPLER,
        "e = np.exp(s)",
        "e = np.exp(z - z.max())",
        "reference/test_sampler.py::test_the_mass_is_that_of_the_tempered_probabilities",
    ),
    Break(
        "a tie goes to the highest id",
        SAMPLER,
        "return int(np.argmax(z))",
        "return len(z) - 1 - int(np.argmax(z[::-1]))",
        "reference/test_sampler.py::test_greedy_takes_the_largest_and_the_lowest_id_on_a_tie",
    ),
    Break(
        "temperature has a floor",
        SAMPLER,
        "distance / temperature)",
        "distance / max(temperature, 1e-2))",
        "reference/test_sampler.py::test_a_tiny_temperature_has_no_floor_and_minus_infinity_is_never",
    ),
    Break(
        "the token that crosses top_p is dropped",
        SAMPLER,
        "mass_before = np.concatenate([[0.0], np.cumsum(q[order])[:-1]])",
        "mass_before = np.cumsum(q[order])",
        "reference/test_sampler.py::test_the_token_that_crosses_top_p_is_kept_and_the_one_after_equality_is_not",
    ),
    Break(
        "the token after equality with top_p is kept",
        SAMPLER,
        "kept_ranks = mass_before < top_p",
        "kept_ranks = mass_before <= top_p",
        "reference/test_sampler.py::test_the_token_that_crosses_top_p_is_kept_and_the_one_after_equality_is_not",
    ),
    Break(
        "equal logits are ranked by falling id",
        SAMPLER,
        'order = np.argsort(-z, kind="stable")',
        'order = np.argsort(z, kind="stable")[::-1]',
        "reference/test_sampler.py::test_equal_logits_are_ranked_by_id",
    ),
    Break(
        "logprobs are reported after temperature",
        SAMPLER,
        "logprobs = report(logits)",
        "logprobs = report(logits / (params.temperature or 1))",
        "reference/test_sampler.py::test_reported_logprobs_are_raw_whatever_the_sampling",
    ),
    Break(
        "the complement of the high words is dropped",
        SAMPLER,
        "np.where(high, ~x0, x0) * 2.0**-32",
        "x0 * 2.0**-32",
        "reference/test_sampler.py::test_gumbel_is_minus_ln_of_minus_ln_of_one_minus_u",
    ),
    Break(
        "the low word is dropped",
        SAMPLER,
        "(np.where(high, ~x1, x1) + 0.5) * 2.0**-64",
        "0.5 * 2.0**-32",
        "reference/test_sampler.py::test_gumbel_uses_all_64_bits_at_both_ends",
    ),
    # ---- the model
    Break(
        "the mask is shifted by one",
        MODEL,
        "np.tri(T, dtype=bool)",
        "np.tri(T, k=1, dtype=bool)",
        "reference/test_model.py::test_attention_is_the_plain_loop_and_a_shifted_mask_is_not",
    ),
    Break(
        "rotary positions pair neighbours",
        MODEL,
        "first, second = np.split(x, 2, axis=-1)",
        "first, second = x[..., 0::2], x[..., 1::2]",
        "reference/test_model.py::test_attention_is_the_plain_loop_and_a_shifted_mask_is_not",
    ),
    Break(
        "query heads take turns at the key/value heads",
        MODEL,
        "angle).reshape(T, K, -1, H)",
        "angle).reshape(T, -1, K, H).swapaxes(1, 2)",
        "reference/test_model.py::test_grouped_heads_equal_repeated_heads",
    ),
    Break(
        "the mask of the model that is served is shifted by one",
        "reference/transformer.py",
        "seen = np.tri(T, dtype=bool)",
        "seen = np.tri(T, k=1, dtype=bool)",
        "reference/test_model.py::test_a_llama_by_the_general_code_is_the_llama_of_model_py",
    ),
    Break(
        "rope scaling slows the wrong end",
        "reference/rope.py",
        "keep * plain + (1 - keep) * plain / positive",
        "(1 - keep) * plain + keep * plain / positive",
        "reference/test_model.py::test_llama3_scaling_keeps_fast_divides_slow_and_mixes_between",
    ),
    # ---- randomness
    Break(
        "the key is without the candidate",
        PRNG,
        "np.array([key.candidate], np.uint32)",
        "np.array([0], np.uint32)",
        "reference/test_completion.py::test_choices_of_one_request_differ",
    ),
    Break(
        "the key is without the step",
        PRNG,
        "np.array([key.step], np.uint32)",
        "np.array([0], np.uint32)",
        "reference/test_prng.py::test_key1_and_words_are_those_of_the_law",
    ),
    Break(
        "candidate and step change places in the key",
        PRNG,
        "(np.array([key.candidate], np.uint32), np.array([key.step], np.uint32))",
        "(np.array([key.step], np.uint32), np.array([key.candidate], np.uint32))",
        "reference/test_prng.py::test_the_counter_is_candidate_then_step_and_not_the_other_way_round",
    ),
    Break(
        "the seed's high half is dropped",
        PRNG,
        "np.array([s >> 32], np.uint32)",
        "np.array([0], np.uint32)",
        "reference/test_prng.py::test_every_bit_of_the_seed_counts",
    ),
    Break(
        "steps are counted from the prompt's start",
        ENGINE,
        "step=len(sampled))",
        "step=len(prompt_ids) + len(sampled))",
        "project/test_sabotage.py::"
        "test_the_engine_draws_with_its_prompts_seed_the_candidates_number_and_the_step_from_0",
    ),
    Break(
        "seed −1 is taken for none",
        COMPLETION,
        "secrets.randbits(64) if request.seed is None else request.seed",
        "secrets.randbits(64) if request.seed in (None, -1) else request.seed",
        "reference/test_completion.py::test_the_same_seed_gives_the_same_choices",
    ),
    Break(
        "elements of a list have seeds of their own",
        COMPLETION,
        "else request.seed for _ in self.prompts]",
        "else request.seed + j for j, _ in enumerate(self.prompts)]",
        "reference/test_prompt.py::test_with_a_seed_each_element_of_a_list_gives_what_it_gives_alone",
    ),
    # ---- one candidate
    Break(
        "the end token is not counted",
        COMPLETION,
        "        self.ids.append(token.id)\n",
        "        if token.id in self._params.end_ids:\n"
        '            return self.finish("stop")\n'
        "        self.ids.append(token.id)\n",
        "reference/test_completion.py::test_the_end_token_is_counted_and_in_the_arrays_and_adds_no_text",
    ),
    Break(
        "max_tokens is clamped",
        PROMPT,
        "if len(encoded.ids) + request.max_tokens > engine.context:",
        "if len(encoded.ids) > engine.context:",
        "reference/test_prompt.py::test_prompt_and_max_tokens_beyond_the_context_are_refused_never_clamped",
    ),
    Break(
        "stop strings match across the prompt's end",
        COMPLETION,
        "            self._job = job = self._submit()\n",
        "            self._job = job = self._submit()\n"
        "            for j, prompt in enumerate(self.prompts):\n"
        "                for c in range(self.request.candidates):\n"
        "                    for char in b''.join(self._tokenizer.prompt_pieces(prompt.ids)).decode():\n"
        "                        self._candidate(j, c)._matcher.push(char)\n",
        "reference/test_stop.py::test_a_stop_string_across_the_prompts_end_does_not_match",
    ),
    Break(
        "the order of the stop list decides",
        STOP,
        "longest = max(longest, state)",
        "longest = longest or state",
        "reference/test_stop.py::test_of_the_matches_with_one_end_the_earliest_start_wins",
    ),
    Break(
        "a stop string also cuts the arrays",
        COMPLETION,
        '        if stopped:\n            self.finish_reason = "stop"\n',
        '        if stopped:\n            self.finish_reason = "stop"\n'
        "            while self.starts and self.starts[-1] >= len(self.text):\n"
        "                for array in (self.ids, self.logprobs, self.tops, self.starts, self._ends):\n"
        "                    array.pop()\n",
        "reference/test_stop.py::test_tokens_past_the_cut_stay_in_the_arrays_with_offsets_at_or_past_the_end",
    ),
    Break(
        "a special token's literal is sought among the characters only",
        COMPLETION,
        "end_ids(engine, tokenizer) | stop_ids(request.stop, tokenizer)",
        "end_ids(engine, tokenizer)",
        "reference/test_stop.py::test_a_special_tokens_literal_as_a_stop_string_ends_on_that_token",
    ),
    Break(
        "a part of a special token's literal ends on the token",
        STOP,
        "if literal in stops)",
        "if any(stop in literal for stop in stops))",
        "reference/test_stop.py::test_a_stop_string_with_more_or_less_than_a_literal_never_meets_it",
    ),
    Break(
        "the suffix comes before the prefix",
        INFILL,
        'Order.psm: ("[PRE]", "prompt", "[SUF]", "suffix", "[MID]"),',
        'Order.psm: ("[SUF]", "suffix", "[PRE]", "prompt", "[MID]"),',
        "reference/test_suffix.py::test_the_prompt_is_prefix_suffix_middle",
    ),
    Break(
        "every family is prompted prefix first",
        INFILL,
        "family._replace(order=options.order or family.order)",
        "family._replace(order=options.order or Order.psm)",
        "reference/text/test_infill_table.py::test_a_suffix_first_family_with_starcoders_tokens_is_known_by_its_files",
    ),
    Break(
        "the start does not tell that the names leave the order open",
        INFILL,
        "set(row.markers) == set(family.markers) and row.order != family.order",
        "row.order != row.order",
        "reference/text/test_infill_table.py::test_the_note_says_order_tokens_and_reason_and_how_to_change_it",
    ),
    Break(
        "a family is known only by all of its ends",
        INFILL,
        "ids.keys() >= set(row.markers) and",
        "ids.keys() >= {*row.markers, *row.ends} and",
        "reference/text/test_infill_table.py::test_a_familys_markers_are_needed_and_its_other_ends_are_not",
    ),
    Break(
        "tokens before the prompt count from its end",
        PROMPT,
        "starts, at = [0] * len(ids), 0",
        "starts, at = [0] * len(ids), len(prompt)",
        "reference/text/test_infill_table.py::test_in_every_order_offsets_count_from_the_prompts_text",
    ),
    # ---- text, labels, logprobs
    Break(
        "offsets count bytes",
        COMPLETION,
        "self.starts.append(len(self.text))",
        "self.starts.append(len(self.text.encode()))",
        "reference/test_logprobs.py::test_pieces_of_a_split_character_share_its_offset",
    ),
    Break(
        "offsets begin at the completion",
        COMPLETION,
        "[prompt.characters + start for start in",
        "[start for start in",
        "reference/test_logprobs.py::test_offsets_count_from_the_prompts_start_echo_or_not",
    ),
    Break(
        "pending bytes are shown",
        "reference/text/utf8.py",
        "        return decode_utf8(data)\n",
        '        return data.decode(errors="replace")\n',
        "reference/test_tokenizer.py::test_pieces_of_a_byte_each_join_to_the_one_shot_decoding",
    ),
    Break(
        "tokens without a decoder are not joined with spaces",
        DECODERS,
        "[_joined_with_spaces] if decoder is None else []",
        "[]",
        "reference/text/test_decoders.py::test_a_texts_tokens_have_the_text_that_the_librarys_decoder_gives_them[none]",
    ),
    Break(
        "a decoder that needs the next token is read without it",
        DECODERS,
        "if tokens is None or any(suffix in token for token in tokens):",
        "if tokens is None:",
        "reference/text/test_decoders.py::"
        "test_a_decoder_that_needs_more_than_a_token_and_its_place_is_refused[BPEDecoder]",
    ),
    Break(
        "steps of a decoder are taken in any order",
        DECODERS,
        "if kind in TEXT_STEPS and to_bytes is None and not is_one:",
        "if kind in TEXT_STEPS:",
        "reference/text/test_decoders.py::"
        "test_a_decoder_that_needs_more_than_a_token_and_its_place_is_refused[bytes first]",
    ),
    Break(
        "a text that begins with a space keeps what its decoder strips",
        DECODERS,
        "piece, left = piece[len(content) :], left - 1",
        "left -= 1",
        "reference/text/test_decoders.py::"
        "test_a_prompt_of_ids_has_the_text_that_the_librarys_decoder_gives_it[Llama 2]",
    ),
    Break(
        "a byte-level vocabulary needs no decoder",
        DECODERS,
        'if byte_level and "ByteLevel" not in kinds:',
        "if False:",
        "reference/text/test_decoders.py::test_a_byte_level_vocabulary_without_its_decoder_is_refused",
    ),
    Break(
        "merges are left out at random, as in training",
        TOKENIZER,
        ', (spec["model"], "dropout")):',
        "):",
        "reference/text/test_decoders.py::test_merges_are_not_left_out_at_random_and_the_fingerprint_is_the_same",
    ),
    Break(
        "tokens that only tokenizer_config.json names are cut into pieces",
        ADDED,
        "if token.content not in known and not is_ordinary:",
        "if False:",
        "reference/text/test_added_tokens.py::test_the_token_that_a_tokenizer_names_as_its_end_ends_a_completion",
    ),
    Break(
        "a pad_token that is plain text shows none",
        ADDED,
        'is_ordinary = name == "pad_token" and token.content in ids',
        "is_ordinary = False",
        "reference/text/test_added_tokens.py::test_a_pad_token_that_the_vocabulary_has_as_an_ordinary_one_stays_one",
    ),
    Break(
        "files may give one token two ids",
        ADDED,
        "if now[token.content] != v:",
        "if False:",
        "reference/text/test_added_tokens.py::test_files_that_contradict_each_other_are_refused_by_name",
    ),
    Break(
        "the end that only the tokenizer names is no end",
        COMPLETION,
        "return engine.eos_ids | named",
        "return engine.eos_ids",
        "reference/text/test_added_tokens.py::test_the_token_that_a_tokenizer_names_as_its_end_ends_a_completion",
    ),
    Break(
        "two tokens may share a label",
        "reference/text/labels.py",
        "if wanted is not None and wanted not in taken:",
        "if wanted is not None:",
        "reference/test_tokenizer.py::test_of_two_ordinary_tokens_of_one_text_the_lower_id_has_the_label",
    ),
    Break(
        "logprobs 0 is off",
        COMPLETION,
        "        if self.request.logprobs is not None:\n",
        "        if self.request.logprobs:\n",
        "reference/test_logprobs.py::test_logprobs_0_has_the_sampled_token_alone",
    ),
    Break(
        "the sampled token is missing from top_logprobs",
        WRITING,
        "for u, value in top} | {labels[v]: lp}",
        "for u, value in top}",
        "reference/test_logprobs.py::test_every_token_has_the_k_most_probable_ids_and_itself",
    ),
    Break(
        "echoed logprobs are shifted by one",
        ENGINE,
        "for i, v in enumerate(prompt_ids[1:]):",
        "for i, v in enumerate(prompt_ids[:-1]):",
        "reference/test_echo.py::test_scores_are_those_of_each_token_given_the_ones_before_it",
    ),
    # ---- choices and usage
    Break(
        "best_of ranks by the sum",
        COMPLETION,
        "return total / max(len(self.logprobs), 1)",
        "return total",
        "reference/test_best_of.py::test_the_highest_mean_log_probability_comes_first",
    ),
    Break(
        "usage leaves out the discarded candidates",
        COMPLETION,
        "sum(len(candidate.ids) for candidate in self._begun)",
        "sum(len(one.ids) for j in range(len(self.prompts)) for one in ranked(self._candidates_of(j), self.request.n))",
        "reference/test_best_of.py::test_a_discarded_candidate_is_counted",
    ),
    # ---- the request
    Break(
        "an unknown field is ignored",
        "reference/body/reading.py",
        "for key in given if key not in known]",
        "for key in given if not known]",
        "reference/test_request.py::test_unknown_fields_are_refused_by_name",
    ),
    Break(
        "an unknown key of stream_options is ignored",
        "reference/body/reading.py",
        'strange = [(f"{name}.", key, names) for key in said if key not in names]',
        'strange = [(f"{name}.", key, names) for key in said if not names]',
        "reference/test_request.py::test_unknown_keys_inside_stream_options_are_refused_by_name",
    ),
    Break(
        "only the first unknown name is told",
        "reference/body/reading.py",
        "listed = unknown[:NAMES_LISTED]",
        "listed = unknown[:1]",
        "reference/test_request.py::test_all_unknown_names_are_listed_at_once_each_with_the_nearest_known_one",
    ),
    Break(
        "an unknown name that is null is refused",
        "reference/body/reading.py",
        "return {key: value for key, value in sent.items() if value is not None}",
        "return dict(sent)",
        "reference/test_request.py::test_null_is_as_good_as_absent_whatever_its_name",
    ),
    Break(
        "a full context has no code of its own",
        "reference/errors.py",
        'super().__init__(param, message, "context_length_exceeded")',
        "super().__init__(param, message)",
        "http/test_http.py::test_a_prompt_beyond_the_context_is_a_400_with_its_code",
    ),
    Break(
        "a model's id ends at its first slash",
        "http/app.py",
        '"/v1/models/{model:path}"',
        '"/v1/models/{model}"',
        "http/test_http.py::test_a_model_is_found_by_its_id_with_slashes_encoded_or_not",
    ),
    Break(
        "every model that is asked for is a label",
        "http/observe/access.py",
        "(route for stem, route in self.stems.items() if",
        "(path for stem, route in self.stems.items() if",
        "http/observe/test_metrics.py::test_all_models_asked_for_by_name_have_one_label",
    ),
    Break(
        "a body in any charset is read",
        "http/body.py",
        "return None if other is None else",
        "return None if parameters else",
        "http/test_http.py::test_a_foreign_charset_is_named",
    ),
    Break(
        "a 404 does not say which route was meant",
        "http/errors.py",
        "instead = meant(path, routes) or",
        "instead =",
        "http/test_http.py::test_a_path_that_somebody_tries_is_a_404_that_says_the_right_one",
    ),
    Break(
        "a boolean is a number",
        "reference/body/reading.py",
        "if isinstance(sent, bool) or not isinstance(sent, int | float) or not low",
        "if not isinstance(sent, int | float) or not low",
        "reference/test_request_fuzz.py::test_a_field_takes_exactly_the_texts_of_its_row",
    ),
    Break(
        "temperature is 0.7 if left out",
        REQUEST,
        "    temperature: float = 1.0\n",
        "    temperature: float = 0.7\n",
        "reference/test_request.py::test_defaults_are_those_of_the_law",
    ),
    Break(
        "a wrong request is a 422",
        "reference/errors.py",
        "    status = 400\n",
        "    status = 422\n",
        "reference/test_request.py::test_no_refusal_is_a_422",
    ),
    # ---- streams
    Break(
        "text that may become a stop string is sent",
        COMPLETION,
        "safe = len(self.text) - self._matcher.held",
        "safe = len(self.text)",
        "reference/test_chunks.py::test_a_token_waits_while_one_of_its_characters_may_belong_to_a_stop_string",
    ),
    Break(
        "array entries are sent before their text",
        COMPLETION,
        "while stop < len(self.ids) and self._ends[stop] <= safe:",
        "while stop < len(self.ids):",
        "reference/test_chunks.py::test_a_token_waits_while_one_of_its_characters_is_pending",
    ),
    Break(
        "a stream ends without [DONE]",
        "http/sse.py",
        "await self.write(DONE, last=True)",
        'await self.write(b"", last=True)',
        "http/test_stream.py::test_events_are_lines_of_ascii_json_that_no_proxy_holds_back",
    ),
    # ---- the JAX engine
    Break(
        "a cached chunk is named without its history",
        "jax_engine/cache.py",
        "hashlib.sha256(digest + array[",
        "hashlib.sha256(array[",
        "jax_engine/test_scheduler.py::test_equal_chunks_after_different_beginnings_are_not_shared",
    ),
    Break(
        "the chunk of the last position is taken from the cache",
        "jax_engine/scheduler.py",
        "work.names[: (len(work.prompt) - 1) // self.chunk]",
        "work.names",
        "jax_engine/test_scheduler.py::test_a_second_equal_prompt_takes_all_whole_chunks_but_that_of_its_last_position",
    ),
    Break(
        "the partly filled page is not copied",
        "jax_engine/device.py",
        "copy_from, copy_to = copy or (SCRATCH_PAGE, SCRATCH_PAGE)",
        "copy_from, copy_to = SCRATCH_PAGE, SCRATCH_PAGE",
        "jax_engine/test_same_bytes.py::test_the_order_of_arrival_changes_no_byte",
    ),
    Break(
        "a slot keeps the counts of who had it before",
        "jax_engine/device.py",
        "counts=slots.counts.at[i].set(0)",
        "counts=slots.counts",
        "jax_engine/test_same_bytes.py::test_the_order_of_arrival_changes_no_byte",
    ),
    Break(
        "attention sees one position ahead",
        "jax_engine/kernels/xla.py",
        "seen = at[None, None, :] <= positions[:, :, None]",
        "seen = at[None, None, :] <= positions[:, :, None] + 1",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Break(
        "the walk over pages stops at the shortest row",
        "jax_engine/kernels/xla.py",
        "blocks = (lengths.max() + page_size - 1) // page_size",
        "blocks = (lengths.min() + page_size - 1) // page_size",
        "jax_engine/test_same_bytes.py::test_neighbours_that_come_and_go_change_no_byte",
    ),
    Break(
        "what no sequence wrote is masked in the scores alone",
        "jax_engine/kernels/xla.py",
        "v_block = jnp.where(exists[:, :, None, None], values[pages].astype(jnp.float32), 0.0)",
        "v_block = values[pages].astype(jnp.float32)",
        "jax_engine/test_same_bytes.py::test_nan_in_every_free_page_changes_no_byte",
    ),
    Break(
        "an idle slot writes to the pages it once had",
        "jax_engine/model.py",
        "page = jnp.where(batch.live, jnp.take_along_axis(batch.tables, block, axis=1), SCRATCH_PAGE)",
        "page = jnp.take_along_axis(batch.tables, block, axis=1)",
        "jax_engine/test_same_bytes.py::test_neighbours_that_come_and_go_change_no_byte",
    ),
    Break(
        "the device's noise forgets the candidate",
        "jax_engine/sampler.py",
        "(rows.candidate, rows.step))",
        "(rows.candidate * 0, rows.step))",
        "jax_engine/test_jax_sampler.py::test_every_row_draws_the_laws_token_whatever_the_other_rows_are",
    ),
    Break(
        "the device keeps the last of equal ids at the nucleus boundary",
        "jax_engine/sampler.py",
        "lambda: jnp.cumsum(at_boundary, axis=-1), lambda",
        "lambda: jnp.cumsum(at_boundary[:, ::-1], axis=-1)[:, ::-1], lambda",
        "jax_engine/test_jax_sampler.py::test_ties_at_the_nucleus_boundary_go_to_the_lower_ids",
    ),
    Break(
        "minus zero ranks below zero on the device",
        "jax_engine/sampler.py",
        "lax.top_k(_one_zero(logits), min(",
        "lax.top_k(logits, min(",
        "jax_engine/test_jax_sampler.py::test_rankings_are_by_logit_and_then_by_id_and_zeros_are_equal",
    ),
    Break(
        "the step does not count on the device",
        "jax_engine/device.py",
        "rows=slots.rows._replace(step=slots.rows.step + ones.astype(jnp.uint32)),",
        "rows=slots.rows,",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Break(
        "a slot keeps the bias of who had it before",
        "jax_engine/device.py",
        "bias=slots.bias.at[i].set(entry.bias),",
        "bias=slots.bias,",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Break(
        "a first token is drawn from another row's hidden state",
        "jax_engine/device.py",
        "jnp.where(is_new[:, None], slots.begun, hidden)",
        "jnp.where(is_new[:, None], slots.begun[::-1], hidden)",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Break(
        "prompt scores belong to the token before",
        "jax_engine/engine.py",
        "following = work.prompt[start + 1 : start + len(ids) + 1]",
        "following = work.prompt[start + 1 : start + len(ids) + 1][::-1]",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Break(
        "a chunk is shared before it is written",
        "jax_engine/scheduler.py",
        "        work.admitted = True\n        return True",
        "        work.admitted = True\n        self._remember(work)\n        return True",
        "jax_engine/test_scheduler.py::test_a_chunk_is_shared_only_once_it_is_written",
    ),
    Break(
        "a closed candidate keeps its pages",
        "jax_engine/scheduler.py",
        "            sequence.is_over = True\n            self.end(sequence)",
        "            sequence.is_over = True\n            del self.running[sequence.slot]",
        "jax_engine/test_jax_engine.py::test_closing_at_any_stage_frees_everything",
    ),
    Break(
        "a batch keeps every other job waiting until its last prompt has begun",
        "jax_engine/scheduler.py",
        "        elif was_head:\n",
        "        elif False:\n",
        "jax_engine/test_scheduler.py::test_jobs_take_turns_a_prompt_at_a_time_and_keep_the_order_of_their_own",
    ),
    Break(
        "costs: a work is looked for in the whole line",
        "jax_engine/scheduler.py",
        "        del self.waiting[work]\n",
        "        self.waiting = OrderedDict((one, None) for one in self.waiting if one is not work)\n",
        "jax_engine/test_costs.py::test_the_line_costs_the_same_whoever_waits_in_it",
    ),
    Break(
        "costs: a blocked prompt is hashed at every step",
        "jax_engine/scheduler.py",
        "if work.names is None:",
        "if not work.admitted:",
        "jax_engine/test_costs.py::test_a_step_that_is_blocked_costs_the_same_for_a_prompt_of_any_length",
    ),
    Break(
        "the chunk used last is given up first",
        "jax_engine/cache.py",
        "self._give_up(self._unused[self._uses_of_unused.least])",
        "self._give_up(self._unused[max(self._unused)])",
        "jax_engine/test_prefix_cache.py::test_what_is_given_up_is_what_a_look_at_every_chunk_chooses",
    ),
    Break(
        "to use a chunk that nobody holds does not count",
        "jax_engine/cache.py",
        "            if chunk is not None:\n                self._use(chunk)",
        "            if chunk is not None and not chunk.is_unused:\n                self._use(chunk)",
        "jax_engine/test_prefix_cache.py::test_what_is_given_up_is_what_a_look_at_every_chunk_chooses",
    ),
    Break(
        "a chunk of which one page is let go is unused",
        "jax_engine/cache.py",
        "            chunk.shared -= 1\n            if chunk.is_unused:",
        "            chunk.shared -= 1\n            if chunk.used not in self._unused:",
        "jax_engine/test_prefix_cache.py::test_what_is_given_up_is_what_a_look_at_every_chunk_chooses",
    ),
    Break(
        "all arrivals and closings are taken before a step",
        "jax_engine/engine.py",
        "for _ in range(WORKS_A_STEP):",
        "while True:",
        "jax_engine/test_jax_engine.py::test_a_step_takes_no_more_than_so_many_arrivals_and_closings",
    ),
    Break(
        "a job is closed as often as somebody says so",
        "jax_engine/engine.py",
        "is_over = self.has_failed or not (self.open or self._awaited)",
        "is_over = self.has_failed",
        "jax_engine/test_jax_engine.py::test_a_job_is_closed_once_and_one_that_has_ended_not_at_all",
    ),
    Break(
        "the rest of a failed job arrives all the same",
        "jax_engine/engine.py",
        "    if not work.owner.has_failed:\n        scheduler.submit(work)",
        "    scheduler.submit(work)",
        "jax_engine/test_jax_engine.py::test_what_is_left_to_arrive_of_a_job_that_failed_is_dropped",
    ),
    Break(
        "the load counts what is only cached",
        "jax_engine/scheduler.py",
        "return self.pool.size - self.pool.free - self.prefixes.unused_pages",
        "return self.pool.size - self.pool.free",
        "jax_engine/test_jax_engine.py::test_the_load_is_that_of_what_runs_and_not_of_what_is_cached",
    ),
    # ---- what operators see
    Break(
        "a client that leaves counts as answered",
        "http/observe/access.py",
        'return "cancelled"',
        'return "answered"',
        "http/observe/test_access.py::test_every_ending_is_told_once_to_the_log_the_metrics_and_otel",
    ),
    Break(
        "any request id is taken up that begins well",
        "http/observe/access.py",
        "_ID.fullmatch(ids[0])",
        "_ID.match(ids[0])",
        "http/observe/test_access.py::test_any_other_request_id_is_replaced_by_a_new_one_of_ours",
    ),
    Break(
        "the log does not know what to hide",
        "http/observe/access.py",
        'hide(fields(scope, b"authorization"))',
        "hide([])",
        "http/observe/test_logs.py::test_no_line_of_a_request_can_show_its_authorization",
    ),
    Break(
        "the log shows control characters",
        "http/observe/logs.py",
        "{printable_line(self.message(record))}",
        "{self.message(record)}",
        "http/observe/test_logs.py::test_no_message_and_no_exception_can_forge_a_line",
    ),
    Break(
        "every path is a label",
        "http/observe/access.py",
        'if path.startswith(stem) and path != stem), "other")',
        "if path.startswith(stem) and path != stem), path)",
        "http/observe/test_metrics.py::test_labels_are_bounded_whatever_1000_clients_send",
    ),
    Break(
        "metrics are read while requests end",
        "http/observe/metrics.py",
        "engine = load.engine\n        with self._lock:",
        "engine = load.engine\n        if load:",
        "http/observe/test_metrics.py::test_a_request_does_not_end_or_begin_in_the_middle_of_a_scrape",
    ),
    Break(
        "the time between two candidates' tokens counts",
        "http/observe/record.py",
        "self.last_tokens[prompt, candidate] = made",
        "self.last_tokens[0, 0] = made",
        "http/observe/test_metrics.py::test_an_answered_completion_is_counted_in_tokens_seconds_and_finish_reasons",
    ),
    Break(
        "the caller's trace is not continued",
        "http/observe/otel.py",
        "extract(carrier, Context())",
        "extract({}, Context())",
        "http/observe/test_otel.py::test_a_callers_traceparent_is_honoured",
    ),
    Break(
        "stopping waits for the collector",
        "http/observe/otel.py",
        "sending.join(seconds)",
        "sending.join()",
        "http/observe/test_otel.py::test_stopping_does_not_wait_for_a_collector_that_does_not_answer",
    ),
    # ---- authentication
    Break(
        "auth: the first of two Authorization fields counts",
        "http/identity/tokens.py",
        "if len(fields) > 1:",
        "if len(fields) > 99:",
        "http/identity/test_auth_header.py::test_a_credential_is_one_word_behind_one_bearer_in_one_field",
    ),
    Break(
        "auth: the last of two members of a header counts",
        "http/identity/tokens.py",
        "if len(members) != len(pairs):",
        "if len(members) > len(pairs):",
        "http/identity/test_auth_tokens.py::test_a_signed_header_with_a_member_twice_is_refused",
    ),
    Break(
        "auth: no signature is looked at",
        "http/identity/tokens.py",
        "key.public, algorithms=[algorithm])",
        'key.public, algorithms=[algorithm], options={"verify_signature": False})',
        "http/identity/test_auth_tokens.py::test_another_key_under_the_same_kid_signs_nothing",
    ),
    Break(
        "auth: an audience that contains ours is ours",
        "http/identity/tokens.py",
        'if rules.audience not in audiences(claims["aud"]):',
        'if rules.audience not in str(claims["aud"]):',
        "http/identity/test_auth_tokens.py::test_a_claim_that_is_not_exactly_as_it_must_be_is_refused",
    ),
    Break(
        "auth: HS256 can be allowed",
        "http/identity/jwks.py",
        "ALGORITHMS = RSA.union(*CURVES.values())",
        'ALGORITHMS = RSA.union(*CURVES.values(), ["HS256"])',
        "http/identity/test_auth_modes.py::test_no_setting_allows_an_algorithm_without_a_public_key",
    ),
    Break(
        "auth: a flood of unknown keys is a flood of fetches",
        "http/identity/jwks.py",
        ">= self._cooldown:",
        ">= 0:",
        "http/identity/test_auth_identity.py::test_a_flood_of_unknown_keys_is_one_fetch_a_cooldown",
    ),
    Break(
        "auth: two keys may have one name",
        "http/identity/jwks.py",
        " if names.count(key.kid) == 1}",
        "}",
        "http/identity/test_auth_identity.py::test_two_keys_of_one_name_are_nobodys_while_a_third_serves",
    ),
    Break(
        "auth: a redirect is followed",
        "http/identity/client.py",
        "follow_redirects=False",
        "follow_redirects=True",
        "http/identity/test_auth_identity.py::test_only_a_definite_answer_decides_and_the_rest_is_forgotten",
    ),
    Break(
        "auth: discovery may lead anywhere",
        "http/identity/client.py",
        "if not same_origin(found[name], self.issuer):",
        "if not str(found[name]).startswith(self.issuer):",
        "http/identity/test_auth_identity.py::test_a_discovery_document_may_not_lead_a_token_away",
    ),
    Break(
        "auth: only silence has a time limit",
        "http/identity/client.py",
        "                asyncio.timeout(self.seconds),\n",
        "",
        "http/identity/test_auth_identity.py::test_an_answer_that_comes_drop_by_drop_is_not_waited_for",
    ),
    Break(
        "auth: an accepted token is remembered past its end",
        "http/identity/bearer.py",
        "min(self.settings.cache_seconds, left)",
        "self.settings.cache_seconds",
        "http/identity/test_auth_cache.py::test_a_passport_that_ends_soon_is_remembered_until_ten_seconds_before",
    ),
    Break(
        "auth: who leaves takes the question along",
        "http/identity/token_cache.py",
        "return await asyncio.shield(task)",
        "return await task",
        "http/identity/test_auth_cache.py::test_a_leader_who_leaves_does_not_take_the_others_along",
    ),
    Break(
        "auth: no organization is organization enough",
        "http/identity/principal.py",
        "if not let_in and (self.organizations or account.type is not None):",
        "if not let_in and self.organizations:",
        "http/identity/test_auth_modes.py::test_account_types_and_organizations_decide_who_comes_in",
    ),
    Break(
        "auth: a path below an open one is open",
        "http/auth.py",
        'scope["path"] not in self.open_paths',
        'not scope["path"].startswith(tuple(self.open_paths))',
        "http/identity/test_auth_header.py::test_a_path_that_resembles_an_open_one_is_not_open",
    ),
    Break(
        "page: it asks for a credential",
        "http/app.py",
        '{"text/html": None},\n                is_open=True,',
        '{"text/html": None},\n                is_open=False,',
        "http/page/test_document.py::test_it_is_open_and_the_api_behind_it_is_not",
    ),
    Break(
        "page: its policy admits any script in it",
        "http/page/document.py",
        """f"script-src {hashes(html, b'script')}",""",
        """"script-src 'unsafe-inline'",""",
        "http/page/test_document.py::test_the_policy_admits_this_script_and_this_style_sheet_and_no_other",
    ),
    Break(
        "page: markup is made of texts",
        "http/page/element.js",
        'const say = (text) => { $("status").textContent = text; };',
        'const say = (text) => { $("status").innerHTML = text; };',
        "http/page/test_document.py::test_no_text_can_become_markup_or_a_program",
    ),
    Break(
        "auth: a token is logged",
        "http/identity/bearer.py",
        "        digest = digest_of(text)\n",
        '        digest = digest_of(text)\n        logger.debug("a token: %s", text)\n',
        "http/identity/test_auth_secrets.py::test_no_token_and_no_passport_leaves_in_any_other_way",
    ),
    # ---- loading
    Break(
        "loading: weights that are not finite are let in",
        "reference/checkpoint/tensors.py",
        "return not any(((block & mask) == mask).any() for block in blocks)",
        "return True",
        "reference/checkpoint/test_tensors.py::test_one_weight_that_is_not_finite_is_refused_by_name",
    ),
    Break(
        "loading: the last block is not looked at",
        "reference/checkpoint/tensors.py",
        "for i in range(0, len(integers), WEIGHTS_AT_ONCE))",
        "for i in range(0, len(integers) - WEIGHTS_AT_ONCE + 1, WEIGHTS_AT_ONCE))",
        "reference/checkpoint/test_tensors.py::test_one_weight_that_is_not_finite_is_refused_by_name",
    ),
    Break(
        "loading: a shard may lie elsewhere",
        "reference/checkpoint/tensors.py",
        "or Path(name).name != name",
        "",
        "reference/checkpoint/test_tensors.py::test_an_index_whose_file_is_no_name_is_refused",
    ),
    Break(
        "loading: a file may change after its header was read",
        "reference/checkpoint/tensors.py",
        "    if is_changed:\n",
        "    if False:\n",
        "reference/checkpoint/test_tensors.py::test_a_file_that_is_written_to_after_its_header_was_read_is_refused",
    ),
    Break(
        "loading: a name may be twice in a header",
        "reference/checkpoint/tensors.py",
        "        if name in members:\n",
        "        if False:\n",
        "reference/checkpoint/test_tensors.py::test_an_unsound_header_is_refused_by_the_files_name",
    ),
    Break(
        "loading: of two sets of weights one is taken",
        "reference/checkpoint/tensors.py",
        "        _refuse_second_set(directory, warn)\n",
        "",
        "reference/checkpoint/test_tensors.py::test_of_two_sets_of_weights_neither_is_guessed_at",
    ),
    Break(
        "loading: an adapter beside a model is left out",
        "reference/checkpoint/load.py",
        "if (directory / ADAPTER).exists():",
        "if False:",
        "reference/checkpoint/test_checkpoint.py::test_an_adapter_is_not_left_out_in_silence_beside_a_model_or_alone",
    ),
    Break(
        "config: OLMo 3's sliding layers are stretched too",
        "reference/rope.py",
        "(by_kind or local is not None)",
        "(local is not None)",
        "reference/checkpoint/test_as_transformers.py::test_a_directory_of_the_field_computes_what_transformers_does"
        "[OLMo 3, stretched as it is published: full layers only]",
    ),
    Break(
        "config: an entry counts under another class's name for it",
        "reference/checkpoint/config.py",
        "if key not in foreign}",
        "}",
        "reference/checkpoint/test_as_transformers.py::test_a_directory_of_the_field_computes_what_transformers_does"
        "[StarCoder2, rms_norm_eps]",
    ),
    Break(
        "config: a model that sees the future is served as one that does not",
        "reference/checkpoint/config.py",
        '{"is_causal": (None, True), **row.needs}',
        "row.needs",
        "reference/checkpoint/test_as_transformers.py::test_an_entry_that_engines_read_differently_is_refused_by_name",
    ),
    Break(
        "config: layer_types decides in every class",
        "reference/checkpoint/config.py",
        "if kinds is not None and not row.reads_layer_types:",
        "if False:",
        "reference/checkpoint/test_as_transformers.py::test_an_entry_that_engines_read_differently_is_refused_by_name",
    ),
    Break(
        "a tokenizer's wish to split special tokens is passed over",
        TOKENIZER,
        "    parsing.encode_special_tokens = is_split\n",
        "",
        "reference/test_tokenizer_files.py::"
        "test_entries_that_decide_how_a_text_is_cut_are_read_as_transformers_reads_them",
    ),
    Break(
        "a tokenizer's prefix space is tokenizer.json's alone",
        TOKENIZER,
        "        _prefix_space(spec, config)\n",
        "",
        "reference/test_tokenizer_files.py::"
        "test_entries_that_decide_how_a_text_is_cut_are_read_as_transformers_reads_them",
    ),
    Break(
        "loading: a tensor is held while the next is read",
        "reference/checkpoint/load.py",
        "            del array  # or it would still be there while the next one is read\n",
        "",
        "reference/checkpoint/test_checkpoint.py::test_a_tensor_is_let_go_before_the_next_is_read",
    ),
    Break(
        "loading: an engine goes by way of float64",
        "jax_engine/device.py",
        "    params = checkpoint.read(put)\n",
        "    params = Checkpoint(checkpoint.path, checkpoint.config, checkpoint.params).read(put)\n",
        "reference/checkpoint/test_checkpoint.py::test_loading_takes_the_memory_of_the_weights_and_of_one_tensor",
    ),
    # ---- how the JAX engine starts
    Break(
        "start: an option of jax reaches the engine",
        "jax_engine/runtime/pins.py",
        '    "jax_numpy_dtype_promotion": "standard",  # strict: mixed int32 and float32 are refused\n',
        "",
        "jax_engine/runtime/test_pins.py::"
        "test_the_bytes_are_the_same_whatever_jax_is_set_to[jax_numpy_dtype_promotion-strict]",
    ),
    Break(
        "start: XLA ends the process for its flags",
        "jax_engine/runtime/backend.py",
        "    _check_flags()\n    try:",
        "    try:",
        "jax_engine/runtime/test_backend.py::test_a_flag_that_xla_would_end_the_process_for_is_one_line",
    ),
    Break(
        "start: a jaxlib that does not fit is a traceback",
        "jax_engine/runtime/backend.py",
        "    except Exception as error:  # RuntimeError, AttributeError:",
        "    except AttributeError as error:  # RuntimeError:",
        "jax_engine/runtime/test_backend.py::test_a_jaxlib_that_does_not_fit_is_one_line_with_what_to_install",
    ),
    Break(
        "start: seconds may be infinite",
        "reference/system/options.py",
        "            if types[f.name] is float:",
        "            if False:",
        "http/cli/test_cli.py::test_seconds_that_are_no_time_limit_are_refused_by_name[inf]",
    ),
    Break(
        "start: a pipe is read twice for a certificate",
        "http/process/certificate.py",
        "        if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):",
        "        if False:",
        "http/process/test_certificate.py::test_a_pipe_is_refused_by_name_since_it_can_be_read_once",
    ),
    Break(
        "the end: the engine's thread is left within XLA",
        "jax_engine/engine.py",
        "        atexit.register(self._stop_at_exit)\n",
        "",
        "jax_engine/test_jax_engine.py::test_a_process_that_ends_while_the_engine_works_ends_with_0",
    ),
    Break(
        "verify: the server is blamed for the user's proxy",
        "http/verify/ask/client.py",
        "{_words(error)}{proxy_note(self.base)}",
        "{_words(error)}",
        "reference/checkpoint/test_network.py::test_verify_says_that_a_proxy_and_not_the_server_did_not_answer",
    ),
    Break(
        "start: code is loaded from where others can write",
        "jax_engine/runtime/store.py",
        "    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):",
        "    if False:",
        "jax_engine/runtime/test_store.py::test_code_is_not_loaded_from_where_others_can_write",
    ),
    Break(
        "start: a full disk leaves files half written",
        "reference/system/atomic.py",
        "        partial.unlink(missing_ok=True)\n",
        "        pass\n",
        "jax_engine/runtime/test_programs.py::test_a_disk_that_fills_up_is_told_once_and_leaves_nothing_half_written",
    ),
    Break(
        "start: a file has its name before the disk has its content",
        "reference/system/atomic.py",
        "            os.fsync(file.fileno())\n",
        "",
        "jax_engine/runtime/test_checked.py::test_a_name_is_on_the_disk_after_its_content_and_stays",
    ),
    Break(
        "start: a damaged file is used",
        "jax_engine/runtime/checked.py",
        "if hashlib.sha256(content).hexdigest() == found[1]:",
        "if content:",
        "jax_engine/runtime/test_checked.py::test_what_is_damaged_is_removed_with_one_line_that_names_it[half of it]",
    ),
    Break(
        "start: damage to a program is not told",
        "jax_engine/runtime/programs.py",
        "kept = find(self._path, key, PROGRAM_SUFFIX, self._say)",
        "kept = find(self._path, key, PROGRAM_SUFFIX, lambda line: None)",
        "jax_engine/runtime/test_programs.py::test_a_damaged_program_is_compiled_once_more_with_one_line[half of it]",
    ),
    Break(
        "start: programs are found only where they were compiled",
        "jax_engine/runtime/programs.py",
        'if jax.default_backend() == "cpu":',
        "if False:",
        "jax_engine/runtime/test_programs.py::test_a_program_is_found_wherever_its_directory_is",
    ),
    Break(
        "start: half a library is loaded",
        "jax_engine/kernels/native.py",
        "        kept = find(cache, target, LIBRARY_SUFFIX, announce)\n",
        "        from gnomon.jax_engine.runtime.checked import Kept\n\n"
        '        there = list(cache.glob(f"{target}-*"))\n'
        '        kept = Kept(there[0], b"") if there else None\n',
        "jax_engine/kernels/test_native.py::test_half_a_library_does_not_end_the_process_but_is_built_anew_with_a_line",
    ),
    Break(
        "start: jax is imported before a word is said",
        "http/cli/serve.py",
        "            say(_first_line(settings.served_model_name, start.engine))\n",
        "            import jax; say(_first_line(settings.served_model_name, start.engine))\n",
        "http/cli/test_cli.py::test_the_first_line_comes_before_jax_is_imported[serve]",
    ),
    Break(
        "loading: a directory of this machine is asked of the hub",
        "reference/checkpoint/hub.py",
        "and not os.path.lexists(model)",
        "",
        "reference/checkpoint/test_hub.py::test_what_is_on_this_machine_is_never_sent_to_the_hub",
    ),
    Break(
        "loading: a path is asked of the hub",
        "reference/checkpoint/hub.py",
        'PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"',
        'PART = r"[A-Za-z0-9.~][A-Za-z0-9._-]{0,95}"',
        "reference/checkpoint/test_hub.py::test_what_looks_like_a_path_is_never_sent_to_the_hub",
    ),
    Break(
        "loading: the weights are fetched a second time under another name",
        "reference/checkpoint/hub.py",
        '    "consolidated*",',
        '    "original*",',
        "reference/checkpoint/test_hub.py::test_a_hub_id_is_fetched_into_the_hubs_own_cache_and_runs",
    ),
    Break(
        "loading: the context can be raised",
        "reference/checkpoint/config.py",
        "if max_model_len is not None and not 1 <= max_model_len <= longest:",
        "if max_model_len is not None and not 1 <= max_model_len:",
        "reference/checkpoint/test_checkpoint.py::test_the_context_cannot_be_raised",
    ),
    Break(
        "a head that differs from the embedding is dropped",
        "reference/checkpoint/surplus.py",
        "        config = untied\n",
        "        pass\n",
        "reference/checkpoint/test_surplus.py::test_a_head_that_differs_from_the_embedding_is_served_with_a_line",
    ),
    Break(
        "a tied head is never compared",
        "reference/checkpoint/surplus.py",
        "and source.differ(head, embedding):",
        "and False:",
        "reference/checkpoint/test_surplus.py::test_one_differing_value_is_enough_wherever_it_stands",
    ),
    Break(
        "only the first piece of two tensors is compared",
        "reference/checkpoint/tensors.py",
        "                return True\n        return False\n\n\ndef _fill(",
        "                return True\n            break\n        return False\n\n\ndef _fill(",
        "reference/checkpoint/test_surplus.py::test_comparing_takes_the_memory_of_pieces_and_not_of_tensors",
    ),
    Break(
        "layers too many are dropped in silence",
        "reference/checkpoint/surplus.py",
        "    if extra:\n",
        "    if False:\n",
        "reference/checkpoint/test_surplus.py::test_layers_beyond_configs_are_left_out_with_a_line",
    ),
    Break(
        "a rotary table is dropped on trust",
        "reference/checkpoint/surplus.py",
        "fits = {ROTARY: _is_rotary, ",
        "fits = {",
        "reference/checkpoint/test_surplus.py::test_a_rotary_table_that_is_not_configs_is_left_out_with_a_line",
    ),
    Break(
        "a mask that is not causal is dropped on trust",
        "reference/checkpoint/surplus.py",
        "array_equal(block != 0, seen)",
        "array_equal(seen, seen)",
        "reference/checkpoint/test_surplus.py::test_a_mask_that_is_not_causal_is_left_out_with_a_line",
    ),
    Break(
        "model_type may contradict architectures",
        "reference/checkpoint/config.py",
        "    if by_type is not None:\n        models.add(by_type)\n",
        "",
        "reference/checkpoint/test_config_entries.py::"
        "test_an_unknown_name_or_another_models_is_refused_beside_a_known_type",
    ),
    Break(
        "the second description of rotary positions is ignored",
        "reference/rope.py",
        "for other in (place for place, its in others if its.turning != rope.turning):",
        "for other in ():",
        "reference/checkpoint/test_config_entries.py::"
        "test_rotary_positions_that_contradict_are_refused_with_both_values",
    ),
    Break(
        "an unreachable end id is dropped in silence",
        "reference/checkpoint/entries.py",
        "    if out:\n",
        "    if False:\n",
        "reference/checkpoint/test_config_entries.py::test_an_end_id_that_no_token_has_is_ignored_with_a_line",
    ),
    Break(
        "a text with a token beyond the model is not refused",
        PROMPT,
        '        _check_ids("prompt", ids, engine.vocab_size, tokenizer)\n',
        "",
        "reference/text/test_beyond.py::test_a_prompt_with_a_token_beyond_the_model_is_a_400_that_names_it",
    ),
    Break(
        "an end of text beyond the model begins documents",
        "reference/tokenizer.py",
        "{token: v for token, v in ids.items() if v < vocab_size}",
        "dict(ids)",
        "reference/text/test_beyond.py::test_an_end_of_text_beyond_the_model_begins_no_document",
    ),
    # ---- families
    Break(
        "families: a window hides one position too few",
        "reference/transformer.py",
        "seen & ~np.tri(T, k=-window, dtype=bool)",
        "seen & ~np.tri(T, k=-window - 1, dtype=bool)",
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    Break(
        "families: the router's weights are not normalized",
        "reference/transformer.py",
        "weights = weights / weights.sum(axis=-1, keepdims=True)",
        "weights = weights * 1.0",
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    Break(
        "families: YaRN does not stretch what is turned",
        "reference/transformer.py",
        "turned = model.rotate(x[..., :R], angle) * rope.magnitude",
        "turned = model.rotate(x[..., :R], angle)",
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    Break(
        "families: the halves of a parallel layer follow each other",
        "reference/transformer.py",
        'return x + mixed(normed(x, "input_layernorm")) + fed(normed(x, name))',
        'x = x + mixed(normed(x, "input_layernorm"))\n            return x + fed(normed(x, name))',
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    Break(
        "families: fused heads are cut as rows",
        "reference/checkpoint/tensor_table.py",
        "cuts = _cut_by_heads(config) if fused.by_heads else",
        "cuts = _cut_by_heads(config) if False else",
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    Break(
        "families: every expert has a say in the JAX engine",
        "jax_engine/model.py",
        "weights = jnp.where(is_sent, probabilities, 0.0)",
        "weights = probabilities",
        "jax_engine/test_families.py::test_the_jax_engine_computes_what_the_reference_does[Mixtral]",
    ),
    # ---- the server under load
    Break(
        "admission: Retry-After is always a second",
        "http/admission.py",
        "seconds = self.waiting_tokens() / pace if pace else 1.0",
        "seconds = 1.0",
        "http/test_admission.py::test_retry_after_is_what_waits_divided_by_the_pace_of_the_last_minute",
    ),
    Break(
        "admission: what the engine has begun with waits on",
        "http/admission.py",
        "            if answer.run.started is not None:\n                self.discard(answer)",
        "            answer.run.started",
        "http/test_admission.py::test_what_the_engine_begins_with_stops_waiting_and_what_ends_before_that_too",
    ),
    Break(
        "admission: the pace keeps what is older than a minute",
        "http/admission.py",
        "self._tokens -= self._done.popleft()[1]",
        "self._done.popleft()",
        "http/test_admission.py::test_what_was_finished_more_than_a_minute_ago_is_kept_by_nobody",
    ),
    Break(
        "admission: who leaves is looked for in the whole line",
        "http/admission.py",
        "self._line.pop(turn, None)",
        "del self._line[next(one for one in self._line if one is turn)]",
        "jax_engine/test_costs.py::test_a_place_is_left_and_given_at_the_same_cost_whoever_is_in_line",
    ),
    Break(
        "admission: a place is lost when who had it leaves in that moment",
        "http/admission.py",
        "                self._give()  # cancelled in the moment in which its turn had come",
        "                turn.result()  # cancelled in the moment in which its turn had come",
        "http/test_admission.py::test_a_place_given_in_the_moment_of_leaving_goes_to_the_next",
    ),
    Break(
        "a drained stream is logged as refused",
        LIFE,
        '{Draining: "drained", RequestTimeout',
        "{RequestTimeout",
        "http/cli/test_cli.py::test_what_is_not_finished_when_the_draining_is_over_ends_with_an_error",
    ),
    # ---- the life of a request
    Break(
        "life: a client that leaves is not heard",
        LIFE,
        "            self.is_alone = True\n            self._wake()\n",
        "            self.is_alone = True\n",
        "http/test_life.py::test_a_client_that_leaves_ends_whatever_is_done_for_it[behind_a_long_body]",
    ),
    Break(
        "memory: what large requests leave free is kept",
        "http/completions.py",
        "                if not life.is_small:\n",
        "                if False:\n",
        "http/process/test_tidy.py::test_requests_that_were_not_small_ask_for_it_however_they_end",
    ),
    Break(
        "life: what works for a request that has ended works on",
        LIFE,
        "        self.work.stop()\n",
        "",
        "http/test_life.py::test_a_client_that_leaves_ends_whatever_is_done_for_it[between_two_prompts]",
    ),
    Break(
        "life: the queue's clock does not count what is prepared",
        LIFE,
        "(self.answer is None or self.answer.run.started is None)",
        "self.answer is not None and self.answer.run.started is None",
        "http/test_life.py::test_who_waits_too_long_before_the_engine_begins_is_told_so[behind_a_long_body]",
    ),
    Break(
        "life: the end of the server is told to those alone that were let in",
        LIFE,
        "        for life in list(self.open):\n",
        "        for life in [one for one in self.open if one.answer is not None]:\n",
        "http/test_life.py::test_a_server_that_ends_says_so_whatever_a_request_waits_for[body_comes]",
    ),
    Break(
        "life: who takes nothing of an ended answer is waited for",
        LIFE,
        "timeout=self._settings.write_seconds, ",
        "",
        "http/test_life.py::test_who_takes_nothing_of_an_ended_answer_is_cut_off[clock-sent]",
    ),
    Break(
        "life: a turn to be prepared ends when its client leaves, not with its thread",
        LIFE,
        "        await asyncio.wait((preparing,))  # which leaves it alone when it is cancelled itself\n",
        "        await preparing\n",
        "http/test_life.py::test_a_turn_lasts_as_long_as_its_thread",
    ),
    Break(
        "a text that cannot fit is encoded",
        PROMPT,
        "        if tokens + (request.max_tokens if is_known else 0) > engine.context:\n",
        "        if is_known and tokens + request.max_tokens > engine.context:\n",
        "reference/test_cannot_fit.py::test_a_text_that_cannot_fit_is_refused_before_any_is_encoded",
    ),
    Break(
        "prompts that together may never wait are encoded",
        PROMPT,
        "            raise MoreThanMayWait(total, most_tokens, at_least=True)\n",
        "            pass\n",
        "reference/test_cannot_fit.py::test_prompts_that_together_are_more_than_may_wait_are_refused_unencoded",
    ),
    Break(
        "white space that a token swallows counts",
        TOKEN_LENGTH,
        'not any(token.get("lstrip") or token.get("rstrip") for token in added)',
        "True",
        "reference/text/test_token_length.py::"
        "test_a_token_that_strips_takes_any_white_space_and_only_that_is_not_counted",
    ),
    Break(
        "NFC is thought to shorten nothing",
        TOKEN_LENGTH,
        "        longest *= shrink or 1\n",
        "        longest *= 1\n",
        "reference/text/test_token_length.py::"
        "test_no_text_has_fewer_tokens_than_are_known_before[NFC of unknown characters]",
    ),
    Break(
        "a run of unknown characters is thought to be a token each",
        TOKEN_LENGTH,
        ' and not model.get("fuse_unk")',
        "",
        "reference/text/test_token_length.py::"
        "test_where_one_token_may_be_a_whole_text_nothing_is_known[unknown characters fused]",
    ),
    Break(
        "the process that encodes a long text outlives its request",
        "reference/text/encode_apart.py",
        "with work.ended_by(process.kill):",
        "with work.ended_by(lambda: None):",
        "reference/text/test_token_length.py::test_stopping_the_work_ends_the_process",
    ),
    Break(
        "a pass of the reference goes on when its job is closed",
        ENGINE,
        "self._engine.last_logits([*prompt_ids, *sampled], self._check)",
        "self._engine.last_logits([*prompt_ids, *sampled])",
        "reference/test_engine.py::test_closing_a_job_ends_its_pass_between_two_layers[False]",
    ),
    Break(
        "a variable of a Kubernetes Service is an option",
        "http/cli/app.py",
        "        del os.environ[name]\n",
        "        pass\n",
        "http/cli/test_environment.py::test_a_pod_beside_services_of_our_name_starts_and_says_so_in_one_line",
    ),
    Break(
        "whatever begins like a Service's variable is one",
        "http/cli/environment.py",
        "re.escape(service) + rest, name) and re.fullmatch(form, value)",
        "re.escape(service) + rest, name)",
        "http/cli/test_environment.py::test_nothing_else_is_taken_for_a_service",
    ),
    Break(
        "output that fails is no failure",
        "http/cli/console.py",
        "    _answer_for(streams, ended, status_of_failure)\n",
        "",
        "http/cli/test_console.py::test_output_that_cannot_be_written_is_one_line_or_the_silence_of_a_pipe[complete-1]",
    ),
    Break(
        "what a library writes to standard error is no record",
        "http/cli/console.py",
        "        os.dup2(write, 2)\n",
        "",
        "http/cli/test_console.py::test_every_line_of_a_server_is_json_from_its_start_to_the_end_of_its_draining",
    ),
    Break(
        "the greeting is text whatever the log's format",
        "http/cli/serve.py",
        "    if settings.log_format is LogFormat.json:\n",
        "    if False:\n",
        "http/cli/test_console.py::test_every_line_of_a_server_is_json_from_its_start_to_the_end_of_its_draining",
    ),
    Break(
        "the configuration is JSON and not TOML",
        "http/cli/toml.py",
        '    return f\'"{"".join(map(_character, as_utf8(str(value))))}"\'\n',
        "    import json\n\n    return json.dumps(str(value))\n",
        "http/cli/test_cli.py::test_the_configuration_is_toml_whatever_its_values_are",
    ),
    Break(
        "a byte order mark is a part of the first key",
        "http/identity/options.py",
        'data.decode("utf-8-sig")',
        'data.decode("utf-8")',
        "http/identity/test_auth_modes.py::test_a_key_file_of_any_editor_is_read",
    ),
    Break(
        "swapped files of TLS are not told apart",
        "http/process/certificate.py",
        "private.has_certificate and not private.has_key:",
        "False:",
        "http/process/test_certificate.py::test_what_is_wrong_with_a_pair_is_said_and_in_which_file",
    ),
    Break(
        "the hub is asked without a word",
        "reference/checkpoint/hub.py",
        "        if say is not None:\n",
        "        if False:\n",
        "reference/checkpoint/test_hub.py::test_that_no_directory_is_here_is_said_before_the_hub_is_asked",
    ),
    Break(
        "service: a draining server is ready",
        "http/service.py",
        "            return Draining()\n",
        "            return None\n",
        "http/test_service.py::test_a_draining_server_lets_nobody_in_and_is_not_ready",
    ),
    Break(
        "service: what we ended counts as the engine's fault",
        "http/completions.py",
        "            if answer.error is not None:\n                raise answer.error from None\n",
        "",
        "http/test_service.py::test_an_answer_that_is_ended_by_us_is_no_fault_of_the_engine",
    ),
    Break(
        "streams: silence is not broken by a comment",
        "http/sse.py",
        "                await self.write(PING)",
        "                self._since = time.monotonic()",
        "http/test_admission.py::test_a_stream_that_waits_for_its_turn_is_kept_alive_and_ends_with_an_error_event",
    ),
    # ---- one interpreter for all
    Break(
        "the size of an answer is not looked at",
        COMPLETION,
        "    check_size(request, sizes, (limits or Limits()).answer_bytes)\n",
        "",
        "reference/body/test_answer_size.py::test_by_default_a_request_of_44_kilobytes_gets_no_406_megabytes",
    ),
    Break(
        "the server's own bound on answers does not reach its requests",
        "http/settings.py",
        "            answer_bytes=self.max_answer_bytes,\n",
        "",
        "reference/body/test_answer_size.py::test_a_server_refuses_it_before_the_engine_is_asked_for_anything",
    ),
    Break(
        "discarded candidates do not count for the size of an answer",
        SIZE,
        "return request.candidates * (len(prompts)",
        "return request.n * (len(prompts)",
        "reference/body/test_answer_size.py::test_the_count_is_the_one_that_the_documents_give",
    ),
    Break(
        "an echo is encoded for every choice",
        COMPLETION,
        "        if j not in self._echoes:\n",
        "        if True:\n",
        "reference/body/test_writing.py::test_what_is_echoed_is_encoded_once_a_prompt",
    ),
    Break(
        "the entries of a choice are encoded by one call",
        WRITING,
        "    step = max(1, VALUES_AT_ONCE // (entries.top + 1))\n",
        "    step = max(1, at.stop)\n",
        "reference/body/test_writing.py::test_no_call_encodes_more_than_some_thousand_numbers",
    ),
    Break(
        "an answer is sent in one piece",
        "http/completions.py",
        "        made = blocks(pieces)\n",
        '        made = iter([b"".join(blocks(pieces))])\n',
        "reference/body/test_writing.py::test_no_call_encodes_more_than_some_thousand_numbers",
    ),
    Break(
        "a body may have any number of values",
        STRICT,
        "        if self._left < 0:\n",
        "        if self._left is None:\n",
        "reference/body/test_strict_json.py::test_values_have_an_end_that_names_the_member_they_are_in",
    ),
    Break(
        "a list of millions is written out for an error's message",
        "reference/body/shown.py",
        "    elif isinstance(value, list | dict):\n        return _shown_in_part(value)\n",
        "",
        "reference/body/test_strict_json.py::test_a_list_of_millions_is_shown_without_being_written",
    ),
    # ---- the golden vectors
    Break(
        "the judge excuses a rival whatever error it needs",
        GOLDEN_JUDGE,
        "if s == step and label == got and error <= allowed:",
        "if s == step and label == got:",
        "reference/golden/test_golden_vectors.py::"
        "test_a_token_that_rounding_decides_is_excused_and_what_follows_not_compared",
    ),
    Break(
        "the judge takes any other token for a rival",
        GOLDEN_JUDGE,
        "if s == step and label == got and error <= allowed:",
        "if s == step and error <= allowed:",
        "reference/golden/test_golden_vectors.py::test_a_token_that_is_none_of_the_rivals_is_not_excused",
    ),
    Break(
        "the judge does not look at offsets",
        GOLDEN_JUDGE,
        """        self.equal(f"{at}.text_offset[{i}]", expected["text_offset"][i], got["text_offset"][i])\n""",
        "",
        "reference/golden/test_golden_vectors.py::test_the_judge_finds_a_wrong_answer_and_says_where",
    ),
    Break(
        "the judge takes NaN for a log-probability",
        GOLDEN_JUDGE,
        "if not off <= self.tolerance.logprob:",
        "if off > self.tolerance.logprob:",
        "reference/golden/test_golden_vectors.py::test_the_judge_finds_a_wrong_answer_and_says_where",
    ),
    Break(
        "an exported model is put among other files",
        "reference/checkpoint/export.py",
        "        _must_be_the_model(directory, sources)\n        return Exported(targets, written=False)",
        "        pass",
        "reference/checkpoint/test_export_model.py::"
        "test_a_directory_with_anything_else_is_refused_by_name_and_not_touched",
    ),
    # ---- the reference's bits
    Break(
        "the threads of NumPy's BLAS are as many as it is started with",
        "reference/system/blas.py",
        "before = _set(self._shared, [1] * len(self._shared))",
        "before = _set(self._shared, [each.num_threads for each in self._shared])",
        "reference/system/test_blas.py::test_threads_come_back_when_the_last_of_several_has_left",
    ),
    Break(
        "only the thread that came first may hold the threads of NumPy's BLAS",
        "reference/system/blas.py",
        "            library.clear_controlling_thread(force=True)\n",
        "            pass\n",
        "reference/system/test_blas.py::test_numpys_own_threads_are_held_in_any_thread_and_come_back",
    ),
    Break(
        "the model is run with as many threads as there are",
        ENGINE,
        "        with blas.NUMPYS.one_thread():\n            return hidden_states(self.config, params, tokens)",
        "        return hidden_states(self.config, params, tokens)",
        "reference/system/test_blas.py::test_a_pass_of_the_model_is_within",
    ),
    # ---- a finished sequence once more, and the picture of a draw
    Break(
        "replay: the first candidate is taken for the one behind a choice",
        REPLAY,
        "        if len(candidates) == 1:\n",
        "        if candidates:\n",
        "reference/trace/test_replay.py::test_the_candidate_behind_a_choice_of_best_of_is_found",
    ),
    Break(
        "replay: penalties count tokens that were yet to come",
        REPLAY,
        "counts = np.bincount(self._ids[: key.step], minlength=len(logits))",
        "counts = np.bincount(self._ids, minlength=len(logits))",
        "reference/trace/test_replay.py::test_a_draw_is_the_samplers_trace",
    ),
    Break(
        "replay: the steps of another request are shown",
        REPLAY,
        "if self._known is None or self._known[0] != key:",
        "if self._known is None:",
        "reference/trace/test_replay.py::test_other_parameters_for_the_same_tokens_are_counted_anew",
    ),
    Break(
        "replay: the model runs again for every step",
        REPLAY,
        "            self._last = replay\n",
        "",
        "reference/trace/test_replay.py::test_steps_of_one_sequence_are_one_pass_of_the_model",
    ),
    Break(
        "replay: an error inside does not say where",
        REPLAY,
        '        error.param, error.message = f"{field}.{error.param}", f"{field}.{error.message}"\n',
        "",
        "reference/trace/test_replay.py::test_what_is_wrong_is_refused_by_its_name",
    ),
    Break(
        "explain: a token's own probability counts as before it",
        EXPLAIN,
        "before[order] = np.concatenate([[0.0], np.cumsum(q[order])[:-1]])",
        "before[order] = np.cumsum(q[order])",
        "reference/trace/test_replay.py::test_the_mass_before_a_token_decides_whether_it_is_kept",
    ),
    Break(
        "explain: a token that could not win is the runner-up",
        EXPLAIN,
        "return second if np.isfinite(others[second]) else None",
        "return second",
        "reference/trace/test_replay.py::test_a_sentence_says_what_became_of_a_token",
    ),
    Break(
        "explain: the chance of a draw is told as if top_p had removed nothing",
        EXPLAIN,
        "e = np.where(trace.kept, np.exp(trace.scaled), 0.0)",
        "e = np.exp(trace.scaled)",
        "reference/trace/test_replay.py::test_the_chance_of_a_token_is_shared_among_the_kept_alone",
    ),
    Break(
        "picture: a sum just below top_p is rounded up to it",
        PICTURE,
        'f"up to {beside(min(row.mass_before + row.probability, 1.0), p)}"',
        'f"up to {percent(min(row.mass_before + row.probability, 1.0))}"',
        "reference/trace/test_picture.py::"
        "test_no_kept_token_shows_a_sum_that_looks_like_top_p_before_the_last_kept_one",
    ),
    Break(
        "picture: a label is markup",
        "reference/trace/svg.py",
        "{escape(text, quote=False)}</text>",
        "{text}</text>",
        "reference/trace/test_picture.py::test_a_label_is_text_and_never_markup",
    ),
    Break(
        "picture: the line of top_p stands elsewhere",
        PICTURE,
        "        x += width * draw.params.top_p\n",
        "        x += width * (1 - draw.params.top_p)\n",
        "reference/trace/test_picture.py::test_the_line_of_top_p_stands_where_the_kept_end",
    ),
    Break(
        "picture: removed tokens are told by their colour alone",
        PICTURE,
        "    if out:\n",
        "    if False:\n",
        "reference/trace/test_picture.py::test_removed_tokens_are_struck_and_say_so_in_words_and_the_rest_is_not",
    ),
    Break(
        "trace: several are computed at a time",
        RETRACE,
        "        await self.turn.acquire()\n",
        "        self.turn = asyncio.Lock()\n        await self.turn.acquire()\n",
        "http/test_trace.py::test_one_is_computed_at_a_time_and_who_finds_the_line_full_is_told_when",
    ),
    Break(
        "trace: work goes on that nobody waits for",
        RETRACE,
        "            work.stop()\n",
        "            pass\n",
        "http/test_trace.py::test_a_client_that_goes_away_ends_its_work_or_its_waiting",
    ),
    Break(
        "trace: a reference that does not fit is loaded",
        RETRACE,
        "        if need > most:\n",
        "        if need > most + 1:\n",
        "http/test_trace.py::test_the_parameters_decide_whether_it_fits_and_nothing_is_read_to_know",
    ),
    Break(
        "trace: the model runs to its end whoever waits",
        ENGINE,
        "        check()\n        yield layer\n",
        "        yield layer\n",
        "reference/trace/test_replay.py::test_work_that_nobody_waits_for_ends_within_a_layer_and_within_a_draw",
    ),
    # ---- signals, renewed keys and certificates, connections that stay
    Break(
        "a key that is gone from its file is let in on",
        "http/auth.py",
        "            self.digests = digests\n",
        "            self.digests += digests\n",
        "http/process/test_reload.py::test_a_hangup_reads_keys_and_certificate_again_and_a_stream_goes_on",
    ),
    Break(
        "a renewed certificate is read and not shown",
        "http/process/reload.py",
        "            self.latest = context",
        "            self.latest = None",
        "http/process/test_reload.py::test_a_hangup_reads_keys_and_certificate_again_and_a_stream_goes_on",
    ),
    Break(
        "a hangup is left to the system",
        "http/run.py",
        "NOTED = (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)",
        "NOTED = (signal.SIGUSR1, signal.SIGUSR2)",
        "http/process/test_reload.py::test_a_hangup_without_files_says_so_and_neither_it_nor_user_signals_end_a_drain",
    ),
    Break(
        "nohup is overruled",
        "http/run.py",
        "if signal.getsignal(sig) is not signal.SIG_IGN]",
        "if signal.getsignal(sig) is not None]",
        "http/process/test_reload.py::test_under_nohup_a_hangup_stays_ignored",
    ),
    Break(
        "a server outlives its terminal",
        "http/run.py",
        "if sig == signal.SIGHUP and self.has_terminal and not has_terminal():",
        "if sig == signal.SIGHUP and not self.has_terminal and has_terminal():",
        "http/process/test_reload.py::test_a_server_whose_terminal_goes_away_drains_and_ends",
    ),
    Break(
        "a connection is promised for longer than it stays",
        "http/framing.py",
        'f"timeout={int(self.idle_seconds)}"',
        'f"timeout={int(self.idle_seconds) + 1}"',
        "http/test_wire.py::test_an_answer_says_for_how_long_its_connection_stays",
    ),
    Break(
        "a connection that closes is promised to stay",
        "http/framing.py",
        "elif self.stays and self.idle_seconds >= 1:",
        "elif self.idle_seconds >= 1:",
        "http/test_wire.py::test_where_the_connection_closes_no_time_is_promised",
    ),
    Break(
        "connections stay open to a server that drains",
        "http/framing.py",
        "or self.is_ending() or asks_to_close(event.headers)",
        "or asks_to_close(event.headers)",
        "http/test_wire.py::test_while_it_drains_every_answer_is_its_connections_last",
    ),
    Break(
        "a read full of tiny chunks is looked at in one turn",
        "http/framing.py",
        "for _ in range(SLICE):",
        "for _ in range(10**9):",
        "http/test_wire.py::test_of_a_read_full_of_tiny_chunks_a_turn_looks_at_a_bounded_part",
    ),
    Break(
        "a head may have any number of fields",
        "http/framing.py",
        "if fields > MOST_FIELDS:",
        "if fields > 10**9:",
        "http/test_wire.py::test_a_head_has_at_most_a_thousand_fields",
    ),
    Break(
        "a line is lost where standard error does not wait",
        "http/observe/logs.py",
        "    except BlockingIOError:\n        room",
        "    except BlockingIOError:\n        raise\n        room",
        "http/observe/test_logs.py::test_no_line_is_lost_or_cut_where_standard_error_does_not_wait",
    ),
    Break(
        "what is no Exception reaches the event loop",
        "http/threads.py",
        "future.set_exception(broken)",
        "future.set_exception(error)",
        "http/test_threads.py::test_what_is_no_exception_reaches_no_event_loop",
    ),
    Break(
        "a panic of the tokenizer's library is not caught",
        "reference/tokenizer.py",
        "if type(error).__module__ != PANIC:",
        "if type(error).__module__ == PANIC:",
        "jax_engine/test_faults.py::test_a_text_at_which_the_tokenizer_panics_is_a_400_and_the_next_one_is_read",
    ),
    Break(
        "a system without a thread left is a fault of the server's",
        "http/errors.py",
        "if isinstance(error, NoThread):",
        "if isinstance(error, ZeroDivisionError):",
        "jax_engine/test_faults.py::test_without_a_thread_left_a_request_is_a_503_and_the_engine_is_not_blamed",
    ),
    Break(
        "the event loop waits for a thread that died at its birth",
        "http/threads.py",
        "super().wait(START_SECONDS if timeout is None else timeout)",
        "super().wait(timeout)",
        "http/test_threads.py::test_a_thread_that_dies_before_its_first_line_is_not_waited_for",
    ),
    Break(
        "draining takes longer than Kubernetes waits",
        "http/settings.py",
        "drain_seconds: float = option(20,",
        "drain_seconds: float = option(30,",
        "http/test_kubernetes.py::test_draining_fits_the_grace_period_here_and_by_default",
    ),
    Break(
        "a stream that is held back is not found",
        ARRIVAL,
        "one.spread >= SPREAD for one in self.long",
        "one.spread >= 0 for one in self.long",
        "http/verify/test_verify_arrival.py::test_in_process_a_server_that_holds_back_is_told_from_one_that_does_not",
    ),
    Break(
        "a server with a queue is blamed for holding back",
        ARRIVAL,
        " and out_of_order <= MOST_OUT_OF_ORDER",
        "",
        "http/verify/test_verify_arrival.py::test_a_server_whose_answers_wait_long_before_they_begin_is_not_blamed",
    ),
    Break(
        "an event that says nothing is taken for the first",
        ARRIVAL,
        "for end, data in _events(exchange.content) if _has_text(data)]",
        "for end, data in _events(exchange.content)]",
        "http/verify/test_verify_arrival.py::test_comments_and_events_without_text_are_not_the_first_event",
    ),
    Break(
        "a finding is folded under a case that is honoured",
        ROOTS,
        " and is_ignored(one.case.follows)",
        "",
        "http/verify/test_verify_roots.py::test_nothing_is_folded_under_a_case_that_does_not_say_ignored",
    ),
    Break(
        "two findings are taken for one fault",
        ROOTS,
        " if len(names) >= fault.least",
        "",
        "http/verify/test_verify_roots.py::test_a_fault_is_folded_only_where_as_many_cases_see_it_as_it_takes",
    ),
    Break(
        "a finding whose root is not reported is hidden",
        "http/verify/report/report.py",
        "if entry.root not in found",
        "if entry.root is None",
        "http/verify/test_verify_roots.py::test_a_root_that_is_not_in_the_report_hides_nothing",
    ),
    Break(
        "verify: half a character at a text's start is blamed on the server",
        ARRIVAL,
        "if not all(one.text and",
        "if not all(True or",
        "http/verify/test_verify_arrival.py::test_a_first_token_that_is_no_character_yet_could_not_be_sent_sooner",
    ),
    Break(
        "verify: a model that ends at once is blamed on the server",
        "http/verify/cases/text.py",
        "    if one.has_ended and not (isinstance(billed, int) and billed > 1):\n        return None\n",
        "",
        f"{ODD_MODELS}::test_no_case_accuses_a_sound_server_of_its_model[ends at once]",
    ),
    Break(
        "verify: tokens without text are blamed on the server",
        "http/verify/cases/text.py",
        "(one.completion_tokens, eight.completion_tokens) == (1, 8)",
        "(one.completion_tokens, eight.completion_tokens) == (1, 9)",
        f"{ODD_MODELS}::test_no_case_accuses_a_sound_server_of_its_model[no text, whatever the bias]",
    ),
    Break(
        "verify: a model that no bias moves is blamed on the server",
        "http/verify/cases/sampling.py",
        "if behind > 95:",
        "if behind > 1e9:",
        f"{ODD_MODELS}::test_no_case_accuses_a_sound_server_of_its_model[one token, whatever the bias]",
    ),
    Break(
        "verify: a tokenizer that begins texts without a space is blamed on the server",
        "http/verify/ask/probe.py",
        'return {self.text, self.text.removeprefix(" ")}',
        "return {self.text}",
        f"{ODD_MODELS}::test_no_case_accuses_a_sound_server_of_its_model[SentencePiece]",
    ),
    Break(
        "verify: texts that tell nothing are compared",
        "http/verify/ask/probe.py",
        'return {"logit_bias": {str(token.id): FORCE for token in others}} if len(others) > 1 else {}',
        "return {}",
        f"{ODD_MODELS}::test_a_fault_is_not_acquitted_on_such_a_model[ends at once: temperature.greedy: 0 is 1]",
    ),
)


def patched(name: str, text: str, old: str, new: str) -> str:
    """The text with its one occurrence of `old` replaced."""
    count = text.count(old)
    if count != 1:
        raise SystemExit(f"sabotage: {name!r}: the text to replace occurs {count} times, not once:\n{old}")
    return text.replace(old, new)


def named_test_exists(test: str, tests: Path = ROOT / "tests") -> bool:
    file, function = test.split("[")[0].split("::")
    if not (tests / file).is_file():
        return False
    nodes = ast.parse((tests / file).read_text(encoding="utf-8")).body
    return any(isinstance(node, ast.FunctionDef) and node.name == function for node in nodes)


# ---- the copy


@contextmanager
def copied() -> Iterator[Path]:
    """A folder with the source, the tests, and `path/gnomon`, a package of links to the copied folders.

    `gnomon` has no __init__.py where it is installed; here it has one, so that Python cannot look for a module of it in
    any other place.
    """
    with tempfile.TemporaryDirectory(prefix="sabotage-") as folder:
        copy = Path(folder).resolve()
        rubbish = shutil.ignore_patterns("__pycache__", ".hypothesis")
        for name in (*PACKAGES, "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=rubbish)
        for name in ("pyproject.toml", "README.md"):
            if (ROOT / name).exists():
                shutil.copy(ROOT / name, copy)
        package = copy / "path" / "gnomon"
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
        for name in PACKAGES:
            (package / name).symlink_to(copy / name)
        yield copy


@contextmanager
def broken(copy: Path, name: str, file: str, old: str, new: str) -> Iterator[None]:
    path = copy / file
    whole = path.read_text(encoding="utf-8")
    path.write_text(patched(name, whole, old, new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(whole, encoding="utf-8")


# ---- running tests on it


class Verdict(NamedTuple):
    """What became of one named test: how many of its cases passed, failed by assertion, and ended in any other way."""

    passed: int = 0
    asserted: int = 0
    other: tuple[str, ...] = ()

    @property
    def word(self) -> str:
        if self.other:
            return f"ERROR ({self.other[0]})"
        return "red" if self.asserted else "green" if self.passed else "NOT RUN"


def run(copy: Path, tests: Sequence[str]) -> dict[str, Verdict]:
    """Runs tests of the copy in a process of its own, each to its first failure."""
    command = [sys.executable, str(copy / "tests" / "sabotage.py"), "--inside", str(copy), *tests]
    environment = {**os.environ, "PYTHONPATH": str(copy / "path"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # halves the time it takes to start
    environment["GNOMON_FUZZ_REQUESTS"] = "30"
    environment["OPENBLAS_NUM_THREADS"] = "1"  # a break on each core
    result = copy / "result.json"
    result.unlink(missing_ok=True)
    try:
        done = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, text=True, timeout=SECONDS + 2 * len(tests)
        )
    except subprocess.TimeoutExpired:
        return {test: Verdict(other=("took too long",)) for test in tests}
    if not result.exists():
        raise SystemExit(f"sabotage: the tests could not be run:\n{done.stdout}{done.stderr}")
    read = json.loads(result.read_text())
    return {test: Verdict(passed, asserted, tuple(other)) for test, (passed, asserted, other) in read.items()}


class Recorder:
    """A pytest plugin that counts how the cases of each named test end."""

    def __init__(self, tests: Sequence[str]) -> None:
        self.verdicts = {test: Verdict() for test in tests}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        test = report.nodeid.removeprefix("tests/")
        if test not in self.verdicts:  # all cases of a function
            test = test.split("[")[0]
        verdict = self.verdicts[test]
        if report.failed:
            kind = str(getattr(report, "kind", report.when))  # as put there below
            if kind == "assertion":
                verdict = verdict._replace(asserted=verdict.asserted + 1)
            else:
                verdict = verdict._replace(other=(*verdict.other, kind))
        elif report.when == "call" and report.passed:
            verdict = verdict._replace(passed=verdict.passed + 1)
        self.verdicts[test] = verdict

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, call: pytest.CallInfo[None]) -> Any:
        report = yield
        if call.excinfo is not None:
            own = report.when == "call" and by_assertion(call.excinfo.value)
            report.kind = "assertion" if own else f"{report.when}: {call.excinfo.exconly()[:200]}"
        return report

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            for test in self.verdicts:
                self.verdicts[test] = Verdict(other=("cannot be collected",))


def by_assertion(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return all(by_assertion(part) for part in error.exceptions)
    return isinstance(error, AssertionError | pytest.fail.Exception)


def inside(copy: Path, tests: Sequence[str]) -> None:
    """In the process of its own: checks whose source it is, runs the tests, writes the result."""
    for name in ("gnomon", "gnomon.reference"):
        spec = find_spec(name)
        expected = copy.joinpath("path", *name.split("."), "__init__.py")
        assert spec is not None
        assert spec.origin == str(expected), f"{name} would come from {spec.origin}"
    recorder = Recorder(tests)
    nodes = [str(copy / "tests" / test) for test in tests]
    options = ["-q", "-m", "", "-p", "no:cacheprovider", "--rootdir", str(copy), "-c", str(copy / "pyproject.toml")]
    if len(tests) == 1:
        options.append("-x")
    pytest.main([*options, *nodes], plugins=[recorder])
    (copy / "result.json").write_text(json.dumps(recorder.verdicts))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="only the breaks whose name contains this")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only one of N, beginning with the first")
    parser.add_argument("--list", action="store_true", help="what would be broken, and which test must notice")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        return inside(Path(options.inside[0]), options.inside[1:])
    chosen = [entry for entry in BREAKS[:: options.every] if options.only in entry.name]
    if not chosen:
        raise SystemExit(f"sabotage: no break has {options.only!r} in its name")
    width = max(len(entry.name) for entry in chosen)
    if options.list:
        for entry in chosen:
            print(f"{entry.name:{width}}  {entry.file:24}  {entry.test}")
        return None
    begun, survivors = time.monotonic(), 0
    with ExitStack() as stack:
        copies = [stack.enter_context(copied()) for _ in range(min(os.cpu_count() or 1, len(chosen)))]
        for entry in chosen:  # all are tried before any is run
            with broken(copies[0], *entry[:4]):
                pass
        whole = run(copies[0], sorted({entry.test for entry in chosen}))
        idle: SimpleQueue[Path] = SimpleQueue()
        for copy in copies:
            idle.put(copy)

        def after(entry: Break) -> str:
            if whole[entry.test].word != "green":
                return "-"
            copy = idle.get()
            try:
                with broken(copy, *entry[:4]):
                    return run(copy, [entry.test])[entry.test].word
            finally:
                idle.put(copy)

        workers = stack.enter_context(ThreadPoolExecutor(len(copies)))
        for entry, word in zip(chosen, workers.map(after, chosen), strict=True):
            before = whole[entry.test].word
            survived = (before, word) != ("green", "red")
            survivors += survived
            mark = "!!" if survived else "  "
            print(f"{mark} {entry.name:{width}}  {before} → {word:6}  {entry.test}", flush=True)
    print(f"{len(chosen)} breaks, {survivors} not noticed, {time.monotonic() - begun:.0f} s")
    raise SystemExit(1 if survivors else 0)


if __name__ == "__main__":
    main()
