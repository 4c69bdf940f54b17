"""From files to token stores: formats, adapters, tokens, splits, and the audit of every row."""

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from prefdag.cli.main import main
from prefdag.config.prepare import Prepare
from prefdag.data.adapters.builtin import hh, pairs
from prefdag.data.adapters.records import Unusable
from prefdag.data.rows import read_rows
from prefdag.data.token_store import Store
from prefdag.data.tokenization import encode_prompts
from prefdag.errors import UserError
from preparing import PREPARE, SHARED

ROWS = [{"prompt": f"prompt number {n}:", "chosen": f" yes {n}", "rejected": f" no, {n}!"} for n in range(40)]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE without merges: every byte is a token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=260, special_tokens=["<b>", "<e>"], initial_alphabet=alphabet)
    inner.train_from_iterator([], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<b>", eos_token="<e>")


@pytest.fixture
def prepared(tmp_path: Path, tokenizer: PreTrainedTokenizerFast):
    """Run the commands fetch and prepare on a list of rows or a file; return exit code and folder."""

    def run(rows: list[dict[str, Any]] | Path, test: list[dict[str, Any]] | None = None, **changes: Any):
        source = tmp_path / "raw"
        source.mkdir(exist_ok=True)
        (source / "tokenizer").mkdir(exist_ok=True)
        tokenizer.save_pretrained(source / "tokenizer")
        data = {"source": str(source), "train": "train.jsonl"}
        if isinstance(rows, Path):
            data = {"source": str(rows.parent), "train": rows.name}
        else:
            (source / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        if test is not None:
            (source / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in test))
            data["test"] = "test.jsonl"
        at = {name: tmp_path / "out" / name / "manifest.json" for name in ("fetch/data", "fetch/tokenizer")}
        assert main(["fetch", "--config", json.dumps({"data": data}), "--output", str(at["fetch/data"])]) == 0
        origin = {"tokenizer": {"source": str(source / "tokenizer")}}
        assert main(["fetch", "--config", json.dumps(origin), "--output", str(at["fetch/tokenizer"])]) == 0
        output = tmp_path / "out/prepare/comparisons/manifest.json"
        config = json.dumps({"prepare": {**PREPARE, **changes}, "dataset": "comparisons"})
        command = ["prepare", "--config", config, "--rows", str(at["fetch/data"])]
        code = main([*command, "--tokenizer", str(at["fetch/tokenizer"]), "--output", str(output)])
        return code, output.parent

    return run


def audit(folder: Path, split: str = "train") -> dict[str, Any]:
    return json.loads((folder / "audit.json").read_text())["splits"][split]


ROW = [
    {"prompt": "line \x85 and \u2028 stay", "chosen": "a\r\nb", "rejected": "c"},
    {"prompt": "p", "chosen": "d", "rejected": "e"},
]


def write(path: Path) -> Path:
    """ROW in the format that the name asks for."""
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROW).encode()
    match path.suffixes:
        case [".jsonl"]:
            path.write_bytes(lines)
        case [".jsonl", ".gz"]:
            path.write_bytes(gzip.compress(lines))
        case [".jsonl", ".xz"]:
            path.write_bytes(lzma.compress(lines))
        case [".json"]:
            path.write_text(json.dumps(ROW))
        case [".csv"]:
            pd.DataFrame(ROW).to_csv(path, index=False)
        case [".parquet"]:
            pd.DataFrame(ROW).to_parquet(path)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.xz", "a.json", "a.csv", "a.parquet"])
def test_every_format_gives_the_same_rows(name: str, tmp_path: Path):
    """U+0085 and U+2028 end a line for str.splitlines, not for a row."""
    assert list(read_rows(write(tmp_path / name))) == ROW


BROKEN = [
    ("a.jsonl", b'{"a": 1}\n{"a": \n', "row 2: not valid JSON"),
    ("a.jsonl", b'{"a": "\xe9"}\n', "row 1: not UTF-8 at byte 7"),
    ("a.jsonl", b"[1]\n[2]\n", "row 1: expected an object with named fields, got a list"),
    ("a.json", b'{"a":\n1}', "expected a JSON list of rows, got an object"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 50, mtime=0)[:-9], "the archive is broken or cut short"),
    ("a.parquet", b"PAR1 is not enough", "not a readable parquet file"),
    ("a.txt", b"text", "unknown format; the name must end in"),
    ("a.jsonl.gz", b"version https://git-lfs.github.com/spec/v1\n", "a Git-LFS pointer, not the file itself"),
]


