"""What may stand where a method is named: names, words that stand for no method, and objects of the right shape."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from longctx import plugins, protocols, stacks
from longctx.commands.ask import check_drafters
from longctx.commands.settings import Settings
from longctx.decoding import control
from longctx.errors import BadOption, UnknownMethod
from longctx.types import Scores

PROTOCOLS: dict[str, Any] = {
    "splitters": protocols.Splitter,
    "selectors": protocols.Selector,
    "kv": protocols.KVPolicy,
    "drafters": protocols.Drafter,
    "controllers": control.Controller,
}


def members(protocol: Any) -> set[str]:
    return {name for name in {**vars(protocol), **protocol.__annotations__} if not name.startswith("_")}


def test_what_is_asked_of_an_object_is_in_its_protocol() -> None:
    assert set(plugins._ASKED) == set(plugins.ROOMS)
    for room, protocol in PROTOCOLS.items():
        assert set(plugins._ASKED[room]) <= members(protocol), room


@pytest.mark.parametrize(("room", "name"), [(room, name) for room in plugins.ROOMS for name in plugins.names(room)])
def test_every_method_passes_as_an_object(room: str, name: str) -> None:
    method = plugins.load(room, name)
    assert plugins.resolve(room, method) is method


@pytest.mark.parametrize("room", sorted(plugins.ROOMS))
@pytest.mark.parametrize("wrong", [None, 7, ["a"], object()])
def test_what_is_neither_a_name_nor_a_method_is_refused_with_what_is_wanted(room: str, wrong: Any) -> None:
    with pytest.raises(BadOption) as caught:
        plugins.resolve(room, wrong)
    said = str(caught.value)
    assert f"={wrong!r:.80} must be a name" in said
    assert all(word in said for word in (*plugins.known(room), *plugins._ASKED[room]))


def test_a_class_in_place_of_its_object_is_refused() -> None:
    with pytest.raises(BadOption, match="selector=<class"):
        plugins.resolve("selectors", plugins.plugin("selectors", "bm25"))


def test_an_object_that_lacks_a_part_is_refused_before_it_is_asked() -> None:
    class NoBaseline:
        def score(self, question: str, corpus: Any, budget_tokens: int) -> Scores:
            return Scores(np.zeros(1, dtype=np.float32))

    with pytest.raises(BadOption, match="an object with baseline, score"):
        plugins.resolve("selectors", NoBaseline())


def test_words_that_stand_for_no_method_are_known_and_no_method() -> None:
    assert "all" in plugins.known("selectors") and "all" not in plugins.names("selectors")
    assert "none" in plugins.known("kv") and {"auto", "none"} <= set(plugins.known("drafters"))
    with pytest.raises(UnknownMethod, match="Known: .*bm25.*, all"):
        plugins.load("selectors", "bm26")
    for room, words in plugins.WORDS.items():
        for word in words:
            with pytest.raises(BadOption, match=f"'{word}' stands for no method"):
                plugins.load(room, word)
    taken = {(room, word) for room, words in plugins.WORDS.items() for word in words if word in plugins.names(room)}
    assert not taken, "a word that is a method's name too"


def test_none_is_nothing_drafted_and_an_unbounded_cache_in_python_and_on_the_command_line() -> None:
    assert stacks.resolve("none") == stacks.resolve([]) == []
    assert stacks.resolve(Settings(drafters="none").stack()) == []
    assert [name for name, _ in stacks.resolve(Settings(drafters="document+ngram").stack())] == ["document", "ngram"]
    assert [name for name, _ in stacks.resolve(Settings().stack())] == list(stacks.AUTO)
    assert Settings().stack(usual="none") == "none" and Settings(drafters="auto").stack(usual="none") == "auto"
    assert Settings(drafters="").stack() == "", "no name, and not what is usual"
    with pytest.raises(UnknownMethod, match="no drafter named ''"):
        check_drafters(Settings(drafters=""))
    assert Settings(drafters="auto", seed=3).set_otherwise() == ["seed"], "chosen automatically is not chosen otherwise"
    assert Settings(drafters="none", kv="quest").set_otherwise() == ["drafters", "kv"]
    assert Settings().policy() is None and Settings(kv="quest").policy() == "quest"
    check_drafters(Settings(drafters="none"))
    with pytest.raises(BadOption, match="'none' stands for no method"):
        check_drafters(Settings(drafters="none+document"))


@pytest.mark.parametrize("wrong", [None, 7, iter(["document"]), plugins.plugin("drafters", "document")])
def test_a_stack_is_a_word_a_name_or_a_list(wrong: Any) -> None:
    with pytest.raises(BadOption, match="drafters=.*must be 'auto', 'none', a name, or a list"):
        stacks.resolve(wrong)
    with pytest.raises(BadOption, match="drafter=None must be a name"):
        stacks.resolve([None])


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "1e999"])
def test_numbers_that_are_not_finite_are_refused_where_options_are_made(value: str) -> None:
    with pytest.raises(BadOption, match=f"likelihood='{value}' is not a finite number"):
        plugins.load("selectors", f"auto:likelihood={value}")


def test_a_whole_number_may_be_of_any_length() -> None:
    assert plugins.load("selectors", f"infiniretri:topk={10**400}").topk == 10**400
