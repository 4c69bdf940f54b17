"""Ground truth by a text classifier: trained on labelled rows or fetched, saved, loaded, and applied."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from conftest import MINI
from hub_server import COMMIT, Hub, Repository, lock, serving, use_hub
from prefdag.cli.main import main
from prefdag.config.classifier import Classifier
from prefdag.config.loading import merge
from prefdag.config.suite import read_suite
from prefdag.errors import UserError
from prefdag.provenance.manifest import read_manifest
from prefdag.rewards.classifier import load_classifier, sorted_batches
from prefdag.rewards.ground_truth import load_ground_truth, vader
from prefdag.stages.classifier import evaluation
from preparing import write_rows
from sequence_classifier import tiny_roberta

WORDS = ["good", "great", "bad", "awful", "film", "story", "the", "a"]
ASKING = {"reward": "classifier"}
CPU = torch.device("cpu")
LABELLED = [
    {"text": f"{opinion} {noun} number {number}", "label": label}
    for number in range(20)
    for label, opinion in enumerate(("awful bad", "great good"))
    for noun in ("film", "story")
]


def trained(folder: Path, rows: list[dict[str, Any]], **classifier: Any) -> int:
    """Fetch labelled rows and train on them, by the two commands; returns the second one's exit code."""
    write_rows(folder / "raw/labelled.jsonl", rows)
    write_rows(folder / "raw/train.jsonl", [{"text": "this is not read here"}])
    data = {"source": str(folder / "raw"), "train": "train.jsonl", "labelled": "labelled.jsonl"}
    at = [folder / f"out/{stage}/manifest.json" for stage in ("fetch/data", "classifier")]
    assert main(["fetch", "--config", json.dumps({"data": data}), "--output", str(at[0])]) == 0
    config = json.dumps({"classifier": {"tfidf": {"min_df": 1, "held_out": 0.3}, **classifier}})
    return main(["classifier", "--config", config, "--data", str(at[0]), "--output", str(at[1])])


def fetch(folder: Path, source: str, lock_file: Path | None = None, **classifier: Any) -> int:
    config: dict[str, Any] = {"classifier": {"source": source, "positive": "POSITIVE", **classifier}}
    if lock_file:
        config["lock"] = str(lock_file)
    output = folder / "out/fetch/classifier/manifest.json"
    return main(["fetch", "--config", json.dumps(config), "--output", str(output)])


