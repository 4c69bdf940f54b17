"""Train a ground-truth classifier: TF-IDF and logistic regression on labelled rows, evaluated on held-out texts."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from threadpoolctl import threadpool_limits

from prefdag.config.classifier import Classifier
from prefdag.data.rows import read_rows
from prefdag.errors import UserError
from prefdag.evaluation.bootstrap import summarise
from prefdag.rewards.classifier import load_trained, save_trained, vectorizer
from prefdag.runtime.stage import Workspace
from prefdag.schema import Section

LABELS = {0: 0, 1: 1, "0": 0, "1": 1, "neg": 0, "pos": 1, "negative": 0, "positive": 1}  # true and false equal 1 and 0
BINS = 10  # of the calibration table, of equal width


class Job(Section):
    classifier: Classifier


def run(job: Job, workspace: Workspace, *, data: Path) -> dict[str, Any]:
    """Fit on the rows of the labelled split, and evaluate on a held-out share of its texts."""
    settings = job.classifier
    texts, labels = labelled_rows(data.parent / "labelled.jsonl")
    places = np.array([_place(settings.seed, text) for text in texts])
    held_out = places < settings.tfidf.held_out
    trained_on = [text for text, out in zip(texts, held_out, strict=True) if not out]
    _check_both(labels[~held_out], labels[held_out])
    # Sums in BLAS depend on the number of threads; one thread gives the same bytes with the same libraries.
    with threadpool_limits(1):
        words = vectorizer(settings.tfidf)
        features = words.fit_transform(trained_on)
        regression = LogisticRegression(
            C=settings.tfidf.inverse_regularisation, max_iter=settings.tfidf.max_iterations, tol=1e-6
        ).fit(features, labels[~held_out])
        save_trained(workspace.output / "model", settings.tfidf, words, regression)
        unseen = [text for text, out in zip(texts, held_out, strict=True) if out]
        predicted = load_trained(workspace.output / "model")(unseen)
    workspace.log_model_output("classifier")
    facts: dict[str, Any] = {
        "train": len(trained_on),
        "features": features.shape[1],
        "iterations": int(regression.n_iter_[0]),
    }
    facts |= evaluation(predicted, labels[held_out], places[held_out], f"classifier {settings.seed}")
    (workspace.output / "evaluation.json").write_text(json.dumps(facts, indent=1, sort_keys=True) + "\n")
    workspace.journal.artifact(workspace.output / "evaluation.json", "evaluation.json")
    accuracy = facts.pop("accuracy")
    del facts["calibration"]
    facts |= {"accuracy": accuracy["mean"], "accuracy_low": accuracy["low"], "accuracy_high": accuracy["high"]}
    workspace.results(facts)
    print(f"classifier: accuracy {facts['accuracy']:.4f} on {facts['held_out']} held-out rows", flush=True)
    return facts


def labelled_rows(path: Path) -> tuple[list[str], NDArray[np.int64]]:
    """Return texts and labels (0 or 1) of rows. Raises `UserError` for a row without one of them."""
    texts, labels = [], []
    for number, row in enumerate(read_rows(path), 1):
        if not isinstance(row.get("text"), str):
            known = ", ".join(row)
            raise UserError(
                f"data.labelled: row {number} has no text in `text` (its columns: {known}); name it in data.columns"
            )
        label = row.get("label")
        if not isinstance(label, int | str) or label not in LABELS:
            raise UserError(
                f"data.labelled: row {number}: expected the label 0 or 1 (or neg, pos), got {json.dumps(label)}; "
                "remove the row or name another column in data.columns"
            )
        texts.append(row["text"])
        labels.append(LABELS[label])
    return texts, np.array(labels, dtype=np.int64)


def _place(seed: int, text: str) -> float:
    """Hash a text to [0, 1), ignoring case and spaces, so that texts that differ in them are on the same side."""
    normalised = f"{seed}/{' '.join(text.split()).casefold()}".encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.sha256(normalised).digest()[:8], "big") / 2**64


def _check_both(train: NDArray[np.int64], held_out: NDArray[np.int64]) -> None:
    for use, labels in (("to train on", train), ("held out", held_out)):
        if len(np.unique(labels)) < 2:
            raise UserError(
                f"data.labelled: all {len(labels)} rows {use} have the same label; add rows of both labels, "
                "or change classifier.tfidf.held_out"
            )


def evaluation(
    predicted: NDArray[np.float64], labels: NDArray[np.int64], texts: NDArray[Any], seed: str
) -> dict[str, Any]:
    """Evaluate predicted probabilities.

    Args:
        predicted: probability of the positive label, [N].
        labels: 0 or 1, [N].
        texts: values that are equal for equal texts, [N]; the interval of the accuracy resamples texts.
        seed: name of the random stream of the bootstrap.

    Returns:
        Accuracy at 0.5 with its interval, area under the ROC curve, log loss, and the calibration table with its
        error: the mean over rows of |mean P - share positive| of the row's bin.

    Reference: Naeini et al. 2015 (expected calibration error).
    """
    right = (predicted > 0.5) == (labels == 1)
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1)
    table = [
        {
            "low": number / BINS,
            "predicted": float(predicted[bins == number].mean()),
            "positive": float(labels[bins == number].mean()),
            "n": int((bins == number).sum()),
        }
        for number in np.unique(bins).tolist()
    ]
    error = sum(one["n"] * abs(one["predicted"] - one["positive"]) for one in table) / len(predicted)
    return {
        "accuracy": summarise(right, texts, seed=seed).to_dict(),
        "auc": float(roc_auc_score(labels, predicted)),
        "log_loss": float(log_loss(labels, predicted)),
        "calibration_error": float(error),
        "calibration": table,
        "held_out": len(predicted),
        "positive": float(labels.mean()),
    }
