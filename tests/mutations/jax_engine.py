"""Mutations of the JAX engine, and for each the test that must notice it. Run by tests/mutate.py."""

from mutations.mutation import Mutation

MUTATIONS = (
    # ---- starts, files and descriptors
    Mutation(
        "memory: a pool is not held against what is free",
        "jax_engine/runtime/settings.py",
        "    if pool + weights + slots > free:\n",
        "    if pool + weights + slots > whole:\n",
        "jax_engine/runtime/test_pool_memory.py::test_pool_weights_and_slots_together_are_held_against_the_free_memory",
    ),
    Mutation(
        "memory: a control group above allows what it does not",
        "jax_engine/runtime/control_groups.py",
        "for one in (folder, *folder.parents):",
        "for one in (folder,):",
        "jax_engine/runtime/test_pool_memory.py::test_the_least_that_a_group_or_the_machine_allows_is_there",
    ),
    # ---- the JAX engine
    Mutation(
        "a cached chunk is named without its history",
        "jax_engine/cache.py",
        "hashlib.sha256(digest + array[",
        "hashlib.sha256(array[",
        "jax_engine/test_scheduler.py::test_equal_chunks_after_different_beginnings_are_not_shared",
    ),
    Mutation(
        "the chunk of the last position is taken from the cache",
        "jax_engine/scheduler.py",
        "work.names[: (len(work.prompt) - 1) // self.chunk]",
        "work.names",
        "jax_engine/test_scheduler.py::test_a_second_equal_prompt_takes_all_whole_chunks_but_that_of_its_last_position",
    ),
    Mutation(
        "the partly filled page is not copied",
        "jax_engine/device.py",
        "copy_from, copy_to = copy or (SCRATCH_PAGE, SCRATCH_PAGE)",
        "copy_from, copy_to = SCRATCH_PAGE, SCRATCH_PAGE",
        "jax_engine/test_same_bytes.py::test_the_order_of_arrival_changes_no_byte",
    ),
    Mutation(
        "a slot keeps the counts of who had it before",
        "jax_engine/device.py",
        "counts=slots.counts.at[i].set(0)",
        "counts=slots.counts",
        "jax_engine/test_same_bytes.py::test_the_order_of_arrival_changes_no_byte",
    ),
    Mutation(
        "attention sees one position ahead",
        "jax_engine/kernels/xla.py",
        "seen = at[None, None, :] <= positions[:, :, None]",
        "seen = at[None, None, :] <= positions[:, :, None] + 1",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Mutation(
        "the walk over pages stops at the shortest row",
        "jax_engine/kernels/xla.py",
        "blocks = (lengths.max() + page_size - 1) // page_size",
        "blocks = (lengths.min() + page_size - 1) // page_size",
        "jax_engine/test_same_bytes.py::test_neighbours_that_come_and_go_change_no_byte",
    ),
    Mutation(
        "what no sequence wrote is masked in the scores alone",
        "jax_engine/kernels/xla.py",
        "v_block = jnp.where(exists[:, :, None, None], values[pages].astype(jnp.float32), 0.0)",
        "v_block = values[pages].astype(jnp.float32)",
        "jax_engine/test_same_bytes.py::test_nan_in_every_free_page_changes_no_byte",
    ),
    Mutation(
        "an idle slot writes to the pages it once had",
        "jax_engine/model.py",
        "page = jnp.where(batch.live, jnp.take_along_axis(batch.tables, block, axis=1), SCRATCH_PAGE)",
        "page = jnp.take_along_axis(batch.tables, block, axis=1)",
        "jax_engine/test_same_bytes.py::test_neighbours_that_come_and_go_change_no_byte",
    ),
    Mutation(
        "the device's noise forgets the candidate",
        "jax_engine/sampler.py",
        "(rows.candidate, rows.step))",
        "(rows.candidate * 0, rows.step))",
        "jax_engine/test_jax_sampler.py::test_every_row_draws_the_laws_token_whatever_the_other_rows_are",
    ),
    Mutation(
        "the device keeps the last of equal ids at the nucleus boundary",
        "jax_engine/sampler.py",
        "lambda: jnp.cumsum(at_boundary, axis=-1), lambda",
        "lambda: jnp.cumsum(at_boundary[:, ::-1], axis=-1)[:, ::-1], lambda",
        "jax_engine/test_jax_sampler.py::test_ties_at_the_nucleus_boundary_go_to_the_lower_ids",
    ),
    Mutation(
        "the device keeps an equal id before which the mass is just top_p",
        "jax_engine/sampler.py",
        "(mass_before < top_p[:, None])",
        "(mass_before <= top_p[:, None])",
        "jax_engine/test_jax_sampler.py::test_a_mass_of_just_top_p_before_an_id_leaves_it_out",
    ),
    Mutation(
        "the device keeps a smaller logit before which the mass is just top_p",
        "jax_engine/sampler.py",
        "return jnp.where(above < top_p, low, middle), jnp.where(above < top_p, middle, high)",
        "return jnp.where(above <= top_p, low, middle), jnp.where(above <= top_p, middle, high)",
        "jax_engine/test_jax_sampler.py::test_a_larger_logit_with_just_top_p_of_the_mass_is_kept_alone",
    ),
    Mutation(
        "minus zero ranks below zero on the device",
        "jax_engine/sampler.py",
        "lax.top_k(_one_zero(logits), min(",
        "lax.top_k(logits, min(",
        "jax_engine/test_jax_sampler.py::test_rankings_are_by_logit_and_then_by_id_and_zeros_are_equal",
    ),
    Mutation(
        "the step does not count on the device",
        "jax_engine/device.py",
        "rows=slots.rows._replace(step=slots.rows.step + ones.astype(jnp.uint32)),",
        "rows=slots.rows,",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Mutation(
        "a slot keeps the bias of who had it before",
        "jax_engine/device.py",
        "bias=slots.bias.at[i].set(entry.bias),",
        "bias=slots.bias,",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Mutation(
        "a first token is drawn from another row's hidden state",
        "jax_engine/device.py",
        "jnp.where(is_new[:, None], slots.begun, hidden)",
        "jnp.where(is_new[:, None], slots.begun[::-1], hidden)",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Mutation(
        "prompt scores belong to the token before",
        "jax_engine/engine.py",
        "following = work.prompt[start + 1 : start + len(ids) + 1]",
        "following = work.prompt[start + 1 : start + len(ids) + 1][::-1]",
        "jax_engine/test_jax_fuzz.py::test_every_token_of_random_requests_is_the_references",
    ),
    Mutation(
        "a chunk is shared before it is written",
        "jax_engine/scheduler.py",
        "        work.admitted = True\n        return True",
        "        work.admitted = True\n        self._remember(work)\n        return True",
        "jax_engine/test_scheduler.py::test_a_chunk_is_shared_only_once_it_is_written",
    ),
    Mutation(
        "a closed candidate keeps its pages",
        "jax_engine/scheduler.py",
        "            sequence.is_over = True\n            self.end(sequence)",
        "            sequence.is_over = True\n            del self.running[sequence.slot]",
        "jax_engine/test_jax_engine.py::test_closing_at_any_stage_frees_everything",
    ),
    Mutation(
        "a batch keeps every other job waiting until its last prompt has begun",
        "jax_engine/scheduler.py",
        "        elif was_head:\n",
        "        elif False:\n",
        "jax_engine/test_scheduler.py::test_jobs_take_turns_a_prompt_at_a_time_and_keep_the_order_of_their_own",
    ),
    Mutation(
        "costs: a work is looked for in the whole line",
        "jax_engine/scheduler.py",
        "        del self.waiting[work]\n",
        "        self.waiting = OrderedDict((one, None) for one in self.waiting if one is not work)\n",
        "jax_engine/test_costs.py::test_the_line_costs_the_same_whoever_waits_in_it",
    ),
    Mutation(
        "costs: a blocked prompt is hashed at every step",
        "jax_engine/scheduler.py",
        "if work.names is None:",
        "if not work.admitted:",
        "jax_engine/test_costs.py::test_a_step_that_is_blocked_costs_the_same_for_a_prompt_of_any_length",
    ),
    Mutation(
        "the chunk used last is given up first",
        "jax_engine/cache.py",
        "self._give_up(self._unused[self._uses_of_unused.least])",
        "self._give_up(self._unused[max(self._unused)])",
        "jax_engine/test_prefix_cache.py::test_what_is_given_up_is_what_a_look_at_every_chunk_chooses",
    ),
    Mutation(
        "to use a chunk that nobody holds does not count",
        "jax_engine/cache.py",
        "            if chunk is not None:\n                self._use(chunk)",
        "            if chunk is not None and not chunk.is_unused:\n                self._use(chunk)",
        "jax_engine/test_prefix_cache.py::test_what_is_given_up_is_what_a_look_at_every_chunk_chooses",
    ),
    Mutation(
        "a chunk of which one page is let go is unused",
        "jax_engine/cache.py",
        "            chunk.shared -= 1\n            if chunk.is_unused:",
        "            chunk.shared -= 1\n            if chunk.used not in self._unused:",
        "jax_engine/test_prefix_cache.py::test_what_is_given_up_is_what_a_look_at_every_chunk_chooses",
    ),
    Mutation(
        "all arrivals and closings are taken before a step",
        "jax_engine/engine.py",
        "for _ in range(WORKS_A_STEP):",
        "while True:",
        "jax_engine/test_jax_engine.py::test_a_step_takes_no_more_than_so_many_arrivals_and_closings",
    ),
    Mutation(
        "a job is closed as often as somebody says so",
        "jax_engine/engine.py",
        "is_over = self.has_failed or not (self.open or self._awaited)",
        "is_over = self.has_failed",
        "jax_engine/test_jax_engine.py::test_a_job_is_closed_once_and_one_that_has_ended_not_at_all",
    ),
    Mutation(
        "the rest of a failed job arrives all the same",
        "jax_engine/engine.py",
        "    if not work.owner.has_failed:\n        scheduler.submit(work)",
        "    scheduler.submit(work)",
        "jax_engine/test_jax_engine.py::test_what_is_left_to_arrive_of_a_job_that_failed_is_dropped",
    ),
    Mutation(
        "the load counts what is only cached",
        "jax_engine/scheduler.py",
        "return self.pool.size - self.pool.free - self.prefixes.unused_pages",
        "return self.pool.size - self.pool.free",
        "jax_engine/test_jax_engine.py::test_the_load_is_that_of_what_runs_and_not_of_what_is_cached",
    ),
    # ---- loading
    Mutation(
        "loading: an engine goes by way of float64",
        "jax_engine/device.py",
        "    params = checkpoint.read(put)\n",
        "    params = Checkpoint(checkpoint.path, checkpoint.config, checkpoint.params).read(put)\n",
        "reference/checkpoint/test_checkpoint.py::test_loading_takes_the_memory_of_the_weights_and_of_one_tensor",
    ),
    # ---- how the JAX engine starts
    Mutation(
        "start: an option of jax reaches the engine",
        "jax_engine/runtime/pins.py",
        '    "jax_numpy_dtype_promotion": "standard",  # strict: mixed int32 and float32 are refused\n',
        "",
        "jax_engine/runtime/test_pins.py::"
        "test_the_bytes_are_the_same_whatever_jax_is_set_to[jax_numpy_dtype_promotion-strict]",
    ),
    Mutation(
        "start: XLA ends the process for its flags",
        "jax_engine/runtime/backend.py",
        "    _check_flags()\n    try:",
        "    try:",
        "jax_engine/runtime/test_backend.py::test_a_flag_that_xla_would_end_the_process_for_is_one_line",
    ),
    Mutation(
        "start: a jaxlib that does not fit is a traceback",
        "jax_engine/runtime/backend.py",
        "    except Exception as error:  # RuntimeError, AttributeError:",
        "    except AttributeError as error:  # RuntimeError:",
        "jax_engine/runtime/test_backend.py::test_a_jaxlib_that_does_not_fit_is_one_line_with_what_to_install",
    ),
    Mutation(
        "the end: the engine's thread is left within XLA",
        "jax_engine/engine.py",
        "        atexit.register(self._stop_at_exit)\n",
        "",
        "jax_engine/test_jax_engine.py::test_a_process_that_ends_while_the_engine_works_ends_with_0",
    ),
    Mutation(
        "start: code is loaded from where others can write",
        "jax_engine/runtime/store.py",
        "    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):",
        "    if False:",
        "jax_engine/runtime/test_store.py::test_code_is_not_loaded_from_where_others_can_write",
    ),
    Mutation(
        "start: a damaged file is used",
        "jax_engine/runtime/checked.py",
        "if hashlib.sha256(content).hexdigest() == found[1]:",
        "if content:",
        "jax_engine/runtime/test_checked.py::test_what_is_damaged_is_removed_with_one_line_that_names_it[half of it]",
    ),
    Mutation(
        "start: damage to a program is not told",
        "jax_engine/runtime/programs.py",
        "kept = find(self._path, key, PROGRAM_SUFFIX, self._say)",
        "kept = find(self._path, key, PROGRAM_SUFFIX, lambda line: None)",
        "jax_engine/runtime/test_programs.py::test_a_damaged_program_is_compiled_once_more_with_one_line[half of it]",
    ),
    Mutation(
        "start: programs are found only where they were compiled",
        "jax_engine/runtime/programs.py",
        'if jax.default_backend() == "cpu":',
        "if False:",
        "jax_engine/runtime/test_programs.py::test_a_program_is_found_wherever_its_directory_is",
    ),
    Mutation(
        "start: half a library is loaded",
        "jax_engine/kernels/native.py",
        "        kept = find(cache, name, LIBRARY_SUFFIX, announce)\n",
        "        from gnomon.jax_engine.runtime.checked import Kept\n\n"
        '        there = list(cache.glob(f"{name}-*"))\n'
        '        kept = Kept(there[0], b"") if there else None\n',
        "jax_engine/kernels/test_native.py::test_half_a_library_does_not_end_the_process_but_is_built_anew_with_a_line",
    ),
    # ---- native products
    Mutation(
        "linear: the last lane of a panel is dropped",
        "jax_engine/kernels/cpu/linear.h",
        "store_some(y[r], n * W, outputs, sum[r][n]);",
        "store_some(y[r], n * W, outputs - 1, sum[r][n]);",
        "jax_engine/kernels/test_native.py::test_a_sum_errs_by_no_more_than_its_roundings[shape4-float32]",
    ),
    Mutation(
        "linear: an odd k is skipped",
        "jax_engine/kernels/cpu/linear.h",
        "  if (k < to) add(k, 0);\n",
        "",
        "jax_engine/kernels/test_native.py::test_a_sum_errs_by_no_more_than_its_roundings[shape3-bfloat16]",
    ),
    Mutation(
        "linear: the two of a word change places",
        "jax_engine/kernels/cpu/linear.h",
        "half == 0 ? word << 16",
        "half == 1 ? word << 16",
        "jax_engine/kernels/test_native.py::test_a_sum_errs_by_no_more_than_its_roundings[shape4-bfloat16]",
    ),
    Mutation(
        "linear: sums start anew in every block",
        "jax_engine/kernels/cpu/linear.h",
        "  if (from > 0)\n",
        "  if (from > to)\n",
        "jax_engine/kernels/test_native.py::test_a_sum_errs_by_no_more_than_its_roundings[shape7-float32]",
    ),
    Mutation(
        "linear: a dead row is read",
        "jax_engine/kernels/cpu/linear.h",
        "(live[r] ? rows.live : rows.dead).push_back(r)",
        "rows.live.push_back(r)",
        "jax_engine/kernels/test_native.py::test_dead_rows_are_not_read_and_come_out_as_zeros[shape0-float32]",
    ),
    Mutation(
        "linear: what a dead row had is left",
        "jax_engine/kernels/cpu/linear.h",
        "  for (size_t r : rows.dead) std::fill_n(column + r * to.out, outputs, 0.0f);\n",
        "",
        "jax_engine/kernels/test_native.py::test_dead_rows_are_not_read_and_come_out_as_zeros[shape1-float32]",
    ),
    Mutation(
        "linear: the first panel of a weight is the last of the one before",
        "jax_engine/kernels/cpu/linear.h",
        "for (; i >= to->count(); to++)",
        "for (; i > to->count(); to++)",
        "jax_engine/kernels/test_native.py::"
        "test_products_asked_for_together_are_those_asked_for_one_by_one[float32-False]",
    ),
    Mutation(
        "linear: a panel is shifted by an output",
        "jax_engine/kernels/cpu/linear.h",
        "const T* from = weight + i * LANES * in;",
        "const T* from = weight + (i * LANES - (i > 0)) * in;",
        "jax_engine/kernels/test_native.py::test_a_sum_errs_by_no_more_than_its_roundings[shape3-float32]",
    ),
    Mutation(
        "linear: the first of a stack is every one",
        "jax_engine/kernels/cpu/linear.cc",
        "    to.panels += words * size_t(std::clamp<int64_t>(*at.typed_data(), 0, int64_t(stack) - 1));\n",
        "",
        "jax_engine/kernels/test_native.py::test_a_weight_of_a_stack_is_that_weight_alone[float32]",
    ),
    Mutation(
        "linear: a row with few neighbours is added up in two halves",
        "jax_engine/kernels/cpu/linear.h",
        "  const size_t step = count > MOST_ROWS ? BLOCK * A::OF_WORD : rows.in;\n",
        "  if (count == 1 && rows.in > 500) {\n"
        "    std::vector<float> half(to.out);\n"
        "    float* whole[] = {column + rows.live[0] * to.out};\n"
        "    float* y[] = {half.data() + i * LANES};\n"
        "    any_tile<A>(rows.x.data(), to.panels + i * words * LANES, 1, 0, rows.in / 4 * 2, outputs, whole);\n"
        "    const typename A::Input* rest[] = {rows.x[0] + rows.in / 4 * 2};\n"
        "    any_tile<A>(rest, to.panels + (i * words + rows.in / 4 * 2 / A::OF_WORD) * LANES, 1, 0,\n"
        "                rows.in - rows.in / 4 * 2, outputs, y);\n"
        "    for (size_t o = 0; o < outputs; o++) whole[0][o] += y[0][o];\n"
        "    return;\n"
        "  }\n"
        "  const size_t step = count > MOST_ROWS ? BLOCK * A::OF_WORD : rows.in;\n",
        "jax_engine/kernels/test_native.py::test_every_row_alone_has_the_bits_it_has_among_all[shape4-float32-False]",
    ),
    Mutation(
        "linear: rows are taken out of the wrong lanes",
        "jax_engine/kernels/panels.py",
        "[rows // lanes, :, rows % lanes]",
        "[rows // lanes, :, (rows + 1) % lanes]",
        "jax_engine/kernels/test_native.py::test_rows_taken_out_of_panels_are_those_that_were_packed[shape3-float32]",
    ),
    Mutation(
        "threads: a piece is done twice, another not at all",
        "jax_engine/kernels/cpu/threads.h",
        "        work_(of_, count_ - n);\n",
        "        work_(of_, n % count_ / 2 * 2);\n",
        "jax_engine/kernels/test_native.py::"
        "test_an_output_has_the_same_bits_whether_threads_share_the_product_or_not[float32-False]",
    ),
    Mutation(
        "threads: subnormals are flushed as on XLA's threads",
        "jax_engine/kernels/cpu/threads.h",
        "  const FloatingPoint ieee;\n  const Team::Work call",
        "  const Team::Work call",
        "jax_engine/kernels/test_native.py::test_subnormal_sums_survive_on_whatever_thread[30]",
    ),
    Mutation(
        "threads: a group of processes with less time has all processors",
        "jax_engine/runtime/cores.py",
        "                allowed.append(quota / period)\n",
        "                pass\n",
        "jax_engine/runtime/test_cores.py::test_cores_are_those_of_the_affinity_or_fewer_where_a_group_has_less_time",
    ),
    Mutation(
        "start: weights lie on small pages",
        "jax_engine/runtime/huge_pages.py",
        "            mapped.madvise(mmap.MADV_HUGEPAGE)\n",
        "            pass\n",
        "jax_engine/runtime/test_huge_pages.py::test_weights_lie_on_huge_pages",
    ),
    # ---- families
    Mutation(
        "families: every expert has a say in the JAX engine",
        "jax_engine/model.py",
        "weights = jnp.where(is_sent, probabilities, 0.0)",
        "weights = probabilities",
        "jax_engine/test_families.py::test_the_jax_engine_computes_what_the_reference_does[Mixtral]",
    ),
    # ---- the bench
    Mutation(
        "bench: a Llama's heads are written to GGUF as the checkpoint pairs them",
        "jax_engine/tools/gguf.py",
        ".swapaxes(1, 2).reshape(array.shape)",
        ".reshape(array.shape)",
        "jax_engine/tools/test_gguf.py::test_a_llamas_heads_are_turned_in_neighbouring_pairs",
    ),
    Mutation(
        "bench: sides are measured one after the other, not in turn",
        "jax_engine/tools/measure.py",
        """    for number in range(rounds + warm_up):
        for name, measure in sides.items():
""",
        """    for name, measure in sides.items():
        for number in range(rounds + warm_up):
""",
        "jax_engine/tools/test_measure.py::test_sides_are_measured_in_turn_after_a_round_that_does_not_count",
    ),
    Mutation(
        "bench: one thread's part is not read when the bandwidth is measured",
        "jax_engine/tools/measure.py",
        "self._find(part.ctypes.data, 0, len(part)), parts)",
        "self._find(part.ctypes.data, 0, len(part)), parts[1:])",
        "jax_engine/tools/test_measure.py::test_the_read_limit_reads_every_byte_of_its_array",
    ),
)
