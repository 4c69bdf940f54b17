"""Files whose content is of another form than their name says: read, or an error that says what they are."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from conftest import ROOT
from prefdag.cli.main import main
from prefdag.data.adapters.records import Unusable
from prefdag.data.adapters.registry import adapter_of
from prefdag.data.rows import read_rows
from prefdag.errors import UserError
from preparing import fetch, prepare, write_rows

ROWS = [{"a": "1\u2028é", "b": "2"}, {"a": "3", "b": "4"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
CASES = ROOT.parent / "shared/cases/data"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.json", LINES.encode()),
        ("a.json", json.dumps(ROWS, indent=1).encode()),
        ("a.jsonl", json.dumps(ROWS).encode()),
        ("a.jsonl", b"\n" + json.dumps(ROWS, indent=1).encode("utf-8-sig")),
        ("a.json", json.dumps({"data": ROWS}, indent=1).encode()),
        ("a.jsonl", json.dumps({"data": ROWS}).encode()),
        ("a.jsonl", LINES.encode("utf-16")),
        ("a.json", LINES.encode("utf-8-sig")),
        ("a.csv", "a;b\n1\u2028é;2\n3;4\n".encode()),
        ("a.csv", "a\tb\r\n1\u2028é\t2\r\n3\t4\r\n".encode("utf-16")),
        ("a.tsv", "a \t b\n1\u2028é\t2\n3\t4\n".encode()),
        ("a.csv", " a , b\n1\u2028é,2\n3,4\n".encode("utf-8-sig")),
    ],
)
def test_the_content_decides(tmp_path: Path, name: str, content: bytes):
    (tmp_path / name).write_bytes(content)
    assert [*read_rows(tmp_path / name)] == ROWS


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", b'{"a": {"0": 1},\n"b": {"0": 2}}', "got an object with a, b; write its rows as a list"),
        ("a.csv", b"a,b,a\n1,2,3\n", r"the header names a column twice \(a, b, a\)"),
        ("a.jsonl", b'{"a": 1}\n' + b"{\n" * 12, r"row 2: .*12 bad rows of 13: 2, 3, .*, 11, \.\.\.\)$"),
        ("a.jsonl", b'{"a": 1}\n{\n', r"row 2: not valid JSON \(.*\); fix or remove that line$"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', r"row 2: not valid JSON \(Expecting value: column \d \(char \d\)\); fix"),
    ],
)
def test_what_is_not_rows_is_said(tmp_path: Path, name: str, content: bytes, sentence: str):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        [*read_rows(tmp_path / name)]


def test_binary_columns_are_text_or_refused(tmp_path: Path):
    path = tmp_path / "a.parquet"
    for value in ("é".encode(), b"\xff"):
        pyarrow.parquet.write_table(pyarrow.table({"a": [value], "b": [[{"c": value}]]}), path)
        if value == b"\xff":
            with pytest.raises(UserError, match="row 1: the binary column `a` is not UTF-8 text"):
                [*read_rows(path)]
        else:
            assert [*read_rows(path)] == [{"a": "é", "b": [{"c": "é"}]}]


def prepared_sft(folder: Path, rows: list[dict], name: str) -> Path:
    """Fetch rows as a suite's source `name`, prepare them for SFT, and return the manifest."""
    write_rows(folder / "sft.jsonl", rows)
    at = folder / f"out/fetch/{name}/manifest.json"
    job = {name: {"source": str(folder / "sft.jsonl")}}
    assert main(["fetch", "--config", json.dumps(job), "--output", str(at)]) == 0
    if name != "data":
        shutil.copytree(at.parent, folder / "out/fetch/data")
    code, sft = prepare(folder, dataset="demonstrations", adapter="demonstrations")
    assert code == 0
    shutil.rmtree(folder / "out/fetch/data")
    return sft / "manifest.json"


def fetch_pairs(folder: Path, prompts: dict[str, list]) -> None:
    """Fetch a pair for each prompt of each split."""
    for name, of_split in prompts.items():
        write_rows(
            folder / f"pairs/{name}.jsonl", [{"prompt": one, "chosen": "a", "rejected": "b"} for one in of_split]
        )
    data = {"source": str(folder / "pairs"), "train": "train.jsonl", "test": "test.jsonl"}
    assert fetch(folder, data) == 0


