"""Mutations of `gnomon verify`, and for each the test that must notice it. Run by tests/mutate.py."""

from mutations.mutation import Mutation

ARRIVAL = "http/verify/cases/arrival.py"
ROOTS = "http/verify/roots.py"
ODD_MODELS = "http/verify/test_verify_odd_models.py"

MUTATIONS = (
    # ---- how the JAX engine starts
    Mutation(
        "verify: the server is blamed for the user's proxy",
        "http/verify/ask/client.py",
        "{_words(error)}{proxy_note(self.base)}",
        "{_words(error)}",
        "reference/checkpoint/test_network.py::test_verify_says_that_a_proxy_and_not_the_server_did_not_answer",
    ),
    # ---- signals, renewed keys and certificates, connections that stay
    Mutation(
        "a stream that is held back is not found",
        ARRIVAL,
        "one.spread >= SPREAD for one in self.long",
        "one.spread >= 0 for one in self.long",
        "http/verify/test_verify_arrival.py::test_in_process_a_server_that_holds_back_is_told_from_one_that_does_not",
    ),
    Mutation(
        "a server with a queue is blamed for holding back",
        ARRIVAL,
        " and out_of_order <= MOST_OUT_OF_ORDER",
        "",
        "http/verify/test_verify_arrival.py::test_a_server_whose_answers_wait_long_before_they_begin_is_not_blamed",
    ),
    Mutation(
        "an event that says nothing is taken for the first",
        ARRIVAL,
        "for end, data in _events(exchange.content) if _has_text(data)]",
        "for end, data in _events(exchange.content)]",
        "http/verify/test_verify_arrival.py::test_comments_and_events_without_text_are_not_the_first_event",
    ),
    Mutation(
        "a finding is folded under a case that is honoured",
        ROOTS,
        " and is_ignored(one.case.follows)",
        "",
        "http/verify/test_verify_roots.py::test_nothing_is_folded_under_a_case_that_does_not_say_ignored",
    ),
    Mutation(
        "two findings are taken for one fault",
        ROOTS,
        " if len(names) >= fault.least",
        "",
        "http/verify/test_verify_roots.py::test_a_fault_is_folded_only_where_as_many_cases_see_it_as_it_takes",
    ),
    Mutation(
        "a finding whose root is not reported is hidden",
        "http/verify/report/report.py",
        "if entry.root not in found",
        "if entry.root is None",
        "http/verify/test_verify_roots.py::test_a_root_that_is_not_in_the_report_hides_nothing",
    ),
    Mutation(
        "verify: half a character at a text's start is blamed on the server",
        ARRIVAL,
        "if not all(one.text and",
        "if not all(True or",
        "http/verify/test_verify_arrival.py::test_a_first_token_that_is_no_character_yet_could_not_be_sent_sooner",
    ),
    Mutation(
        "verify: a model that ends at once is blamed on the server",
        "http/verify/cases/text.py",
        "    if one.has_ended and not (isinstance(billed, int) and billed > 1):\n        return None\n",
        "",
        f"{ODD_MODELS}::test_no_case_accuses_a_sound_server_of_its_model[ends at once]",
    ),
    Mutation(
        "verify: tokens without text are blamed on the server",
        "http/verify/cases/text.py",
        "(one.completion_tokens, eight.completion_tokens) == (1, 8)",
        "(one.completion_tokens, eight.completion_tokens) == (1, 9)",
        f"{ODD_MODELS}::test_no_case_accuses_a_sound_server_of_its_model[no text, whatever the bias]",
    ),
    Mutation(
        "verify: a model that no bias moves is blamed on the server",
        "http/verify/cases/sampling.py",
        "if behind > 95:",
        "if behind > 1e9:",
        f"{ODD_MODELS}::test_no_case_accuses_a_sound_server_of_its_model[one token, whatever the bias]",
    ),
    Mutation(
        "verify: a tokenizer that begins texts without a space is blamed on the server",
        "http/verify/ask/probe.py",
        'return {self.text, self.text.removeprefix(" ")}',
        "return {self.text}",
        f"{ODD_MODELS}::test_no_case_accuses_a_sound_server_of_its_model[SentencePiece]",
    ),
    Mutation(
        "verify: texts that tell nothing are compared",
        "http/verify/ask/probe.py",
        'return {"logit_bias": {str(token.id): FORCE for token in others}} if len(others) > 1 else {}',
        "return {}",
        f"{ODD_MODELS}::test_a_fault_is_not_acquitted_on_such_a_model[ends at once: temperature.greedy: 0 is 1]",
    ),
)
