"""Mutations of the reference, and for each the test that must notice it. Run by tests/mutate.py."""

from mutations.mutation import Mutation

SAMPLER = "reference/sampler.py"
PRNG = "reference/prng.py"
ENGINE = "reference/engine.py"
MODEL = "reference/model.py"
COMPLETION = "reference/completion.py"
REQUEST = "reference/request.py"
TOKENIZER = "reference/tokenizer.py"
WRITING = "reference/body/writing.py"
SIZE = "reference/body/answer_size.py"
STRICT = "reference/body/strict_json.py"
DECODERS = "reference/text/decoders.py"
ADDED = "reference/text/added_tokens.py"
GOLDEN_JUDGE = "reference/golden/judge.py"
INFILL = "reference/text/infill.py"
REPLAY = "reference/trace/replay.py"
EXPLAIN = "reference/trace/explain.py"
PICTURE = "reference/trace/picture.py"
TOKEN_LENGTH = "reference/text/token_length.py"
PROMPT = "reference/prompt.py"
STOP = "reference/stop.py"

MUTATIONS = (
    # ---- what waits, in bytes
    Mutation(
        "a run keeps the texts of its request",
        COMPLETION,
        'replace(request, prompts=(), suffix="", user=None)',
        "request",
        "reference/body/test_memory.py::test_a_waiting_prompt_is_four_bytes_a_token_and_no_text_unless_it_is_echoed",
    ),
    Mutation(
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
    Mutation(
        "a stop string's table is made whole at once",
        STOP,
        "while len(lengths) <= k:",
        "while len(lengths) <= len(stop):",
        "reference/body/test_memory.py::test_a_stop_strings_table_is_made_only_as_far_as_a_text_comes_in_it",
    ),
    Mutation(
        "a stop string may be twice as long",
        REQUEST,
        "if len(text) > most:",
        "if len(text) > 2 * most:",
        "reference/test_request.py::test_a_stop_string_and_a_user_have_at_most_1024_characters",
    ),
    Mutation(
        "entries of a bias are not counted in bytes",
        "reference/body/kept.py",
        "sys.getsizeof(bias) + len(bias) * BIAS_ENTRY_BYTES if bias else 0",
        "0",
        "reference/body/test_memory.py::test_what_is_counted_of_a_run_is_what_it_takes_within_a_factor_of_two",
    ),
    # ---- starts, files and descriptors
    Mutation(
        "files: a pipe is waited for",
        "reference/system/files.py",
        "    if not stat.S_ISREG(found.st_mode):\n",
        "    if False:\n",
        "reference/system/test_files.py::test_what_is_no_regular_file_is_refused_at_once_by_what_it_is",
    ),
    Mutation(
        "files: a file is read without an end",
        "reference/system/files.py",
        "content = file.read(most + 1)",
        "content = file.read(most)",
        "reference/system/test_files.py::test_a_link_to_a_regular_file_is_read_to_its_bound_and_no_further",
    ),
    # ---- the sampler's stages
    Mutation(
        "the bias is dropped",
        SAMPLER,
        "biased = add_bias(logits, params.logit_bias)",
        "biased = logits.copy()",
        "reference/test_completion.py::test_the_bias_moves_the_end_token_too",
    ),
    Mutation(
        "the frequency penalty is dropped",
        SAMPLER,
        "    z = z - frequency_penalty * counts\n",
        "",
        "reference/test_sampler.py::test_frequency_counts_each_time_and_presence_once",
    ),
    Mutation(
        "the presence penalty is dropped",
        SAMPLER,
        "return z - presence_penalty * (counts > 0)",
        "return z",
        "reference/test_sampler.py::test_frequency_counts_each_time_and_presence_once",
    ),
    Mutation(
        "penalties count the prompt",
        ENGINE,
        "np.array(sampled, np.int64)",
        "np.array([*prompt_ids, *sampled], np.int64)",
        "reference/test_completion.py::test_penalties_count_a_candidates_own_tokens_and_not_the_prompt",
    ),
    Mutation(
        "penalties come after temperature",
        SAMPLER,
        "    s = temper(z, params.temperature)\n",
        "    s = temper(biased, params.temperature)\n"
        "    s = penalize(s, counts, params.frequency_penalty, params.presence_penalty)\n",
        "reference/test_goldens.py::test_golden_a_every_stage_of_one_draw",
    ),
    Mutation(
        "nucleus comes before temperature",
        SAMPLER,
        "e = np.exp(s)",
        "e = np.exp(z - z.max())",
        "reference/test_sampler.py::test_the_mass_is_that_of_the_tempered_probabilities",
    ),
    Mutation(
        "a tie goes to the highest id",
        SAMPLER,
        "return int(np.argmax(z))",
        "return len(z) - 1 - int(np.argmax(z[::-1]))",
        "reference/test_sampler.py::test_greedy_takes_the_largest_and_the_lowest_id_on_a_tie",
    ),
    Mutation(
        "temperature has a floor",
        SAMPLER,
        "distance / temperature)",
        "distance / max(temperature, 1e-2))",
        "reference/test_sampler.py::test_a_tiny_temperature_has_no_floor_and_minus_infinity_is_never",
    ),
    Mutation(
        "the token that crosses top_p is dropped",
        SAMPLER,
        "mass_before = np.concatenate([[0.0], np.cumsum(q[order])[:-1]])",
        "mass_before = np.cumsum(q[order])",
        "reference/test_sampler.py::test_the_token_that_crosses_top_p_is_kept_and_the_one_after_equality_is_not",
    ),
    Mutation(
        "the token after equality with top_p is kept",
        SAMPLER,
        "kept_ranks = mass_before < top_p",
        "kept_ranks = mass_before <= top_p",
        "reference/test_sampler.py::test_the_token_that_crosses_top_p_is_kept_and_the_one_after_equality_is_not",
    ),
    Mutation(
        "equal logits are ranked by falling id",
        SAMPLER,
        'order = np.argsort(-z, kind="stable")',
        'order = np.argsort(z, kind="stable")[::-1]',
        "reference/test_sampler.py::test_equal_logits_are_ranked_by_id",
    ),
    Mutation(
        "logprobs are reported after temperature",
        SAMPLER,
        "logprobs = report(logits)",
        "logprobs = report(logits / (params.temperature or 1))",
        "reference/test_sampler.py::test_reported_logprobs_are_raw_whatever_the_sampling",
    ),
    Mutation(
        "the complement of the high words is dropped",
        SAMPLER,
        "np.where(high, ~x0, x0) * 2.0**-32",
        "x0 * 2.0**-32",
        "reference/test_sampler.py::test_gumbel_is_minus_ln_of_minus_ln_of_one_minus_u",
    ),
    Mutation(
        "the low word is dropped",
        SAMPLER,
        "(np.where(high, ~x1, x1) + 0.5) * 2.0**-64",
        "0.5 * 2.0**-32",
        "reference/test_sampler.py::test_gumbel_uses_all_64_bits_at_both_ends",
    ),
    # ---- the model
    Mutation(
        "the mask is shifted by one",
        MODEL,
        "np.tri(T, dtype=bool)",
        "np.tri(T, k=1, dtype=bool)",
        "reference/test_model.py::test_attention_is_the_plain_loop_and_a_shifted_mask_is_not",
    ),
    Mutation(
        "rotary positions pair neighbours",
        MODEL,
        "first, second = np.split(x, 2, axis=-1)",
        "first, second = x[..., 0::2], x[..., 1::2]",
        "reference/test_model.py::test_attention_is_the_plain_loop_and_a_shifted_mask_is_not",
    ),
    Mutation(
        "query heads take turns at the key/value heads",
        MODEL,
        "angle).reshape(T, K, -1, H)",
        "angle).reshape(T, -1, K, H).swapaxes(1, 2)",
        "reference/test_model.py::test_grouped_heads_equal_repeated_heads",
    ),
    Mutation(
        "the mask of the model that is served is shifted by one",
        "reference/transformer.py",
        "seen = np.tri(T, dtype=bool)",
        "seen = np.tri(T, k=1, dtype=bool)",
        "reference/test_model.py::test_a_llama_by_the_general_code_is_the_llama_of_model_py",
    ),
    Mutation(
        "rope scaling slows the wrong end",
        "reference/rope.py",
        "keep * plain + (1 - keep) * plain / positive",
        "(1 - keep) * plain + keep * plain / positive",
        "reference/test_model.py::test_llama3_scaling_keeps_fast_divides_slow_and_mixes_between",
    ),
    # ---- randomness
    Mutation(
        "the key is without the candidate",
        PRNG,
        "np.array([key.candidate], np.uint32)",
        "np.array([0], np.uint32)",
        "reference/test_completion.py::test_choices_of_one_request_differ",
    ),
    Mutation(
        "the key is without the step",
        PRNG,
        "np.array([key.step], np.uint32)",
        "np.array([0], np.uint32)",
        "reference/test_prng.py::test_key1_and_words_are_those_of_the_law",
    ),
    Mutation(
        "candidate and step change places in the key",
        PRNG,
        "(np.array([key.candidate], np.uint32), np.array([key.step], np.uint32))",
        "(np.array([key.step], np.uint32), np.array([key.candidate], np.uint32))",
        "reference/test_prng.py::test_the_counter_is_candidate_then_step_and_not_the_other_way_round",
    ),
    Mutation(
        "the seed's high half is dropped",
        PRNG,
        "np.array([s >> 32], np.uint32)",
        "np.array([0], np.uint32)",
        "reference/test_prng.py::test_every_bit_of_the_seed_counts",
    ),
    Mutation(
        "steps are counted from the prompt's start",
        ENGINE,
        "step=len(sampled))",
        "step=len(prompt_ids) + len(sampled))",
        "project/test_mutations.py::"
        "test_the_engine_draws_with_its_prompts_seed_the_candidates_number_and_the_step_from_0",
    ),
    Mutation(
        "seed −1 is taken for none",
        COMPLETION,
        "fresh_seed() if request.seed is None else request.seed",
        "fresh_seed() if request.seed in (None, -1) else request.seed",
        "reference/test_completion.py::test_the_same_seed_gives_the_same_choices",
    ),
    Mutation(
        "every request without a seed is given the same one",
        PRNG,
        "return secrets.randbits(64)",
        "return 0",
        "reference/test_completion.py::test_without_a_seed_answers_differ",
    ),
    Mutation(
        "elements of a list have seeds of their own",
        COMPLETION,
        "else request.seed for _ in self.prompts]",
        "else request.seed + j for j, _ in enumerate(self.prompts)]",
        "reference/test_prompt.py::test_with_a_seed_each_element_of_a_list_gives_what_it_gives_alone",
    ),
    # ---- one candidate
    Mutation(
        "the end token is not counted",
        COMPLETION,
        "        self.ids.append(token.id)\n",
        "        if token.id in self._params.end_ids:\n"
        '            return self.finish("stop")\n'
        "        self.ids.append(token.id)\n",
        "reference/test_completion.py::test_the_end_token_is_counted_and_in_the_arrays_and_adds_no_text",
    ),
    Mutation(
        "max_tokens is clamped",
        PROMPT,
        "if len(encoded.ids) + request.max_tokens > engine.context:",
        "if len(encoded.ids) > engine.context:",
        "reference/test_prompt.py::test_prompt_and_max_tokens_beyond_the_context_are_refused_never_clamped",
    ),
    Mutation(
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
    Mutation(
        "the order of the stop list decides",
        STOP,
        "longest = max(longest, state)",
        "longest = longest or state",
        "reference/test_stop.py::test_of_the_matches_with_one_end_the_earliest_start_wins",
    ),
    Mutation(
        "a stop string also cuts the arrays",
        COMPLETION,
        '        if stopped:\n            self.finish_reason = "stop"\n',
        '        if stopped:\n            self.finish_reason = "stop"\n'
        "            while self.starts and self.starts[-1] >= len(self.text):\n"
        "                for array in (self.ids, self.logprobs, self.tops._packed, self.starts, self._ends):\n"
        "                    array.pop()\n",
        "reference/test_stop.py::test_tokens_past_the_cut_stay_in_the_arrays_with_offsets_at_or_past_the_end",
    ),
    Mutation(
        "a special token's literal is sought among the characters only",
        COMPLETION,
        "end_ids(engine, tokenizer) | stop_ids(request.stop, tokenizer)",
        "end_ids(engine, tokenizer)",
        "reference/test_stop.py::test_a_special_tokens_literal_as_a_stop_string_ends_on_that_token",
    ),
    Mutation(
        "a part of a special token's literal ends on the token",
        STOP,
        "if literal in stops)",
        "if any(stop in literal for stop in stops))",
        "reference/test_stop.py::test_a_stop_string_with_more_or_less_than_a_literal_never_meets_it",
    ),
    Mutation(
        "the suffix comes before the prefix",
        INFILL,
        'Order.psm: ("[PRE]", "prompt", "[SUF]", "suffix", "[MID]"),',
        'Order.psm: ("[SUF]", "suffix", "[PRE]", "prompt", "[MID]"),',
        "reference/test_suffix.py::test_the_prompt_is_prefix_suffix_middle",
    ),
    Mutation(
        "every family is prompted prefix first",
        INFILL,
        "family._replace(order=options.order or family.order)",
        "family._replace(order=options.order or Order.psm)",
        "reference/text/test_infill_table.py::test_a_suffix_first_family_with_starcoders_tokens_is_known_by_its_files",
    ),
    Mutation(
        "the start does not tell that the names leave the order open",
        INFILL,
        "set(row.markers) == set(family.markers) and row.order != family.order",
        "row.order != row.order",
        "reference/text/test_infill_table.py::test_the_note_says_order_tokens_and_reason_and_how_to_change_it",
    ),
    Mutation(
        "a family is known only by all of its ends",
        INFILL,
        "ids.keys() >= set(row.markers) and",
        "ids.keys() >= {*row.markers, *row.ends} and",
        "reference/text/test_infill_table.py::test_a_familys_markers_are_needed_and_its_other_ends_are_not",
    ),
    Mutation(
        "tokens before the prompt count from its end",
        PROMPT,
        "starts, at = [0] * len(ids), 0",
        "starts, at = [0] * len(ids), len(prompt)",
        "reference/text/test_infill_table.py::test_in_every_order_offsets_count_from_the_prompts_text",
    ),
    # ---- text, labels, logprobs
    Mutation(
        "offsets count bytes",
        COMPLETION,
        "self.starts.append(len(self.text))",
        "self.starts.append(len(self.text.encode()))",
        "reference/test_logprobs.py::test_pieces_of_a_split_character_share_its_offset",
    ),
    Mutation(
        "offsets begin at the completion",
        COMPLETION,
        "[prompt.characters + start for start in",
        "[start for start in",
        "reference/test_logprobs.py::test_offsets_count_from_the_prompts_start_echo_or_not",
    ),
    Mutation(
        "pending bytes are shown",
        "reference/text/utf8.py",
        '        return data[: len(data) - len(self.waiting)].decode(errors="replace")\n',
        '        return data.decode(errors="replace")\n',
        "reference/test_tokenizer.py::test_pieces_of_a_byte_each_join_to_the_one_shot_decoding",
    ),
    Mutation(
        "tokens without a decoder are not joined with spaces",
        DECODERS,
        "[_joined_with_spaces] if decoder is None else []",
        "[]",
        "reference/text/test_decoders.py::test_a_texts_tokens_have_the_text_that_the_librarys_decoder_gives_them[none]",
    ),
    Mutation(
        "a decoder that needs the next token is read without it",
        DECODERS,
        "if tokens is None or any(suffix in token for token in tokens):",
        "if tokens is None:",
        "reference/text/test_decoders.py::"
        "test_a_decoder_that_needs_more_than_a_token_and_its_place_is_refused[BPEDecoder]",
    ),
    Mutation(
        "steps of a decoder are taken in any order",
        DECODERS,
        "if kind in TEXT_STEPS and to_bytes is None and not is_one:",
        "if kind in TEXT_STEPS:",
        "reference/text/test_decoders.py::"
        "test_a_decoder_that_needs_more_than_a_token_and_its_place_is_refused[bytes first]",
    ),
    Mutation(
        "a text that begins with a space keeps what its decoder strips",
        DECODERS,
        "piece, left = piece[len(content) :], left - 1",
        "left -= 1",
        "reference/text/test_decoders.py::"
        "test_a_prompt_of_ids_has_the_text_that_the_librarys_decoder_gives_it[Llama 2]",
    ),
    Mutation(
        "a byte-level vocabulary needs no decoder",
        DECODERS,
        'if byte_level and "ByteLevel" not in kinds:',
        "if False:",
        "reference/text/test_decoders.py::test_a_byte_level_vocabulary_without_its_decoder_is_refused",
    ),
    Mutation(
        "merges are left out at random, as in training",
        TOKENIZER,
        ', (spec["model"], "dropout")):',
        "):",
        "reference/text/test_decoders.py::test_merges_are_not_left_out_at_random_and_the_fingerprint_is_the_same",
    ),
    Mutation(
        "tokens that only tokenizer_config.json names are cut into pieces",
        ADDED,
        "if token.content not in known and not is_ordinary:",
        "if False:",
        "reference/text/test_added_tokens.py::test_the_token_that_a_tokenizer_names_as_its_end_ends_a_completion",
    ),
    Mutation(
        "a pad_token that is plain text shows none",
        ADDED,
        'is_ordinary = name == "pad_token" and token.content in ids',
        "is_ordinary = False",
        "reference/text/test_added_tokens.py::test_a_pad_token_that_the_vocabulary_has_as_an_ordinary_one_stays_one",
    ),
    Mutation(
        "files may give one token two ids",
        ADDED,
        "if now[token.content] != v:",
        "if False:",
        "reference/text/test_added_tokens.py::test_files_that_contradict_each_other_are_refused_by_name",
    ),
    Mutation(
        "the end that only the tokenizer names is no end",
        COMPLETION,
        "return engine.eos_ids | named",
        "return engine.eos_ids",
        "reference/text/test_added_tokens.py::test_the_token_that_a_tokenizer_names_as_its_end_ends_a_completion",
    ),
    Mutation(
        "two tokens may share a label",
        "reference/text/labels.py",
        "if wanted is not None and wanted not in taken:",
        "if wanted is not None:",
        "reference/test_tokenizer.py::test_of_two_ordinary_tokens_of_one_text_the_lower_id_has_the_label",
    ),
    Mutation(
        "logprobs 0 is off",
        COMPLETION,
        "        if self.request.logprobs is not None:\n",
        "        if self.request.logprobs:\n",
        "reference/test_logprobs.py::test_logprobs_0_has_the_sampled_token_alone",
    ),
    Mutation(
        "the sampled token is missing from top_logprobs",
        WRITING,
        "for u, value in top} | {labels[v]: lp}",
        "for u, value in top}",
        "reference/test_logprobs.py::test_every_token_has_the_k_most_probable_ids_and_itself",
    ),
    Mutation(
        "echoed logprobs are shifted by one",
        ENGINE,
        "for i, v in enumerate(prompt_ids[1:]):",
        "for i, v in enumerate(prompt_ids[:-1]):",
        "reference/test_echo.py::test_scores_are_those_of_each_token_given_the_ones_before_it",
    ),
    # ---- choices and usage
    Mutation(
        "best_of ranks by the sum",
        COMPLETION,
        "return total / max(len(self.logprobs), 1)",
        "return total",
        "reference/test_best_of.py::test_the_highest_mean_log_probability_comes_first",
    ),
    Mutation(
        "usage leaves out the discarded candidates",
        COMPLETION,
        "sum(len(candidate.ids) for candidate in self._begun)",
        "sum(len(one.ids) for j in range(len(self.prompts)) for one in ranked(self._candidates_of(j), self.request.n))",
        "reference/test_best_of.py::test_a_discarded_candidate_is_counted",
    ),
    # ---- the request
    Mutation(
        "an unknown field is ignored",
        "reference/body/reading.py",
        "for key in given if key not in known]",
        "for key in given if not known]",
        "reference/test_request.py::test_unknown_fields_are_refused_by_name",
    ),
    Mutation(
        "an unknown key of stream_options is ignored",
        "reference/body/reading.py",
        'strange = [(f"{name}.", key, names) for key in said if key not in names]',
        'strange = [(f"{name}.", key, names) for key in said if not names]',
        "reference/test_request.py::test_unknown_keys_inside_stream_options_are_refused_by_name",
    ),
    Mutation(
        "only the first unknown name is told",
        "reference/body/reading.py",
        "listed = unknown[:NAMES_LISTED]",
        "listed = unknown[:1]",
        "reference/test_request.py::test_all_unknown_names_are_listed_at_once_each_with_the_nearest_known_one",
    ),
    Mutation(
        "an unknown name that is null is refused",
        "reference/body/reading.py",
        "return {key: value for key, value in sent.items() if value is not None}",
        "return dict(sent)",
        "reference/test_request.py::test_null_is_as_good_as_absent_whatever_its_name",
    ),
    Mutation(
        "a full context has no code of its own",
        "reference/errors.py",
        'super().__init__(param, message, "context_length_exceeded")',
        "super().__init__(param, message)",
        "http/test_http.py::test_a_prompt_beyond_the_context_is_a_400_with_its_code",
    ),
    Mutation(
        "a boolean is a number",
        "reference/body/reading.py",
        "if isinstance(sent, bool) or not isinstance(sent, int | float) or not low",
        "if not isinstance(sent, int | float) or not low",
        "reference/test_request_fuzz.py::test_a_field_takes_exactly_the_texts_of_its_row",
    ),
    Mutation(
        "temperature is 0.7 if left out",
        REQUEST,
        "    temperature: float = 1.0\n",
        "    temperature: float = 0.7\n",
        "reference/test_request.py::test_defaults_are_those_of_the_law",
    ),
    Mutation(
        "a wrong request is a 422",
        "reference/errors.py",
        "    status = 400\n",
        "    status = 422\n",
        "reference/test_request.py::test_no_refusal_is_a_422",
    ),
    # ---- streams
    Mutation(
        "text that may become a stop string is sent",
        COMPLETION,
        "safe = len(self.text) - self._matcher.held",
        "safe = len(self.text)",
        "reference/test_chunks.py::test_a_token_waits_while_one_of_its_characters_may_belong_to_a_stop_string",
    ),
    Mutation(
        "array entries are sent before their text",
        COMPLETION,
        "while stop < len(self.ids) and self._ends[stop] <= safe:",
        "while stop < len(self.ids):",
        "reference/test_chunks.py::test_a_token_waits_while_one_of_its_characters_is_pending",
    ),
    # ---- loading
    Mutation(
        "loading: weights that are not finite are let in",
        "reference/checkpoint/tensors.py",
        "return not any(((block & mask) == mask).any() for block in blocks)",
        "return True",
        "reference/checkpoint/test_tensors.py::test_one_weight_that_is_not_finite_is_refused_by_name",
    ),
    Mutation(
        "loading: the last block is not looked at",
        "reference/checkpoint/tensors.py",
        "for i in range(0, len(integers), WEIGHTS_AT_ONCE))",
        "for i in range(0, len(integers) - WEIGHTS_AT_ONCE + 1, WEIGHTS_AT_ONCE))",
        "reference/checkpoint/test_tensors.py::test_one_weight_that_is_not_finite_is_refused_by_name",
    ),
    Mutation(
        "loading: a shard may lie elsewhere",
        "reference/checkpoint/tensors.py",
        "or Path(name).name != name",
        "",
        "reference/checkpoint/test_tensors.py::test_an_index_whose_file_is_no_name_is_refused",
    ),
    Mutation(
        "loading: a file may change after its header was read",
        "reference/checkpoint/tensors.py",
        "    if is_changed:\n",
        "    if False:\n",
        "reference/checkpoint/test_tensors.py::test_a_file_that_is_written_to_after_its_header_was_read_is_refused",
    ),
    Mutation(
        "loading: a name may be twice in a header",
        "reference/checkpoint/tensors.py",
        "        if name in members:\n",
        "        if False:\n",
        "reference/checkpoint/test_tensors.py::test_an_unsound_header_is_refused_by_the_files_name",
    ),
    Mutation(
        "loading: of two sets of weights one is taken",
        "reference/checkpoint/tensors.py",
        "        _refuse_second_set(directory, warn)\n",
        "",
        "reference/checkpoint/test_tensors.py::test_of_two_sets_of_weights_neither_is_guessed_at",
    ),
    Mutation(
        "loading: an adapter beside a model is left out",
        "reference/checkpoint/load.py",
        "if (directory / ADAPTER).exists():",
        "if False:",
        "reference/checkpoint/test_checkpoint.py::test_an_adapter_is_not_left_out_in_silence_beside_a_model_or_alone",
    ),
    Mutation(
        "config: OLMo 3's sliding layers are stretched too",
        "reference/rope.py",
        "(by_kind or local is not None)",
        "(local is not None)",
        "reference/checkpoint/test_as_transformers.py::test_a_directory_of_the_field_computes_what_transformers_does"
        "[OLMo 3, stretched as it is published: full layers only]",
    ),
    Mutation(
        "config: an entry counts under another class's name for it",
        "reference/checkpoint/config.py",
        "if key not in foreign}",
        "}",
        "reference/checkpoint/test_as_transformers.py::test_a_directory_of_the_field_computes_what_transformers_does"
        "[StarCoder2, rms_norm_eps]",
    ),
    Mutation(
        "config: a model that sees the future is served as one that does not",
        "reference/checkpoint/config.py",
        '{"is_causal": (None, True), **row.needs}',
        "row.needs",
        "reference/checkpoint/test_as_transformers.py::test_an_entry_that_engines_read_differently_is_refused_by_name",
    ),
    Mutation(
        "config: layer_types decides in every class",
        "reference/checkpoint/config.py",
        "if kinds is not None and not row.reads_layer_types:",
        "if False:",
        "reference/checkpoint/test_as_transformers.py::test_an_entry_that_engines_read_differently_is_refused_by_name",
    ),
    Mutation(
        "a tokenizer's wish to split special tokens is passed over",
        TOKENIZER,
        "    parsing.encode_special_tokens = is_split\n",
        "",
        "reference/test_tokenizer_files.py::"
        "test_entries_that_decide_how_a_text_is_cut_are_read_as_transformers_reads_them",
    ),
    Mutation(
        "a tokenizer's prefix space is tokenizer.json's alone",
        TOKENIZER,
        "        _prefix_space(spec, config)\n",
        "",
        "reference/test_tokenizer_files.py::"
        "test_entries_that_decide_how_a_text_is_cut_are_read_as_transformers_reads_them",
    ),
    Mutation(
        "loading: a tensor is held while the next is read",
        "reference/checkpoint/load.py",
        "            del array  # or it would still be there while the next one is read\n",
        "",
        "reference/checkpoint/test_checkpoint.py::test_a_tensor_is_let_go_before_the_next_is_read",
    ),
    # ---- how the JAX engine starts
    Mutation(
        "start: seconds may be infinite",
        "reference/system/options.py",
        "            if types[f.name] is float:",
        "            if False:",
        "http/cli/test_cli.py::test_seconds_that_are_no_time_limit_are_refused_by_name[inf]",
    ),
    Mutation(
        "start: a full disk leaves files half written",
        "reference/system/atomic.py",
        "        partial.unlink(missing_ok=True)\n",
        "        pass\n",
        "jax_engine/runtime/test_programs.py::test_a_disk_that_fills_up_is_told_once_and_leaves_nothing_half_written",
    ),
    Mutation(
        "start: a file has its name before the disk has its content",
        "reference/system/atomic.py",
        "            os.fsync(file.fileno())\n",
        "",
        "reference/system/test_atomic.py::test_a_name_is_on_the_disk_after_its_content_and_stays",
    ),
    Mutation(
        "loading: a directory of this machine is asked of the hub",
        "reference/checkpoint/hub.py",
        "and not os.path.lexists(model)",
        "",
        "reference/checkpoint/test_hub.py::test_what_is_on_this_machine_is_never_sent_to_the_hub",
    ),
    Mutation(
        "loading: a path is asked of the hub",
        "reference/checkpoint/hub.py",
        'PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"',
        'PART = r"[A-Za-z0-9.~][A-Za-z0-9._-]{0,95}"',
        "reference/checkpoint/test_hub.py::test_what_looks_like_a_path_is_never_sent_to_the_hub",
    ),
    Mutation(
        "loading: the weights are fetched a second time under another name",
        "reference/checkpoint/hub.py",
        '    "consolidated*",',
        '    "original*",',
        "reference/checkpoint/test_hub.py::test_a_hub_id_is_fetched_into_the_hubs_own_cache_and_runs",
    ),
    Mutation(
        "loading: the context can be raised",
        "reference/checkpoint/config.py",
        "if max_model_len is not None and not 1 <= max_model_len <= longest:",
        "if max_model_len is not None and not 1 <= max_model_len:",
        "reference/checkpoint/test_checkpoint.py::test_the_context_cannot_be_raised",
    ),
    Mutation(
        "a head that differs from the embedding is dropped",
        "reference/checkpoint/surplus.py",
        "        config = untied\n",
        "        pass\n",
        "reference/checkpoint/test_surplus.py::test_a_head_that_differs_from_the_embedding_is_served_with_a_line",
    ),
    Mutation(
        "a tied head is never compared",
        "reference/checkpoint/surplus.py",
        "and source.differ(head, embedding):",
        "and False:",
        "reference/checkpoint/test_surplus.py::test_one_differing_value_is_enough_wherever_it_stands",
    ),
    Mutation(
        "only the first piece of two tensors is compared",
        "reference/checkpoint/tensors.py",
        "                return True\n        return False\n\n\ndef _fill(",
        "                return True\n            break\n        return False\n\n\ndef _fill(",
        "reference/checkpoint/test_surplus.py::test_comparing_takes_the_memory_of_pieces_and_not_of_tensors",
    ),
    Mutation(
        "layers too many are dropped in silence",
        "reference/checkpoint/surplus.py",
        "    if extra:\n",
        "    if False:\n",
        "reference/checkpoint/test_surplus.py::test_layers_beyond_configs_are_left_out_with_a_line",
    ),
    Mutation(
        "a rotary table is dropped on trust",
        "reference/checkpoint/surplus.py",
        "fits = {ROTARY: _is_rotary, ",
        "fits = {",
        "reference/checkpoint/test_surplus.py::test_a_rotary_table_that_is_not_configs_is_left_out_with_a_line",
    ),
    Mutation(
        "a mask that is not causal is dropped on trust",
        "reference/checkpoint/surplus.py",
        "array_equal(block != 0, seen)",
        "array_equal(seen, seen)",
        "reference/checkpoint/test_surplus.py::test_a_mask_that_is_not_causal_is_left_out_with_a_line",
    ),
    Mutation(
        "model_type may contradict architectures",
        "reference/checkpoint/config.py",
        "    if by_type is not None:\n        models.add(by_type)\n",
        "",
        "reference/checkpoint/test_config_entries.py::"
        "test_an_unknown_name_or_another_models_is_refused_beside_a_known_type",
    ),
    Mutation(
        "the second description of rotary positions is ignored",
        "reference/rope.py",
        "for other in (place for place, its in others if its.turning != rope.turning):",
        "for other in ():",
        "reference/checkpoint/test_config_entries.py::"
        "test_rotary_positions_that_contradict_are_refused_with_both_values",
    ),
    Mutation(
        "an unreachable end id is dropped in silence",
        "reference/checkpoint/entries.py",
        "    if out:\n",
        "    if False:\n",
        "reference/checkpoint/test_config_entries.py::test_an_end_id_that_no_token_has_is_ignored_with_a_line",
    ),
    Mutation(
        "a text with a token beyond the model is not refused",
        PROMPT,
        '        _check_ids("prompt", ids, engine.vocab_size, tokenizer)\n',
        "",
        "reference/text/test_beyond.py::test_a_prompt_with_a_token_beyond_the_model_is_a_400_that_names_it",
    ),
    Mutation(
        "an end of text beyond the model begins documents",
        "reference/tokenizer.py",
        "{token: v for token, v in ids.items() if v < vocab_size}",
        "dict(ids)",
        "reference/text/test_beyond.py::test_an_end_of_text_beyond_the_model_begins_no_document",
    ),
    # ---- families
    Mutation(
        "families: a window hides one position too few",
        "reference/transformer.py",
        "seen & ~np.tri(T, k=-window, dtype=bool)",
        "seen & ~np.tri(T, k=-window - 1, dtype=bool)",
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    Mutation(
        "families: the router's weights are not normalized",
        "reference/transformer.py",
        "weights = weights / weights.sum(axis=-1, keepdims=True)",
        "weights = weights * 1.0",
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    Mutation(
        "families: YaRN does not stretch what is turned",
        "reference/transformer.py",
        "turned = model.rotate(x[..., :R], angle) * rope.magnitude",
        "turned = model.rotate(x[..., :R], angle)",
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    Mutation(
        "families: the halves of a parallel layer follow each other",
        "reference/transformer.py",
        'return x + mixed(normed(x, "input_layernorm")) + fed(normed(x, name))',
        'x = x + mixed(normed(x, "input_layernorm"))\n            return x + fed(normed(x, name))',
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    Mutation(
        "families: fused heads are cut as rows",
        "reference/checkpoint/tensor_table.py",
        "cuts = _cut_by_heads(config) if fused.by_heads else",
        "cuts = _cut_by_heads(config) if False else",
        "jax_engine/test_families.py::test_the_references_logits_are_transformers",
    ),
    # ---- the life of a request
    Mutation(
        "a text that cannot fit is encoded",
        PROMPT,
        "        if tokens + (request.max_tokens if is_known else 0) > engine.context:\n",
        "        if is_known and tokens + request.max_tokens > engine.context:\n",
        "reference/test_cannot_fit.py::test_a_text_that_cannot_fit_is_refused_before_any_is_encoded",
    ),
    Mutation(
        "prompts that together may never wait are encoded",
        PROMPT,
        "            raise MoreThanMayWait(total, most_tokens, at_least=True)\n",
        "            pass\n",
        "reference/test_cannot_fit.py::test_prompts_that_together_are_more_than_may_wait_are_refused_unencoded",
    ),
    Mutation(
        "white space that a token swallows counts",
        TOKEN_LENGTH,
        'not any(token.get("lstrip") or token.get("rstrip") for token in added)',
        "True",
        "reference/text/test_token_length.py::"
        "test_a_token_that_strips_takes_any_white_space_and_only_that_is_not_counted",
    ),
    Mutation(
        "NFC is thought to shorten nothing",
        TOKEN_LENGTH,
        "        longest *= shrink or 1\n",
        "        longest *= 1\n",
        "reference/text/test_token_length.py::"
        "test_no_text_has_fewer_tokens_than_are_known_before[NFC of unknown characters]",
    ),
    Mutation(
        "a run of unknown characters is thought to be a token each",
        TOKEN_LENGTH,
        ' and not model.get("fuse_unk")',
        "",
        "reference/text/test_token_length.py::"
        "test_where_one_token_may_be_a_whole_text_nothing_is_known[unknown characters fused]",
    ),
    Mutation(
        "the process that encodes a long text outlives its request",
        "reference/text/encode_apart.py",
        "with work.ended_by(process.kill):",
        "with work.ended_by(lambda: None):",
        "reference/text/test_token_length.py::test_stopping_the_work_ends_the_process",
    ),
    Mutation(
        "a pass of the reference goes on when its job is closed",
        ENGINE,
        "self._engine.last_logits([*prompt_ids, *sampled], self._check)",
        "self._engine.last_logits([*prompt_ids, *sampled])",
        "reference/test_engine.py::test_closing_a_job_ends_its_pass_between_two_layers[False]",
    ),
    Mutation(
        "the hub is asked without a word",
        "reference/checkpoint/hub.py",
        "        if say is not None:\n",
        "        if False:\n",
        "reference/checkpoint/test_hub.py::test_that_no_directory_is_here_is_said_before_the_hub_is_asked",
    ),
    # ---- one interpreter for all
    Mutation(
        "the size of an answer is not looked at",
        COMPLETION,
        "    check_size(request, sizes, (limits or Limits()).answer_bytes)\n",
        "",
        "reference/body/test_answer_size.py::test_by_default_a_request_of_44_kilobytes_gets_no_406_megabytes",
    ),
    Mutation(
        "discarded candidates do not count for the size of an answer",
        SIZE,
        "return request.candidates * (len(prompts)",
        "return request.n * (len(prompts)",
        "reference/body/test_answer_size.py::test_the_count_is_the_one_that_the_documents_give",
    ),
    Mutation(
        "an echo is encoded for every choice",
        COMPLETION,
        "        if j not in self._echoes:\n",
        "        if True:\n",
        "reference/body/test_writing.py::test_what_is_echoed_is_encoded_once_a_prompt",
    ),
    Mutation(
        "the entries of a choice are encoded by one call",
        WRITING,
        "    step = max(1, VALUES_AT_ONCE // (entries.top + 1))\n",
        "    step = max(1, at.stop)\n",
        "reference/body/test_writing.py::test_no_call_encodes_more_than_some_thousand_numbers",
    ),
    Mutation(
        "a body may have any number of values",
        STRICT,
        "        if self._left < 0:\n",
        "        if self._left is None:\n",
        "reference/body/test_strict_json.py::test_values_have_an_end_that_names_the_member_they_are_in",
    ),
    Mutation(
        "a list of millions is written out for an error's message",
        "reference/body/shown.py",
        "    elif isinstance(value, list | dict):\n        return _shown_in_part(value)\n",
        "",
        "reference/body/test_strict_json.py::test_a_list_of_millions_is_shown_without_being_written",
    ),
    # ---- the golden vectors
    Mutation(
        "the judge excuses a rival whatever error it needs",
        GOLDEN_JUDGE,
        "if s == step and label == got and error <= allowed:",
        "if s == step and label == got:",
        "reference/golden/test_golden_vectors.py::"
        "test_a_token_that_rounding_decides_is_excused_and_what_follows_not_compared",
    ),
    Mutation(
        "the judge takes any other token for a rival",
        GOLDEN_JUDGE,
        "if s == step and label == got and error <= allowed:",
        "if s == step and error <= allowed:",
        "reference/golden/test_golden_vectors.py::test_a_token_that_is_none_of_the_rivals_is_not_excused",
    ),
    Mutation(
        "the judge does not look at offsets",
        GOLDEN_JUDGE,
        """        self.equal(f"{at}.text_offset[{i}]", expected["text_offset"][i], got["text_offset"][i])\n""",
        "",
        "reference/golden/test_golden_vectors.py::test_the_judge_finds_a_wrong_answer_and_says_where",
    ),
    Mutation(
        "the judge takes NaN for a log-probability",
        GOLDEN_JUDGE,
        "if not off <= self.tolerance.logprob:",
        "if off > self.tolerance.logprob:",
        "reference/golden/test_golden_vectors.py::test_the_judge_finds_a_wrong_answer_and_says_where",
    ),
    Mutation(
        "an exported model is put among other files",
        "reference/checkpoint/export.py",
        "        _must_be_the_model(directory, sources)\n        return Exported(targets, written=False)",
        "        pass",
        "reference/checkpoint/test_export_model.py::"
        "test_a_directory_with_anything_else_is_refused_by_name_and_not_touched",
    ),
    # ---- the reference's bits
    Mutation(
        "the threads of NumPy's BLAS are as many as it is started with",
        "reference/system/blas.py",
        "before = _set(self._shared, [1] * len(self._shared))",
        "before = _set(self._shared, [each.num_threads for each in self._shared])",
        "reference/system/test_blas.py::test_threads_come_back_when_the_last_of_several_has_left",
    ),
    Mutation(
        "only the thread that came first may hold the threads of NumPy's BLAS",
        "reference/system/blas.py",
        "            library.clear_controlling_thread(force=True)\n",
        "            pass\n",
        "reference/system/test_blas.py::test_numpys_own_threads_are_held_in_any_thread_and_come_back",
    ),
    Mutation(
        "the model is run with as many threads as there are",
        ENGINE,
        "        with blas.NUMPYS.one_thread():\n            return hidden_states(self.config, params, tokens)",
        "        return hidden_states(self.config, params, tokens)",
        "reference/system/test_blas.py::test_a_pass_of_the_model_is_within",
    ),
    # ---- a finished sequence once more, and the picture of a draw
    Mutation(
        "replay: the first candidate is taken for the one behind a choice",
        REPLAY,
        "        if len(candidates) == 1:\n",
        "        if candidates:\n",
        "reference/trace/test_replay.py::test_the_candidate_behind_a_choice_of_best_of_is_found",
    ),
    Mutation(
        "replay: penalties count tokens that were yet to come",
        REPLAY,
        "counts = np.bincount(self._ids[: key.step], minlength=len(logits))",
        "counts = np.bincount(self._ids, minlength=len(logits))",
        "reference/trace/test_replay.py::test_a_draw_is_the_samplers_trace",
    ),
    Mutation(
        "replay: the steps of another request are shown",
        REPLAY,
        "if self._known is None or self._known[0] != key:",
        "if self._known is None:",
        "reference/trace/test_replay.py::test_other_parameters_for_the_same_tokens_are_counted_anew",
    ),
    Mutation(
        "replay: the model runs again for every step",
        REPLAY,
        "            self._last = replay\n",
        "",
        "reference/trace/test_replay.py::test_steps_of_one_sequence_are_one_pass_of_the_model",
    ),
    Mutation(
        "replay: an error inside does not say where",
        REPLAY,
        '        error.param, error.message = f"{field}.{error.param}", f"{field}.{error.message}"\n',
        "",
        "reference/trace/test_replay.py::test_what_is_wrong_is_refused_by_its_name",
    ),
    Mutation(
        "explain: a token's own probability counts as before it",
        EXPLAIN,
        "before[order] = np.concatenate([[0.0], np.cumsum(q[order])[:-1]])",
        "before[order] = np.cumsum(q[order])",
        "reference/trace/test_replay.py::test_the_mass_before_a_token_decides_whether_it_is_kept",
    ),
    Mutation(
        "explain: a token that could not win is the runner-up",
        EXPLAIN,
        "return second if np.isfinite(others[second]) else None",
        "return second",
        "reference/trace/test_replay.py::test_a_sentence_says_what_became_of_a_token",
    ),
    Mutation(
        "explain: the chance of a draw is told as if top_p had removed nothing",
        EXPLAIN,
        "e = np.where(trace.kept, np.exp(trace.scaled), 0.0)",
        "e = np.exp(trace.scaled)",
        "reference/trace/test_replay.py::test_the_chance_of_a_token_is_shared_among_the_kept_alone",
    ),
    Mutation(
        "picture: a sum just below top_p is rounded up to it",
        PICTURE,
        'f"up to {beside(min(row.mass_before + row.probability, 1.0), p)}"',
        'f"up to {percent(min(row.mass_before + row.probability, 1.0))}"',
        "reference/trace/test_picture.py::"
        "test_no_kept_token_shows_a_sum_that_looks_like_top_p_before_the_last_kept_one",
    ),
    Mutation(
        "picture: a label is markup",
        "reference/trace/svg.py",
        "{escape(text, quote=False)}</text>",
        "{text}</text>",
        "reference/trace/test_picture.py::test_a_label_is_text_and_never_markup",
    ),
    Mutation(
        "picture: the line of top_p stands elsewhere",
        PICTURE,
        "        x += width * draw.params.top_p\n",
        "        x += width * (1 - draw.params.top_p)\n",
        "reference/trace/test_picture.py::test_the_line_of_top_p_stands_where_the_kept_end",
    ),
    Mutation(
        "picture: removed tokens are told by their colour alone",
        PICTURE,
        "    if out:\n",
        "    if False:\n",
        "reference/trace/test_picture.py::test_removed_tokens_are_struck_and_say_so_in_words_and_the_rest_is_not",
    ),
    Mutation(
        "trace: the model runs to its end whoever waits",
        ENGINE,
        "        check()\n        yield layer\n",
        "        yield layer\n",
        "reference/trace/test_replay.py::test_work_that_nobody_waits_for_ends_within_a_layer_and_within_a_draw",
    ),
    # ---- signals, renewed keys and certificates, connections that stay
    Mutation(
        "a panic of the tokenizer's library is not caught",
        "reference/tokenizer.py",
        "if type(error).__module__ != PANIC:",
        "if type(error).__module__ == PANIC:",
        "jax_engine/test_faults.py::test_a_text_at_which_the_tokenizer_panics_is_a_400_and_the_next_one_is_read",
    ),
)