@pytest.mark.parametrize("leakage", ["error", "drop"])
def test_held_out_prompts_in_sft_of_other_rows_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], leakage: str
):
    sft = prepared_sft(tmp_path, [{"prompt": f"q{n}", "response": "a"} for n in range(4)], "sft_data")
    fetch_pairs(tmp_path, {"train": ["q4", "q5", "q6"], "test": ["q3 "]})
    assert prepare(tmp_path, inputs={"demonstrations": sft}, leakage=leakage)[0] == 2
    assert "is in SFT's training too; remove such rows" in capsys.readouterr().err


def test_prompts_of_one_source_are_compared_as_they_are(tmp_path: Path):
    """A prompt of a continuation may end in a space: a split by prompt takes it for another one than that without."""
    sft = prepared_sft(tmp_path, [{"prompt": f"q{n}", "response": "a"} for n in range(4)], "data")
    fetch_pairs(tmp_path, {"train": ["q4", "q5", "q6"], "test": ["q3 ", "q7"]})
    assert prepare(tmp_path, inputs={"demonstrations": sft}, leakage="error")[0] == 0


@pytest.mark.parametrize("form", ["text", "turns"])
def test_leakage_from_sft_data_is_found_in_every_format(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str):
    """Text is compared with messages that have a system turn; dropping rows of `data` would not help."""
    chats = [
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"q{n}"}] for n in range(6)
    ]  # fmt: skip
    rows = [{"messages": [*turns, {"role": "assistant", "content": "a"}]} for turns in chats]
    sft = prepared_sft(tmp_path, rows, "sft_data")
    for first, allowed in ((6, 0), (5, 2)):  # q5 is trained on
        prompts = {}
        for name, number in (("train", 0), ("test", first)):
            prompt = f"q{number}" if form == "text" else [{"role": "user", "content": f"q{number}"}]
            prompts[name] = [prompt, *(f"other {name} {n}" for n in range(3))]
        fetch_pairs(tmp_path, prompts)
        assert prepare(tmp_path, inputs={"demonstrations": sft}, leakage="error")[0] == allowed
        shutil.rmtree(tmp_path / "out/fetch/data")
        error = capsys.readouterr().err
    assert "remove such rows from the source of sft.data, or set prepare.leakage to allow" in error
    assert "test: the prompt" in error and "is in SFT's training too" in error


USED: dict[str, tuple[int, int]] = {  # rows used and dropped, of each case of `CASES`
    "02-prompt-system-only-in-prompt": (1, 0),
    "05-llamafactory-dicts": (1, 0),
    "08-score-chosen-ties": (1, 1),
    "09-shp-labels-text": (1, 0),
    "09c-shp-csv": (1, 0),
    "12-json-in-text": (1, 0),
    "13-content-parts": (2, 0),
    "14-role-names": (1, 0),
    "16-prefill": (1, 0),
    "35-utf16": (1, 0),
    "36-json-that-is-jsonl": (3, 0),
    "36b-jsonl-that-is-json": (2, 0),
    "36c-json-wrapped": (2, 0),
    "37-tsv": (1, 0),
    "37b-csv-semicolon": (1, 0),
    "38-parquet-binary": (1, 0),
}


@pytest.mark.skipif(not CASES.is_dir(), reason="../shared/cases does not exist")
@pytest.mark.parametrize("case", USED)
def test_cases_that_users_brought(tmp_path: Path, case: str):
    config: dict[str, Any] = json.loads((CASES / case / "config.json").read_text())
    data = {**config["data"], "source": str(CASES / case)}
    assert fetch(tmp_path, data) == 0
    used = dropped = 0
    for row in read_rows(tmp_path / "out/fetch/data/train.jsonl"):
        try:
            adapter_of(config["prepare"]["adapter"])(row)
        except Unusable:
            dropped += 1
        else:
            used += 1
    assert (used, dropped) == USED[case]
