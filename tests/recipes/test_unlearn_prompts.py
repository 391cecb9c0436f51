"""Tables of prompts: which columns are concepts, and what is wrong with a concept or a table."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.data.prompts import Prompt
from vision_sae.errors import ConfigError, DataError, UnknownName
from vision_sae.recipes.unlearn.prompts import Labelled, check, concepts_of, holds, parse, read

ROWS = [
    Labelled(Prompt("a pizza in neon style"), {"object": "pizza", "style": "neon"}),
    Labelled(Prompt("a pizza"), {"object": "pizza", "style": ""}),
    Labelled(Prompt("a cat in neon style"), {"object": "cat", "style": "neon"}),
]


def table(folder: Path, text: str, name: str = "prompts.csv") -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_columns_beside_prompt_seed_and_guidance_are_factors(tmp_path: Path) -> None:
    text = "prompt,seed,guidance,object,style\na pizza,7,3.5,pizza,\na neon cat,8,,cat, neon \n"
    first, second = read(table(tmp_path, text))
    assert first == Labelled(Prompt("a pizza", 7, 3.5), {"object": "pizza", "style": ""})
    assert second == Labelled(Prompt("a neon cat", 8), {"object": "cat", "style": "neon"})


def test_a_tab_separated_table(tmp_path: Path) -> None:
    (row,) = read(table(tmp_path, "prompt\tobject\na pizza, hot\tpizza\n", "prompts.tsv"))
    assert row == Labelled(Prompt("a pizza, hot", 0), {"object": "pizza"})


def test_json_lines_where_null_and_a_missing_name_are_no_value(tmp_path: Path) -> None:
    rows = [
        {"prompt": "a pizza", "object": "pizza", "style": None},
        {"prompt": "a cat", "object": "cat"},
        {"prompt": "two", "seed": 5, "object": 2},
    ]
    text = "\n".join(json.dumps(row) for row in rows)
    found = read(table(tmp_path, text, "prompts.jsonl"))
    assert [row.prompt.seed for row in found] == [0, 1, 5]
    assert concepts_of(found) == ("object:pizza", "object:cat", "object:2")


@given(st.lists(st.sampled_from(["pizza", "cat", "hot dog", "a:b", 'say "x"', ""]), min_size=1))
def test_labels_come_back_from_json_lines(
    tmp_path_factory: pytest.TempPathFactory, values: list[str]
) -> None:
    lines = [json.dumps({"prompt": f"{i}", "object": value}) for i, value in enumerate(values)]
    found = read(table(tmp_path_factory.mktemp("rows"), "\n".join(lines), "prompts.jsonl"))
    assert [row.labels["object"] for row in found] == values
    for value in filter(None, values):
        assert [holds(row, f"object:{value}") for row in found] == [v == value for v in values]


def test_a_list_of_prompts_has_no_factors(tmp_path: Path) -> None:
    path = table(tmp_path, "a pizza\na cat\n", "prompts.txt")
    with pytest.raises(DataError, match=r"prompts.txt: concepts are columns beside prompt.*none"):
        read(path)


def test_a_table_of_prompts_alone(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"columns beside prompt, seed and guidance .as object"):
        read(table(tmp_path, "prompt,seed\na pizza,1\n"))


def test_a_factor_has_no_colon(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the column 'my:object' cannot be a factor"):
        read(table(tmp_path, "prompt,my:object\na pizza,pizza\n"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("text,object\na pizza,pizza\n", "its columns are text, object; the column `prompt`"),
        ("prompt,object\na pizza\n", "line 2: 1 fields for the 2 columns prompt, object"),
        ("prompt,object,seed\na pizza,pizza,x\n", "the seed must be a whole number"),
        ("prompt,object,guidance\na pizza,pizza,x\n", "the guidance must be a number"),
        ("prompt,object\n", "no prompts in"),
    ],
)
def test_broken_tables(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read(table(tmp_path, text))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read(str(tmp_path / "none.csv"))


def test_concepts_in_order_of_appearance_without_empty_values() -> None:
    assert concepts_of(ROWS) == ("object:pizza", "style:neon", "object:cat")


@pytest.mark.parametrize("concept", ["pizza", "object:", ":pizza", ""])
def test_what_is_no_concept(concept: str) -> None:
    with pytest.raises(ConfigError, match=r"FACTOR:VALUE, as in object:pizza; got "):
        parse(concept)


def test_a_value_may_hold_a_colon() -> None:
    assert parse("object:a:b") == ("object", "a:b")


def test_a_concept_without_prompts_and_its_near_matches() -> None:
    check(ROWS, "object:pizza")
    message = r"no prompts of concept 'object:piza'; did you mean object:pizza"
    with pytest.raises(UnknownName, match=message):
        check(ROWS, "object:piza")
    with pytest.raises(UnknownName, match=r"there are: object:cat, object:pizza, style:neon"):
        check(ROWS, "zzz:qqq")


def test_a_concept_that_all_prompts_ask_for() -> None:
    with pytest.raises(DataError, match=r"all 2 prompts ask for object:pizza; others are needed"):
        check(ROWS[:2], "object:pizza")
