"""Prompts from tables and lists: what they give, and what is refused in which words."""

import csv
import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vision_sae.data import Prompt, decoded, open_data
from vision_sae.errors import DataError

WORDS = st.text(st.characters(exclude_categories=("C",)), max_size=12)


def written(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def prompts(spec: str, start: int = 0) -> list[Prompt]:
    return [item.open() for item in open_data(spec).items(start)]


@given(st.lists(st.tuples(WORDS, st.integers(0, 2**63 - 1), WORDS), min_size=1))
def test_a_table_gives_back_what_was_written(rows: list[tuple[str, int, str]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for ending, delimiter in (("csv", ","), ("tsv", "\t")):
            path = Path(folder) / f"x.{ending}"
            with path.open("w", newline="", encoding="utf-8") as file:
                table = csv.writer(file, delimiter=delimiter)
                table.writerows([("prompt", "seed", "mood"), *rows])
            source = open_data(str(path))
            assert len(source) == len(rows)
            assert [i.open() for i in source.items()] == [Prompt(t, seed) for t, seed, _ in rows]
            assert [i.about for i in source.items()] == [
                {"prompt": text, "seed": seed, "mood": mood} for text, seed, mood in rows
            ]


def test_all_columns_and_their_defaults(tmp_path: Path) -> None:
    text = "key,prompt,guidance,seed,style\ncat,a cat,3.5,9,ink\n,a dog,,,oil\n"
    source = open_data(written(tmp_path / "x.csv", text))
    assert source.name == str(tmp_path / "x.csv")
    first, second = source.items()
    assert first.open() == Prompt("a cat", 9, 3.5) and first.key == "cat"
    assert first.about == {"prompt": "a cat", "seed": 9, "guidance": 3.5, "style": "ink"}
    assert second.open() == Prompt("a dog", 1) and second.key == "000001"
    assert second.about == {"prompt": "a dog", "seed": 1, "style": "oil"}


def test_a_list_has_a_prompt_on_each_line_that_is_not_empty(tmp_path: Path) -> None:
    path = written(tmp_path / "x.txt", "\ufeffa cat, sitting\r\n\n  \nünïcode\n")
    assert prompts(path) == [Prompt("a cat, sitting", 0), Prompt("ünïcode", 1)]
    assert prompts(path, 1) == [Prompt("ünïcode", 1)] and prompts(path, 5) == []


def test_json_lines_keep_their_types(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "tags": ["x"]}, {"prompt": "b", "seed": 4, "guidance": 2, "key": 7}]
    path = written(tmp_path / "x.jsonl", "\n\n".join(map(json.dumps, rows)))
    first, second = open_data(path).items()
    assert first.about == {"prompt": "a", "seed": 0, "tags": ["x"]}
    assert second.key == "7" and second.open() == Prompt("b", 4, 2.0)


def test_prompts_pass_through_decoding(tmp_path: Path) -> None:
    rows = list(decoded(open_data(written(tmp_path / "x.txt", "a\nb\nc\n")), start=1))
    assert [(r.position, r.image) for r in rows] == [(1, Prompt("b", 1)), (2, Prompt("c", 2))]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.csv", "", r"x\.csv: it is empty; the column `prompt` is required; seed, guidance"),
        ("x.csv", "text,seed\na,1\n", r"its columns are text, seed; the column `prompt` is req"),
        ("x.csv", "prompt,seed,seed\na,1,1\n", "columns are prompt, seed, seed; .*each once"),
        ("x.csv", "prompt,seed\n", r"no prompts in .*x\.csv; the column `prompt` is required"),
        ("x.csv", "prompt,seed\na,1\nb,two\n", r"line 3: the seed must be a whole .*'two'"),
        ("x.csv", "prompt,seed\na,-1\n", "line 2: the seed must be a whole number from 0 .*'-1'"),
        ("x.csv", "prompt,seed\na,1.0\n", "line 2: the seed must be .* not '1.0'"),
        ("x.csv", "prompt,guidance\na,much\n", "line 2: the guidance must be a number.*'much'"),
        ("x.csv", "prompt,guidance\na,nan\n", "line 2: the guidance must be a number.*'nan'"),
        ("x.csv", "prompt,seed\na cat, black,1\n", "line 2: 3 fields for the 2 columns prompt, s"),
        ("x.csv", 'prompt,seed\n"a,1\n', r"x\.csv cannot be read: unexpected end of data"),
        ("x.csv", "prompt,key\na,k\nb,k\n", "the key 'k' of row 1 is that of row 0"),
        ("x.csv", "prompt,key\na,000001\nb,\n", "the key '000001' of row 1 is that of row 0"),
        ("x.txt", "\n \n", r"no prompts in .*x\.txt; each line is a prompt"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt"\n', "line 2 is not JSON"),
        ("x.jsonl", '{"text": "a"}\n', "line 1 must be an object; .*it has the names text"),
        ("x.jsonl", '["a"]\n', r"line 1 must be an object; .*it has '\[\"a\"\]'"),
        ("x.jsonl", '{"prompt": 3}\n', "line 1: the prompt must be a text, not 3"),
        ("x.jsonl", '{"prompt": null}\n', "line 1: the prompt must be a text, not no text"),
        ("x.jsonl", '{"prompt": "a", "seed": true}\n', "line 1: the seed must be .* not True"),
    ],
)
def test_bad_tables_say_where_and_what_is_wanted(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        open_data(written(tmp_path / name, text))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"prompts in .*gone\.csv cannot be read: .*No such file"):
        open_data(str(tmp_path / "gone.csv"))
    (tmp_path / "x.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match=r"x\.txt cannot be read: .*utf-8"):
        open_data(str(tmp_path / "x.txt"))


def test_a_seed_is_any_that_torch_takes(tmp_path: Path) -> None:
    import torch

    (prompt,) = prompts(written(tmp_path / "x.csv", f"prompt,seed\na,{2**63 - 1}\n"))
    generators: list[Any] = [torch.Generator().manual_seed(prompt.seed) for _ in range(2)]
    assert len({float(torch.rand(1, generator=g)) for g in generators}) == 1
