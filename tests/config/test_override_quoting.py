"""Values arrive as they were typed, on the command line and in a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from tl_research import compose
from tl_research.config.override_quoting import quote

AWKWARD = [
    "~/x", "/tmp/é", "/tmp/热狗", "/tmp/🌭", "/tmp/a=b", "/tmp/hot-dog_(1)", "it's", "'tis", "/tmp/a b", '/a "b"',
    "/tmp/[x]", "/tmp/{x}", "/tmp/a:b", "/tmp/a#b", "/tmp/a\\b", "/tmp/ends\\", "/tmp/100%", "/tmp/?*", "/tmp/a&b;c",
    "/tmp/a@b!c|d", "$HOME", "2024", "1_000", "1e3", "1.50", "true", "inf", "[x]", "{x}", "choice(x)", "null_", "-x",
    "C:\\Users\\me", "x'y\"z", "a\\b\\",
]  # fmt: skip


def read_by_hydra(argument: str) -> Any:
    return OverridesParser.create().parse_override(argument).value()


@pytest.mark.parametrize("name", AWKWARD)
def test_any_folder_name_arrives_as_it_was_typed(name: str) -> None:
    assert read_by_hydra(quote(f"data.root={name}")) == name


@pytest.mark.parametrize("name", AWKWARD)
def test_each_folder_name_of_a_sweep_arrives_as_typed(name: str) -> None:
    override = OverridesParser.create().parse_override(quote(f"data.root=/a (1),{name},/b (2)", sweep=True))
    jobs = [read_by_hydra(f"data.root={value}") for value in override.sweep_string_iterator()]
    assert jobs == ["/a (1)", name, "/b (2)"]


@settings(deadline=None, max_examples=200)
@given(
    st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" ", exclude_characters=","), min_size=1)
)
@example("\\'")
@example("a\\\\'b")
@example("1__0")
def test_hydra_reads_any_text_exactly_as_it_was_typed(text: str) -> None:
    assume("${" not in text)
    assume(text == text.strip())
    assume(text.lower() != "null")
    assume(len(text) == 1 or text[0] != text[-1] or text[0] not in "'\"")  # Hydra's own quotes
    assert read_by_hydra(quote(f"data.root={text}")) == text


@pytest.mark.parametrize("name", ["~/x", "/tmp/热狗", "/tmp/hot-dog_(1)", "it's", "a=b", "1_000", "2024", "true"])
def test_the_recipe_gets_the_folder_name(name: str) -> None:
    root = compose(["data=folder", f"data.root={name}"]).data.root  # type: ignore[attr-defined]
    assert root == str(Path(name).expanduser().absolute())


@pytest.mark.parametrize(
    "argument",
    [
        "seed=3", "backbone=resnet50", "head.dropout=0.5", "data.root='a b'", 'data.root="a b"', "data.archive=null",
        "seed=1,2,3", "seed=range(1,5)", "backbone=tiny,resnet50", "+x=1", "~callbacks", "callbacks.best_weights=null",
        "data.root=${oc.env:HOME}", "-m", "--config-dir=a b", "seed", "seed=", "data.root=photos", "optimizer.l2=1e-3",
    ],
)  # fmt: skip
def test_values_that_hydra_reads_correctly_are_unchanged(argument: str) -> None:
    assert quote(argument, sweep="," in argument) == argument


@pytest.mark.parametrize("key", ["hydra.run.dir", "hydra.sweep.dir"])
def test_a_tilde_in_an_output_folder_is_the_home_folder(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/my self (1)")
    assert read_by_hydra(quote(f"{key}=~/runs")) == "/home/my self (1)/runs"
