"""What the documents say is so: tables, trees, links, and examples when they are run; and no line is too long."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gnomon.http.cli.serve import SERVE_ROWS
from gnomon.reference import FIELDS, CompletionRequest, default_model_path, load, prepare
from helpers.readme import DOCUMENTS, PARAMETERS, README, TESTS, with_table

ROOT = README.parent
TEXT = README.read_text(encoding="utf-8")


def kept(file: Path) -> bool:
    parts = file.relative_to(ROOT).parts
    return not any(part in ("build", "node_modules") or part.startswith(".") for part in parts)


MARKDOWN = sorted(filter(kept, ROOT.rglob("*.md")))
NAMES = [str(file.relative_to(ROOT)) for file in MARKDOWN]


@pytest.mark.parametrize("document", DOCUMENTS, ids=[str(path.relative_to(ROOT)) for path in DOCUMENTS])
def test_the_table_is_the_one_that_the_code_makes(document: Path) -> None:
    assert with_table(document) == document.read_text(encoding="utf-8"), "run: python tests/helpers/readme.py"


def test_every_test_in_the_table_exists() -> None:
    for name in TESTS.values():
        file, test = name.split("::")
        assert f"def {test}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")


def test_the_readme_has_at_most_110_lines_and_contributing_60() -> None:
    assert len(TEXT.splitlines()) <= 110
    assert len((ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").splitlines()) <= 60


@pytest.mark.parametrize("document", MARKDOWN, ids=NAMES)
def test_no_line_is_longer_than_100_columns(document: Path) -> None:
    """But rows of tables, which must be a line, and code, which is shown as it is; the README has neither so long."""
    text = document.read_text(encoding="utf-8")
    if document != README:
        text = re.sub(r"```.*?```|^(?:\||    |#).*$", "", text, flags=re.DOTALL | re.MULTILINE)
    assert [line for line in text.splitlines() if len(line) > 100] == []


def test_the_tree_names_what_is_there_and_nothing_else() -> None:
    tree = TEXT.split("## What is where")[1].split("```")[1]
    folder, named = "", set()
    for line in tree.strip("\n").splitlines():
        names = re.match(r"\s*((?:[\w.]+(?:/|\.py|\.md) )+)", line)
        assert names is not None, line
        if line.startswith("  "):
            named |= {folder + name for name in names[1].split()}
        else:
            [folder] = names[1].split()
    for path in named:
        assert (ROOT / path).exists(), path
    entries = [entry for top in ("reference", "jax_engine", "http") for entry in (ROOT / top).iterdir()]
    files = {str(entry.relative_to(ROOT)) for entry in entries if entry.suffix == ".py" and entry.stem != "__init__"}
    folders = {f"{entry.relative_to(ROOT)}/" for entry in entries if entry.is_dir() and entry.name != "__pycache__"}
    assert files | folders == {name for name in named if not name.endswith(".md") and "/" in name.rstrip("/")}


@pytest.mark.parametrize("document", MARKDOWN, ids=NAMES)
def test_every_link_leads_somewhere(document: Path) -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", document.read_text(encoding="utf-8")):
        assert (document.parent / link).exists(), link


def test_every_test_that_security_names_exists() -> None:
    named = re.findall(r"`([\w/]*test_\w+\.py)(?:::(\w+))?`", (ROOT / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 30
    for file, function in named:
        text = (ROOT / "tests" / file).read_text(encoding="utf-8")
        assert f"def {function or 'test_'}" in text, (file, function)


def test_every_option_that_a_document_names_exists() -> None:
    flags = {row.flag for row in SERVE_ROWS}
    others = {
        "--print-config",
        "--max-tokens",
        "--seed",
        "--config-settings",
        "--cov",
        "--json",
        "--check",
        "--golden",
        "--dry-run",
        "--ulimit",
        "--from-literal",
        "--from-file",
    }
    for name in ("README.md", "http/README.md", "SECURITY.md"):
        for flag in re.findall(r"(?<![\w-])--[a-z][a-z-]+", (ROOT / name).read_text(encoding="utf-8")):
            assert flag in flags | others or flag.startswith("--xla"), (name, flag)


def test_the_curl_calls_are_answered_and_stop_string_and_seed_do_what_they_say() -> None:
    engine, tokenizer = load()
    short, long = (
        CompletionRequest.from_json(body.encode()) for body in re.findall(r"-d '(\{.*?\})'", TEXT, re.DOTALL)
    )
    assert prepare(short, engine, tokenizer, "gnomon-stories").whole().choices[0].text
    first = prepare(long, engine, tokenizer, "gnomon-stories").whole()
    assert [choice.index for choice in first.choices] == [0, 1]
    assert all(choice.text.startswith("Once upon a time") and "\n\n" not in choice.text for choice in first.choices)
    assert prepare(long, engine, tokenizer, "gnomon-stories").whole().choices == first.choices


def test_the_python_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    [example] = re.findall(r"```python\n(.*?)```", PARAMETERS.read_text(encoding="utf-8"), re.DOTALL)
    exec(compile(example, str(PARAMETERS), "exec"), {})
    assert "Choice(index=0" in capsys.readouterr().out


def test_the_embedded_model_is_where_the_readme_says() -> None:
    there = ROOT / "reference" / "default_model"
    for file in there.iterdir():
        assert (default_model_path() / file.name).read_bytes() == file.read_bytes()


def test_the_law_has_every_section_that_a_field_names() -> None:
    law = (ROOT / "reference" / "LAW.md").read_text(encoding="utf-8")
    sections = set(re.findall(r"^## (\d+)\.", law, re.MULTILINE))
    assert sections == {str(number) for number in range(1, 13)}
    assert {section for field in FIELDS for section in field.section.split(", ")} <= sections


def test_there_are_two_markers_and_ci_runs_one_of_them_and_the_readmes_command() -> None:
    marks = {"filterwarnings", "parametrize", "skipif", "slow", "usefixtures", "weekly", "xdist_group", "xfail"}
    for path in (ROOT / "tests").rglob("*.py"):
        used = set(re.findall(r"pytest\.mark\.(\w+)", path.read_text(encoding="utf-8")))
        assert used <= marks, path
    run = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert re.findall(r"^limit \d+ (\.ci/.+)$", run, re.MULTILINE) == [".ci/check", ".ci/test", ".ci/test --slow"]
    assert re.search(r"^    python -m pytest\b", TEXT, re.MULTILINE)
    assert "exec python -m pytest " in (ROOT / ".ci" / "test").read_text(encoding="utf-8")