@pytest.mark.parametrize(("name", "content", "sentence"), BROKEN, ids=[sentence for *_, sentence in BROKEN])
def test_a_broken_file_is_named(name: str, content: bytes, sentence: str, tmp_path: Path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as error:
        list(read_rows(tmp_path / name))
    assert str(error.value).startswith(str(tmp_path / name))
    assert sentence in str(error.value)


def test_hh_splits_at_the_last_assistant_turn():
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    comparison = hh({"chosen": start + " yes", "rejected": start + " no"})
    assert (comparison.prompt, comparison.responses) == (start, (" yes", " no"))


@pytest.mark.parametrize(
    ("adapter", "row", "reason"),
    [
        (hh, {"chosen": "\n\nHuman: a\n\nAssistant: x", "rejected": "\n\nHuman: b\n\nAssistant: y"}, "prompts differ"),
        (hh, {"chosen": "\n\nHuman: a\n\nAssistant:", "rejected": "\n\nHuman: a\n\nAssistant: y"}, "empty chosen"),
        (pairs, {"prompt": "a", "chosen": "x", "rejected": "x"}, "equal responses"),
        (pairs, {"prompt": "a", "chosen": True, "rejected": "x"}, "`chosen` is not text"),
        (pairs, {"prompt": "a", "chosen": "x"}, "no field `rejected`; the row has prompt, chosen"),
    ],
)
def test_unusable_rows_say_why(adapter: Any, row: dict[str, Any], reason: str):
    with pytest.raises(Unusable, match=f"^{reason}$"):
        adapter(row)


def test_prompt_and_response_are_tokenised_apart(prepared, tokenizer: PreTrainedTokenizerFast):
    """One BOS, then the prompt; the response, then exactly one end-of-turn."""
    code, folder = prepared(ROWS)
    assert code == 0
    first = Store.open(folder / "train")[0]
    assert first.prompt.tolist() == [tokenizer.bos_token_id, *tokenizer("prompt number 0:")["input_ids"]]
    assert first.responses[0].tolist() == [*tokenizer(" yes 0")["input_ids"], tokenizer.eos_token_id]
    assert first.responses[1].tolist() == [*tokenizer(" no, 0!")["input_ids"], tokenizer.eos_token_id]


def test_a_bos_in_the_text_is_refused(tokenizer: PreTrainedTokenizerFast):
    with pytest.raises(UserError, match="a special token in the text"):
        encode_prompts(tokenizer, ["<b>already there"], Prepare(**PREPARE))


def test_over_long_rows_are_dropped_counted_and_named(prepared):
    rows = [*ROWS[:5], {"prompt": "p" * 401, "chosen": "a", "rejected": "b"}, *ROWS[5:]]
    code, folder = prepared(rows)
    assert code == 0
    counts = audit(folder)
    assert (counts["rows_in"], counts["used"]) == (41, 40)
    assert counts["dropped"] == {"prompt over 400 tokens": {"count": 1, "rows": [5]}}


def test_over_long_rows_are_an_error_where_the_suite_says_so(prepared, capsys: pytest.CaptureFixture[str]):
    code, folder = prepared(ROWS, over_long="error", max_prompt_tokens=5)
    assert code == 2
    sentence = "train: row 1: a prompt of 17 tokens is over prepare.max_prompt_tokens 5; raise it or drop"
    assert sentence in capsys.readouterr().err
    assert not (folder / "manifest.json").exists()


def test_held_out_prompts_are_chosen_by_their_text(prepared):
    """Reordering the rows moves no prompt to another split, and no prompt is in two."""
    code, folder = prepared(ROWS, validation_fraction=0.2, test_fraction=0.3)
    assert code == 0
    splits = {split: _prompts(folder / split) for split in ("train", "validation", "test")}
    assert sum(map(len, splits.values())) == len(ROWS)
    assert all(splits.values())
    _, folder = prepared(ROWS[::-1], validation_fraction=0.2, test_fraction=0.3)
    assert {split: _prompts(folder / split) for split in splits} == splits


def _prompts(folder: Path) -> set[tuple[int, ...]]:
    store = Store.open(folder)
    return {tuple(store[index].prompt.tolist()) for index in range(len(store))}


def test_a_prompt_in_two_splits_is_an_error(prepared, capsys: pytest.CaptureFixture[str]):
    code, folder = prepared(ROWS, test=ROWS[:1])
    assert code == 2
    assert "the prompt 'prompt number 0:' is in the train split too" in capsys.readouterr().err
    assert not (folder / "manifest.json").exists()


def test_the_samples_page_escapes_what_rows_hold(prepared):
    rows = [{"prompt": "<script>alert(1)</script>", "chosen": "a", "rejected": "b"}, *ROWS]
    _, folder = prepared(rows)
    page = (folder / "samples.html").read_text()
    assert "<script" not in page
    assert "&lt;" in page


def test_the_real_hh_file(prepared):
    """4 empty chosen, 5 differing prompts and 1 `<b>`, a token of this tokenizer, among 2,312 rows (from 0)."""
    path = SHARED / "hh-harmless/test.jsonl.gz"
    if not path.is_file():
        pytest.skip("../shared/data does not exist")
    code, folder = prepared(path, adapter="hh", max_prompt_tokens=10_000, max_response_tokens=10_000)
    assert code == 0
    counts = audit(folder)
    assert counts["rows_in"] == 2312
    assert counts["dropped"]["prompts differ"] == {"count": 5, "rows": [1254, 1688, 1950, 1952, 2036]}
    assert counts["dropped"]["empty chosen"]["count"] == 4
    assert counts["dropped"]["a special token in the text"] == {"count": 1, "rows": [1328]}
    assert counts["used"] == 2312 - 10
