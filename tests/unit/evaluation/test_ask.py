"""A local model as judge of a file's pairs: its log-odds, its verdicts, and what `winrate` reads of them."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from chat_templates import CHATML, chat
from prefdag.cli.main import main
from prefdag.config.model import Architectural
from prefdag.evaluation.judge.run import Pair
from prefdag.models.loading import build, save
from prefdag.rewards import local_judge

COLUMNS = ("query", "postprocessed_response", "reference_responses", "preferred", "shuffled_index")
TEMPLATE = "Which?\n{prompt}\nA: {A}\nB: {B}\nBetter: <A or B>"


def judged(folder: Path, labels: list[str]) -> Path:
    """A judged csv; an empty label is a pair that was not judged."""
    with (folder / "judged.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        for number, label in enumerate(labels):
            writer.writerow([f"POST: {number}\n\nTL;DR:", f" ours {number}", f" theirs {number}", label, number % 2])
    return folder / "judged.csv"


def tiny_model(folder: Path, template: str | None) -> Path:
    tokenizer = chat(CHATML, ["<|im_start|>", "<|im_end|>"])
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder / "tokenizer")
    shape = Architectural(architecture="llama", hidden_size=16, layers=2, heads=2, context=1024)
    model = build(shape, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    with torch.no_grad():  # far from uniform
        model.get_input_embeddings().weight.mul_(20)
    save(model, folder / "tokenizer", folder / "model")
    return folder / "model"


@pytest.mark.parametrize("template", [CHATML, None])
def test_log_odds_are_those_of_the_letters_after_the_question(template: str | None, tmp_path: Path) -> None:
    """By transformers' own forward of each question in each order, letter by letter."""
    folder = tiny_model(tmp_path, template)
    pairs = [Pair("Long post.\n\nTL;DR:", "one", "another"), Pair("Post.", "x", "y")]
    first, second = local_judge.log_odds(pairs, TEMPLATE, folder, 1)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)

    def log_prob(text: str, letter: str) -> float:
        prompt, more = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in (text, letter))
        with torch.no_grad():
            values = model(torch.tensor([prompt + more])).logits[0].log_softmax(-1)
        return sum(values[len(prompt) - 1 + place, token].item() for place, token in enumerate(more))

    def odds(post: str, a: str, b: str) -> float:
        question = f"Which?\n{post}\nA: {a}\nB: {b}\nBetter: <A or B>"
        wrapped = f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n" if template else f"{question}\n\n"
        return log_prob(f"{wrapped}Better:", " A") - log_prob(f"{wrapped}Better:", " B")

    texts = [("Long post.", "one", "another"), ("Post.", "x", "y")]
    assert np.abs(first - [odds(*text) for text in texts]).max() < 1e-4
    assert np.abs(second + [odds(post, b, a) for post, a, b in texts]).max() < 1e-4
    assert np.abs(first).min() > 1e-3 and np.abs(first - second).min() > 1e-3


def test_a_judge_that_follows_the_order_knows_the_labels_on_average(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Log-odds of 2 for the first place and 1 for what the file prefers: ties in both orders, right when averaged."""
    labels = ["ours", "reference", "", "ours", "reference", "ours"]
    file, verdicts = judged(tmp_path, labels), tmp_path / "verdicts.csv"

    def biased(pairs: list[Pair], template: str, folder: Path, threads: int) -> tuple[np.ndarray, np.ndarray]:
        quality = np.array([1.0 if labels[int(pair.ours.split()[1])] == "ours" else -1.0 for pair in pairs])
        return quality + 2, quality - 2

    monkeypatch.setattr(local_judge, "log_odds", biased)
    assert main(["ask", str(file), str(tmp_path / "results/hh/sft/model"), str(verdicts)]) == 0
    assert "5 of 5 judged pairs" in capsys.readouterr().out
    assert main(["winrate", str(file), str(verdicts), "--bootstrap", "50"]) == 0
    result = json.loads(capsys.readouterr().out)
    published, both, averaged = result["judges"]
    assert [one["judge"] for one in (both, averaged)] == ["hh-sft", "hh-sft-averaged"]
    assert (both["ties"], both["order"]["prefers_first"]) == (5, 100.0)
    assert averaged["win_rate"] == published["win_rate"] == 60.0 and "order" not in averaged
    agreed = {tuple(entry["judges"]): entry for entry in result["agreement"]}
    assert agreed["judged", "hh-sft"]["ties"] == 5 and agreed["judged", "hh-sft"]["agreement"] is None
    assert (agreed["judged", "hh-sft-averaged"]["n"], agreed["judged", "hh-sft-averaged"]["agreement"]) == (5, 100.0)


def test_a_few_pairs_are_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, verdicts = judged(tmp_path, ["ours"] * 9), tmp_path / "verdicts.csv"
    monkeypatch.setattr(local_judge, "log_odds", lambda pairs, *_: (np.ones(len(pairs)), np.zeros(len(pairs))))
    assert main(["ask", str(file), "model", str(verdicts), "--pairs", "4", "--name", "small"]) == 0
    rows = list(csv.DictReader(verdicts.open(newline="")))
    assert len({row["prompt_id"] for row in rows}) == 4 and len(rows) == 8
    assert {(row["judge"], row["verdict"]) for row in rows} == {("small", "0.75"), ("small-averaged", "1.0")}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["judged.csv", "model", "verdicts.json"], "expected verdicts in a .csv file"),
        (["judged.csv", "model", "verdicts.csv", "--pairs", "0"], "at least one pair"),
        (["other.csv", "model", "verdicts.csv"], "other.csv: no column 'query'; a file of judged pairs has query"),
        (["unjudged.csv", "model", "verdicts.csv"], "unjudged.csv: no row has a verdict in `preferred`"),
        (["judged.csv", "absent", "verdicts.csv"], "ask: absent holds no config.json; name the folder"),
        (["judged.csv", "model", "verdicts.csv", "--prompt", "form.txt"], "last line is not the form of a verdict"),
        (["judged.csv", "model", "verdicts.csv", "--prompt", "absent"], "ask: prompt: expected one of summarisation"),
        (["long.csv", "model", "verdicts.csv"], "tokens, beyond the context of 1,024 of the model in model; ask"),
    ],
)
def test_what_cannot_be_asked_is_a_sentence(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    judged(tmp_path, ["", ""]).rename("unjudged.csv")
    judged(tmp_path, ["ours", "reference"])
    tiny_model(tmp_path, CHATML)
    (tmp_path / "long.csv").write_text(f"{','.join(COLUMNS)}\n{'POST: a b ' * 400},x,y,ours,0\n")
    (tmp_path / "other.csv").write_text("prompt,preferred\na,ours\n")
    (tmp_path / "form.txt").write_text("{prompt} {A} {B}\nA or B?")
    assert main(["ask", *arguments]) == 2
    assert sentence in capsys.readouterr().err