def test_what_was_saved_says_what_was_fitted(tmp_path: Path):
    """scikit-learn's own pipeline, fitted on the rows that are not held out, to 1e-12; every kept number counts."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression

    assert trained(tmp_path, LABELLED) == 0
    texts, labels = [row["text"] for row in LABELLED], np.array([row["label"] for row in LABELLED])
    held_out = [int(hashlib.sha256(f"0/{text}".encode()).hexdigest()[:16], 16) / 2**64 < 0.3 for text in texts]
    trained_on = [not out for out in held_out]
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    features = words.fit_transform([text for text, keep in zip(texts, trained_on, strict=True) if keep])
    peer = LogisticRegression(C=10, max_iter=1000, tol=1e-6).fit(features, labels[trained_on])
    texts_asked = [*texts, "a good story, a bad film", "great awful", "nothing known"]
    ours = load_classifier(read_manifest(tmp_path / "out/classifier/manifest.json"), CPU)
    wanted = peer.predict_proba(words.transform(texts_asked))[:, 1]
    assert np.abs(ours(texts_asked) - wanted).max() <= 1e-12
    assert ours(texts_asked)[-3:].round(2).tolist() != [0.5, 0.5, 0.5]

    weights = tmp_path / "out/classifier/model/model.safetensors"
    whole = load_file(weights)
    for name, values in whole.items():
        save_file({**whole, name: values + 0.1}, weights)
        changed = load_classifier(read_manifest(tmp_path / "out/classifier/manifest.json"), CPU)
        assert np.abs(changed(texts_asked) - wanted).max() > 1e-4, name


def test_training_twice_gives_equal_bytes(tmp_path: Path):
    manifests = []
    for folder in (tmp_path / "first", tmp_path / "second"):
        assert trained(folder, LABELLED) == 0
        manifests.append((folder / "out/classifier/manifest.json").read_bytes())
    assert json.loads(manifests[0])["files"] == json.loads(manifests[1])["files"]
    assert set(json.loads(manifests[0])["files"]) == {
        *("evaluation.json", "model/vocabulary.json", "model/model.safetensors")
    }


def test_copies_of_a_text_fall_to_one_side(tmp_path: Path):
    """Every text has its own word and occurs three times, once in capitals, once with more spaces."""
    rows = [
        {"text": text, "label": number % 2}
        for number in range(40)
        for text in (f"own{number} film", f"OWN{number} Film", f" own{number}   film\n")
    ]
    assert trained(tmp_path, rows) == 0
    folder = tmp_path / "out/classifier"
    vocabulary = json.loads((folder / "model/vocabulary.json").read_text())["vocabulary"]
    known = [word for word in vocabulary if word.startswith("own") and " " not in word]
    facts = json.loads((folder / "evaluation.json").read_text())
    assert (3 * len(known), 3 * (40 - len(known))) == (facts["train"], facts["held_out"])
    assert 0 < len(known) < 40


def test_evaluation_by_hand():
    """P 0.1, 0.2, 0.9, 0.7 of labels 0, 1, 1, 1: three of four right; every positive above the negative; the bins are
    off by 0.1, 0.8, 0.1 and 0.3, so 1.3 / 4. The log loss is -(ln 0.9 + ln 0.2 + ln 0.9 + ln 0.7) / 4."""
    scores, labels = np.array([0.1, 0.2, 0.9, 0.7]), np.array([0, 1, 1, 1])
    facts = evaluation(scores, labels, np.arange(4), "by hand")
    assert facts["accuracy"]["mean"] == 0.75 and facts["accuracy"]["low"] < 0.75 < facts["accuracy"]["high"]
    assert facts["auc"] == 1 and facts["positive"] == 0.75
    assert facts["calibration_error"] == pytest.approx(0.325, abs=1e-15)
    assert facts["log_loss"] == pytest.approx(-np.log([0.9, 0.2, 0.9, 0.7]).mean(), abs=1e-15)
    assert [one["n"] for one in facts["calibration"]] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"text": "a film", "label": -1}, "row 81: expected the label 0 or 1 (or neg, pos), got -1"),
        ({"text": "a film", "label": None}, "got null"),
        ({"text": "a film", "label": 0.5}, "got 0.5"),
        ({"review": "a film", "label": 1}, "row 81 has no text in `text` (its columns: review, label)"),
    ],
)
def test_a_row_without_text_or_label(
    row: dict[str, Any], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert trained(tmp_path, [*LABELLED, row]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "out/classifier/manifest.json").exists()


def test_labels_may_be_words_and_need_both_kinds(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """`neg` and `pos` give the same weights as 0 and 1; of one kind alone nothing is learnt."""
    assert trained(tmp_path / "numbers", LABELLED) == 0
    assert trained(tmp_path / "words", [{**row, "label": ("neg", "pos")[row["label"]]} for row in LABELLED]) == 0
    weights = [tmp_path / f"{name}/out/classifier/model/model.safetensors" for name in ("numbers", "words")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    assert trained(tmp_path / "one", [row for row in LABELLED if row["label"]]) == 2
    assert "have the same label" in capsys.readouterr().err


@pytest.mark.parametrize("labels", [("NEGATIVE", "POSITIVE"), ("POSITIVE", "NEUTRAL", "NEGATIVE")])
def test_a_fetched_classifier_says_of_a_batch_what_it_says_of_one(labels: tuple[str, ...], tmp_path: Path):
    """transformers' own model, a text at a time, without padding: to 1e-6, at any size of batches."""
    source = tiny_roberta(tmp_path / "raw", WORDS, labels)
    texts = ["good film", "a bad awful story " * 9, "the", "great", "a great good film " * 300, "bad bad bad"]
    model = AutoModelForSequenceClassification.from_pretrained(source).eval()
    tokenizer = AutoTokenizer.from_pretrained(source)
    wanted = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=512, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            wanted.append(model(ids).logits[0].double().softmax(-1)[labels.index("POSITIVE")].item())
    assert np.ptp(wanted) > 0.05, "texts differ"
    for tokens in (1, 100, 8192):
        assert fetch(tmp_path, str(source), tokens_per_batch=tokens) == 0
        ours = load_classifier(read_manifest(tmp_path / "out/fetch/classifier/manifest.json"), CPU)
        assert np.abs(ours(texts) - wanted).max() < 1e-6
        assert np.abs(ours(texts[::-1]) - wanted[::-1]).max() < 1e-6


