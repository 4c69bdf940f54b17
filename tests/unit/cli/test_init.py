"""`prefdag init`: what it guesses from files, what it writes, and what it refuses."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest

from model_folder import write_model_folder
from prefdag.cli.guesses import data_section, guess_rows
from prefdag.cli.main import main
from prefdag.config.suite import Suite, read_ordinary_suite

ROWS = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "I do not know."} for n in range(12)]
HH = [
    {"chosen": f"\n\nHuman: Q {n}?\n\nAssistant: Yes {n}", "rejected": f"\n\nHuman: Q {n}?\n\nAssistant: No"}
    for n in range(12)
]
LIST = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
MESSAGES = [{"chosen": LIST, "rejected": [LIST[0], {"role": "assistant", "content": f"no {n}"}]} for n in range(12)]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    write_model_folder(folder / "chat")
    write_model_folder(folder / "base", template=None)
    return folder


def write(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path


def init(folder: Path, model: Path, data: Path, *more: str) -> Suite:
    path = folder / "suite.yaml"
    assert main(["init", "--model", str(model), "--data", str(data), "--output", str(path), *more]) == 0
    return read_ordinary_suite([str(path)])


@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "parquet"])
def test_every_format(ending: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    suite = init(tmp_path, models / "chat", write(tmp_path / f"my pairs.{ending}", ROWS))
    assert (suite.name, suite.prepare.adapter, suite.prepare.template) == ("suite", "pairs", "chat")
    assert (suite.prepare.end_of_turn, suite.prepare.bos, suite.sft.max_steps) == ("<|im_end|>", False, 0)
    assert (suite.prepare.max_prompt_tokens, suite.prepare.max_response_tokens) == (32, 32)
    output = capsys.readouterr().out
    assert "adapter   pairs: reads 12 of the first 12 rows" in output
    assert "data      12 rows, columns prompt, chosen, rejected" in output


@pytest.mark.parametrize(
    ("rows", "adapter"),
    [
        (ROWS, "pairs"),
        (HH, "hh"),
        (MESSAGES, "pairs"),
        ([{"prompt": "p", "responses": ["a", "b", "c"], "scores": [1, 3, 2]}] * 3, "ranked"),
        ([{"question": "p", "response_1": "a", "response_2": "b", "overall_response": 1}] * 3, "align-anything"),
    ],
)
def test_adapters(rows: list[dict], adapter: str, tmp_path: Path):
    assert guess_rows({}, write(tmp_path / "x.jsonl", rows)).adapter == adapter


def test_columns_of_other_names_are_renamed(models: Path, tmp_path: Path):
    rows = [{"Question": row["prompt"], "better": row["chosen"], "worse": row["rejected"]} for row in ROWS]
    suite = init(tmp_path, models / "chat", write(tmp_path / "x.csv", rows))
    assert suite.data.columns == {"prompt": "Question", "chosen": "better", "rejected": "worse"}


def test_a_folder_with_splits(tmp_path: Path):
    """One file a split, several files of one, and a name that only contains a split's."""
    for name in ("train-0.jsonl", "train-1.jsonl", "dev.jsonl", "sub/test.jsonl"):
        write(tmp_path / name, ROWS)
    data, path = data_section(str(tmp_path))
    assert data == {"source": str(tmp_path), "train": "train*", "validation": "dev.jsonl", "test": "sub/test.jsonl"}
    assert path == tmp_path / "train-0.jsonl"
    write(tmp_path / "other/latest.jsonl", ROWS)
    assert data_section(str(tmp_path / "other"))[0]["train"] == "latest.jsonl"


def test_a_model_without_a_chat_template(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Text that would run together gets a template next to the suite; a dialogue is written as it is."""
    suite = init(tmp_path, models / "base", write(tmp_path / "x.jsonl", ROWS))
    assert suite.prepare.template.endswith("suite.jinja") and suite.sft.max_steps is None
    assert main(["check", str(tmp_path / "suite.yaml")]) == 0
    assert "·H·u·m·a·n·:· ·W·h·a·t· ·i·s· ·1·?·" in capsys.readouterr().out
    dialogue = init(tmp_path, models / "base", write(tmp_path / "hh.jsonl", HH), "--force").prepare
    assert dialogue.template == "plain" and not dialogue.bos


def test_an_empty_prompt_gets_a_bos(models: Path, tmp_path: Path):
    """Its response would follow nothing."""
    rows = [{**row, "prompt": row["prompt"] * (number != 3)} for number, row in enumerate(ROWS)]
    assert init(tmp_path, models / "base", write(tmp_path / "x.jsonl", rows)).prepare.bos


def test_a_model_without_a_chat_template_keeps_system_turns(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    rows = [{**row, "system": "Be kind."} for row in ROWS]
    init(tmp_path, models / "base", write(tmp_path / "x.jsonl", rows))
    assert f"and the template {tmp_path / 'suite.jinja'}" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "suite.yaml")]) == 0
    output = capsys.readouterr().out
    assert "·B·e· ·k·i·n·d·.·" in output and "no place for a turn" not in output


def test_a_system_prompt_that_the_template_adds_is_stated(tmp_path: Path):
    template = (
        "{% if messages[0].role != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    write_model_folder(tmp_path / "model", template=template)
    assert init(tmp_path, tmp_path / "model", write(tmp_path / "x.jsonl", ROWS)).prepare.system == "Be kind."


def test_it_asks_only_if_told_to(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Name, adapter, template and method; an unknown adapter is asked for again, an empty answer takes the guess."""
    answers = iter(["", "nonsense", "pairs", "", "simpo"])
    monkeypatch.setattr("builtins.input", lambda text: next(answers))
    suite = init(tmp_path, models / "chat", write(tmp_path / "x.jsonl", ROWS), "--ask")
    assert suite.name == "suite" and suite.runs[0].objective.method == "simpo"
    assert next(answers, None) is None


def test_nothing_is_overwritten(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = write(tmp_path / "x.jsonl", ROWS)
    (tmp_path / "suite.yaml").write_text("mine")
    command = ["init", "--model", str(models / "chat"), "--data", str(data), "--output", str(tmp_path / "suite.yaml")]
    assert main(command) == 2
    assert "exists; name another file as --output, or overwrite it with --force" in capsys.readouterr().err
    assert (tmp_path / "suite.yaml").read_text() == "mine"
    assert main([*command, "--force"]) == 0


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"a": "x", "b": "y"}] * 3, "no adapter reads these rows with the columns a, b (3 rows: "),
        ([{"prompt": "p", "completion": "c"}] * 3, "have one response each, and no label"),
        (ROWS[:4], "4 different prompts, but at least 6 are needed"),
        ([], "holds no rows"),
    ],
)
def test_rows_that_cannot_be_trained_on(
    rows: list[dict], sentence: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    data, output = write(tmp_path / "x.jsonl", rows), tmp_path / "suite.yaml"
    assert main(["init", "--model", str(models / "base"), "--data", str(data), "--output", str(output)]) == 2
    assert sentence in capsys.readouterr().err
    assert not output.exists() and not output.with_suffix(".jinja").exists()


@pytest.mark.parametrize(("model", "data"), [("nowhere", "x.jsonl"), ("chat", "nowhere.jsonl"), ("hub:a/b", "x.jsonl")])
def test_what_is_not_there(model: str, data: str, models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write(tmp_path / "x.jsonl", ROWS)
    name = model if model.startswith("hub:") else str(models / model)
    assert main(["init", "--model", name, "--data", str(tmp_path / data), "--output", str(tmp_path / "s.yaml")]) == 2
    assert "prefdag: init --" in capsys.readouterr().err
