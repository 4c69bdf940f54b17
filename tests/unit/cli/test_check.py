"""`prefdag check`: what it shows of the first rows, and what it refuses before anything runs."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from conftest import MINI
from model_folder import write_model_folder
from prefdag.cli.check import _tokens
from prefdag.cli.main import main
from prefdag.data.splits import place_of

SUITE: dict[str, Any] = {
    "name": "mine",
    "prepare": {
        "adapter": "pairs",
        "template": "chat",
        "bos": False,
        "end_of_turn": "<|im_end|>",
        "over_long": "drop",
        "max_prompt_tokens": 100,
        "max_response_tokens": 100,
    },
    "sft": {"max_steps": 0, "batch_size": 4, "learning_rate": 1e-3},
    "reward": {"batch_size": 4, "learning_rate": 1e-3},
    "reference": {},
    "preference": {"batch_size": 4, "learning_rate": 1e-3},
    "generate": {"max_new_tokens": 16},
    "score": {"reward": "trained"},
    "runs": [{"name": "dpo", "method": "dpo", "beta": 0.1}],
}


SEED_WITH_P_IN_TRAIN = next(seed for seed in range(9) if place_of("p", seed) > 0.6)


def rows(num: int) -> list[dict[str, Any]]:
    return [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No idea."} for n in range(num)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model_folder(tmp_path_factory.mktemp("models") / "chat")


def check(folder: Path, model: Path, data: list[dict[str, Any]], /, **changes: Any) -> int:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    suite = {**SUITE, "model": {"source": str(model)}, "data": {"source": str(path)}}
    for key, value in changes.items():
        suite[key] = {**suite.get(key, {}), **value} if isinstance(value, dict) else value
    (folder / "mine.yaml").write_text(yaml.safe_dump(suite))
    return main(["check", str(folder / "mine.yaml")])


def test_what_it_shows(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any):
    """Nothing is left behind: no results, no suite file."""
    monkeypatch.chdir(tmp_path)
    assert check(tmp_path, model, rows(60)) == 0
    output = capsys.readouterr().out
    assert "mine: rows read: train 60 of 60" in output
    assert "splits: train 51, validation 3, test 6 rows" in output
    assert "comparisons: train: 51 of 51 rows used" in output
    start = "<|im_start|>·u·s·e·r·\u21b5·W·h·a·t·"
    assert output.count(start) == 2 and "·<|im_end|>·\u21b5·<|im_start|>·a·s·s·i·s·t·a·n·t·\u21b5\n" in output
    assert "9 tokens  I·t· ·i·s· ·" in output and "N·o· ·i·d·e·a·.·<|im_end|>" in output
    assert "51 comparisons; about" in output and "memory up to" in output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.yaml", "rows.jsonl"]


def test_only_the_first_rows_are_read(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Row 200 is no JSON; the sizes are those of the whole file, a tenth of which is not usable."""
    data = [row | ({"chosen": ""} if n % 10 == 0 else {}) for n, row in enumerate(rows(1000))]
    assert check(tmp_path, model, data) == 0
    output = capsys.readouterr().out
    assert "train 200 of 1,000" in output
    assert "comparisons: train: 20 dropped, empty chosen: rows 1, 11, 21" in output
    assert "splits: about train 765, validation 45, test 90 rows" in output
    assert "parameters, 765 comparisons; about" in output