def test_batches_are_sorted_and_full():
    """Longest first; 2 x 5 tokens, then 3 x 2, are within 10, 3 x 5 are not."""
    assert list(sorted_batches([2, 5, 1, 5, 2, 1], 10)) == [[1, 3], [0, 4, 2, 5]]
    assert list(sorted_batches([7, 3], 2)) == [[0], [1]]


def test_a_label_or_weights_that_are_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    source = tiny_roberta(tmp_path / "raw", WORDS)
    assert fetch(tmp_path, str(source), positive="LABEL_1") == 2
    assert f"classifier.positive: {source} has no label 'LABEL_1'; its labels are NEGATIVE, POSITIVE" in (
        capsys.readouterr().err
    )
    assert fetch(tmp_path, str(source), max_tokens=513) == 2
    assert "reads 512 tokens, not 513; lower it" in capsys.readouterr().err
    weights = load_file(source / "model.safetensors")
    del weights["classifier.dense.weight"]
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    assert fetch(tmp_path, str(source)) == 0
    with pytest.raises(UserError, match=r"its weights lack classifier.dense.weight \(1 missing\)"):
        load_classifier(read_manifest(tmp_path / "out/fetch/classifier/manifest.json"), CPU)


@pytest.fixture
def classifiers_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    folder = tiny_roberta(tmp_path / "raw", WORDS)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    with serving({("model", "some/classifier"): Repository(files, frozenset({"model.safetensors"}))}) as server:
        use_hub(monkeypatch, server.address, tmp_path)
        yield server


def test_from_the_hub_at_its_locked_commit(classifiers_hub: Hub, tmp_path: Path):
    """Locked as the suite's model and data are, fetched at that commit, and it scores as the folder does."""
    local = {"source": str(tmp_path), "train": "train.jsonl", "test": None, "world": None}
    section = {"source": "hub:some/classifier", "positive": "POSITIVE"}
    score = {"reward": "classifier", "bootstrap": 100}
    assert lock(tmp_path, data=local, classifier=section, score=score) == 0
    entries = json.loads((tmp_path / "configs/mini.lock.json").read_text())
    assert list(entries) == ["model some/classifier@main"] and entries["model some/classifier@main"]["commit"] == COMMIT
    assert fetch(tmp_path, "hub:some/classifier", tmp_path / "configs/mini.lock.json") == 0
    manifest = read_manifest(tmp_path / "out/fetch/classifier/manifest.json")
    assert manifest.content["facts"] == {"commit": COMMIT}
    from_hub = load_ground_truth("classifier", manifest.path, CPU)(["good film", "bad"])
    assert fetch(tmp_path, str(tmp_path / "raw")) == 0
    assert from_hub.tolist() == load_ground_truth("classifier", manifest.path, CPU)(["good film", "bad"]).tolist()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"score": ASKING}, "score.reward: `classifier`, so the section `classifier` must be there"),
        ({"pairs": ASKING}, "pairs.reward: `classifier`, so the section `classifier` must be there"),
        ({"classifier": {}}, "classifier: nothing reads it; say `reward: classifier` in score or pairs, or remove it"),
        ({"classifier": {}, "score": ASKING}, "data.labelled: missing; the classifier is trained on these rows"),
        ({"data": {"labelled": "a.jsonl"}}, "data.labelled: nothing reads it; a `classifier` with source `trained`"),
        ({"classifier": {"source": "some/folder"}}, "classifier.positive: missing; name the label of some/folder"),
        ({"classifier": {"positive": "POSITIVE"}}, "classifier.positive: read only of a fetched classifier"),
        (
            {"classifier": {"source": "a", "positive": "b", "tfidf": {"ngrams": 1}}},
            "classifier.tfidf: read only with source `trained`",
        ),
        ({"data": {"replace": {"": "x"}}}, "data.replace: an empty text matches everywhere"),
    ],
)
def test_mistakes_are_found_before_anything_runs(changes: dict[str, Any], sentence: str, tmp_path: Path):
    path = tmp_path / "mini.yaml"
    path.write_text(yaml.safe_dump(merge(yaml.safe_load(MINI), changes)))
    with pytest.raises(UserError) as mistake:
        read_suite([str(path)])
    assert str(mistake.value).startswith(f"{path}: {sentence}")


def test_the_ground_truth_is_one_function(tmp_path: Path):
    texts = ["a great good film", "an awful story"]
    assert load_ground_truth("vader", None, CPU)(texts).tolist() == vader(texts).tolist()
    with pytest.raises(UserError, match="give its manifest as --classifier"):
        load_ground_truth("classifier", None, CPU)
    assert Classifier().is_trained and not Classifier(source="a", positive="b").is_trained
