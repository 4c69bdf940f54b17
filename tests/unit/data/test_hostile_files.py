"""Files that are damaged or made to hurt end in one sentence, within little memory."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import hypothesis
import pytest
from hypothesis import settings
from hypothesis import strategies as st

from conftest import ROOT
from prefdag.data import packed
from prefdag.data.rows import FORMATS, read_rows
from prefdag.errors import UserError
from prefdag.schema import read_json

MISTAKES = {
    "nested": ("[" * 100_000, "nested too deeply"),
    "digits": ('{"prompt": ' + "1" * 5000 + "}", "Exceeds the limit"),
    "twice": ('{"prompt": "a", "prompt": "b"}', "the key 'prompt' is there twice"),
    "cut": ('{"prompt": "a', "Unterminated string"),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_that_cannot_be_read(name: str, suffix: str, tmp_path: Path) -> None:
    text, reason = MISTAKES[name]
    path = tmp_path / f"rows{suffix}"
    path.write_text(text)
    with pytest.raises(UserError, match=reason):
        list(read_rows(path))
    with pytest.raises(UserError, match=reason):
        read_json(path)


def test_a_line_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "LINE_LIMIT", 1000)
    for name in ("rows.jsonl", "rows.csv"):
        (tmp_path / name).write_text("prompt,chosen\n" + "a" * 2000)
        with pytest.raises(UserError, match="line 2 is longer than"):
            list(read_rows(tmp_path / name))


def test_a_list_that_does_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "WHOLE_LIMIT", 1000)
    path = tmp_path / "rows.json"
    path.write_text(json.dumps([{"prompt": "a" * 100}] * 20, indent=1))
    with pytest.raises(UserError, match="convert it to JSON lines"):
        list(read_rows(path))


def test_a_bomb_stays_within_two_gigabytes(tmp_path: Path) -> None:
    """A quarter of a GiB of spaces in 1 MB, without a newline."""
    path = tmp_path / "rows.jsonl.gz"
    block = b" " * (64 << 20)
    with gzip.open(path, "wb", compresslevel=1) as stream:
        for _ in range(4):
            stream.write(block)
    code = (
        f"from pathlib import Path; from prefdag.data.rows import read_rows; from prefdag.errors import UserError\n"
        f"try: list(read_rows(Path({str(path)!r})))\nexcept UserError as error: print(error)"
    )
    environment = {"PYTHONPATH": str(ROOT / "workflow")}
    with (tmp_path / "output.txt").open("w+") as output:
        process = subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=output)
        _, process.returncode, usage = os.wait4(process.pid, 0)  # of this process alone
        output.seek(0)
        assert process.returncode == 0 and "longer than 64 MiB" in output.read()
    assert usage.ru_maxrss < 2 << 20  # KiB


TEXT = st.text(alphabet='{}[]",:\\ \n0123456789truefalsnab\r;\t', max_size=60)
CONTENT = st.one_of(st.binary(max_size=200), TEXT.map(str.encode))
SUFFIXES = st.sampled_from([*FORMATS, ".jsonl.gz", ".csv.xz", ".json.zst"])


@settings(max_examples=400, derandomize=True, deadline=None)
@hypothesis.given(content=CONTENT, suffix=SUFFIXES)
def test_any_bytes_are_rows_or_one_sentence(content: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory):
    path = tmp_path_factory.mktemp("fuzz") / f"rows{suffix}"
    path.write_bytes(content)
    rows, sentence = [], str(path)
    try:
        rows = list(read_rows(path))
    except UserError as error:
        sentence = str(error)
    assert sentence.startswith(str(path)) and "\n" not in sentence
    assert all(isinstance(row, dict) for row in rows)