def test_many_dropped_rows_are_a_warning(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = [row | ({"rejected": row["chosen"]} if n % 2 else {}) for n, row in enumerate(rows(60))]
    assert check(tmp_path, model, data) == 0
    output = capsys.readouterr().out
    assert "warning: comparisons: train: " in output and ") are dropped: 30 equal responses" in output
    assert "dropped, equal responses: rows 2, 4, 6" in output


@pytest.mark.parametrize(
    ("num", "changes", "sentence"),
    [
        (5, {}, "results/mine/fetch/data/train.jsonl: 5 different prompts, but at least 6 are needed"),
        (60, {"prepare": {"test_fraction": 0.01}}, "but needs at least 2; usable rows are"),
        (60, {"prepare": {"max_prompt_tokens": 3}}, "no row of the train split can be used"),
        (60, {"prepare": {"end_of_turn": "<none>"}}, "the tokenizer has no token '<none>'"),
        (60, {"prepare": {"adapter": "hh"}}, "no row of the train split can be used"),
        (60, {"data": {"columns": {"prompt": "question"}}}, "row 1 has no column 'question'"),
        (60, {"data": {"source": "nowhere"}}, "nowhere does not exist"),
    ],
)
def test_what_prepare_would_refuse(
    num: int,
    changes: dict[str, Any],
    sentence: str,
    model: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: Any,
):
    monkeypatch.chdir(tmp_path)
    assert check(tmp_path, model, rows(num), **changes) == 2
    error = capsys.readouterr().err
    assert sentence in error and "/tmp/tmp" not in error
    assert not (tmp_path / "results").exists()


def test_one_prompt_with_most_of_the_examples(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """KTO pairs each prompt with another prompt's response; that one prompt's cannot all find one."""
    data = [row | ({"prompt": "p"} if n >= 8 else {}) for n, row in enumerate(rows(60))]
    runs = [{"name": "kto", "method": "kto", "beta": 0.1}]
    assert check(tmp_path, model, data, runs=runs, prepare={"seed": SEED_WITH_P_IN_TRAIN}) == 2
    assert "answer one and the same prompt; add prompts or choose another loss" in capsys.readouterr().err


def test_answers_beyond_the_context_are_a_warning(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert check(tmp_path, model, rows(60), generate={"max_new_tokens": 500}) == 0
    assert "beyond the model's context of 512 tokens; lower one of them" in capsys.readouterr().out


def test_a_world_of_sampled_comparisons(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """A tokenizer is trained on the first rows, as `pretrain` will on all of them."""
    (tmp_path / "mini.yaml").write_text(MINI)
    assert main(["check", str(tmp_path / "mini.yaml")]) == 0
    output = capsys.readouterr().out
    assert "comparisons: sampled from the SFT policy" in output
    assert "demonstrations: train: 200 of 200 rows used" in output and "<|bos|>·" in output


def test_rows_of_sft_alone(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """They are counted, shown as SFT sees them, and their leakage is refused."""
    for prompt, code in (("Name", 0), ("What is", 2)):
        chats = [{"prompt": f"{prompt} {n}?", "response": f"N{n}."} for n in range(60)]
        (tmp_path / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats))
        data = {"source": str(tmp_path / "chats.jsonl"), "adapter": "demonstrations"}
        assert check(tmp_path, model, rows(60), sft={"data": data, "max_steps": 2}) == code
    output, error = capsys.readouterr()
    assert "sft.data: rows read: train 60 of 60; adapter demonstrations, template chat" in output
    assert "demonstrations: train: 57 of 57 rows used" in output and "response   " in output
    assert "is in SFT's training too; remove such rows from the source of sft.data" in error


def test_subsets_that_the_rows_do_not_have(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Of the suite's own test split and of a set, by their first rows; sections need all rows, which a file has."""
    bench = tmp_path / "bench.jsonl"
    bench.write_text("".join(json.dumps({**row, "kind": "easy"}) + "\n" for row in rows(300)))
    one = {"source": str(bench), "subset": "kind", "sections": {"chat": ["easy"]}}
    assert check(tmp_path, model, rows(60), evaluate_reward={"bench": one, "test": {}}) == 0
    assert check(tmp_path, model, rows(60), evaluate_reward={"test": {"subset": "kind"}}) == 2
    assert "rows.jsonl: row 1: no column 'kind'; `subset` may name prompt, chosen, rejected" in capsys.readouterr().err
    typo = {**one, "sections": {"chat": ["esay"]}}
    assert check(tmp_path, model, rows(60), evaluate_reward={"bench": typo}) == 2
    assert "bench.sections.chat: no comparison is of the subset 'esay'" in capsys.readouterr().err


def test_tokens_of_sentencepiece_are_shown_with_their_mark():
    """Decoded alone, a token that begins with the mark loses it, and the mark alone is nothing."""
    vocabulary = [("<unk>", 0.0), ("\u2581Lily", -1.0), ("\u2581", -2.0), (",", -2.0), ("s", -2.0), ("\n", -2.0)]
    inner = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>")
    ids = tokenizer("Lily , Lilys\n")["input_ids"]
    assert tokenizer.decode(ids[0]) == "Lily"
    assert _tokens(tokenizer, ids) == "\u2581Lily·\u2581·,·\u2581Lily·s·\u21b5"
