"""Text classifiers as ground truth: save them without pickle, load them, compute P(positive).

A fetched one is a sequence classifier of transformers. A trained one is logistic regression on TF-IDF:
`vocabulary.json` (n-gram -> column, and how texts are cut) and
`model.safetensors` (float64: idf [F], coefficients [F], intercept [1]).
"""

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from prefdag.config.classifier import Classifier, TfIdf
from prefdag.errors import UserError
from prefdag.provenance.manifest import Manifest

VOCABULARY, WEIGHTS = "vocabulary.json", "model.safetensors"
Scorer = Callable[[Sequence[str]], NDArray[np.float64]]  # texts to a number each: [N]


def vectorizer(tfidf: TfIdf, vocabulary: dict[str, int] | None = None) -> TfidfVectorizer:
    """Lower-cased words of two characters and more, their n-grams, rows of length 1."""
    limits = {} if vocabulary else {"min_df": tfidf.min_df, "max_features": tfidf.max_features}
    return TfidfVectorizer(
        ngram_range=(1, tfidf.ngrams), sublinear_tf=tfidf.sublinear_tf, vocabulary=vocabulary, **limits
    )


def save_trained(folder: Path, tfidf: TfIdf, words: TfidfVectorizer, regression: LogisticRegression) -> None:
    """Write a fitted vectorizer and regression; equal fits give equal bytes."""
    folder.mkdir()
    about = {"tfidf": tfidf.model_dump(mode="json"), "vocabulary": {k: int(v) for k, v in words.vocabulary_.items()}}
    text = json.dumps(about, ensure_ascii=False, sort_keys=True)
    (folder / VOCABULARY).write_text(text + "\n", encoding="utf-8")
    weights = {"idf": words.idf_, "coefficients": regression.coef_[0], "intercept": regression.intercept_}
    save_file({name: np.ascontiguousarray(value, np.float64) for name, value in weights.items()}, folder / WEIGHTS)


def load_trained(folder: Path) -> Scorer:
    """P(label 1) of texts, as the fitted pair's own `predict_proba` gives it."""
    about = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
    words = vectorizer(TfIdf.model_validate(about["tfidf"]), about["vocabulary"])
    weights = load_file(folder / WEIGHTS)
    words.idf_ = weights["idf"]
    regression = LogisticRegression()
    regression.classes_ = np.array([0, 1])
    regression.coef_, regression.intercept_ = weights["coefficients"][None, :], weights["intercept"]

    def scorer(texts: Sequence[str]) -> NDArray[np.float64]:
        return regression.predict_proba(words.transform(texts))[:, 1] if len(texts) else np.zeros(0)

    return scorer


def load_fetched(folder: Path, settings: Classifier, device: torch.device) -> Scorer:
    """P(positive) of texts by a sequence classifier: softmax of its logits, in float64.

    Raises `UserError` for a folder that holds no such model, or one without all of its weights.
    """
    try:
        model, report = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{folder}: no sequence classifier can be loaded from it ({first})") from None
    if lacking := sorted(report["missing_keys"]):  # transformers draws what a file lacks at random, and only warns
        raise UserError(f"{folder}: its weights lack {lacking[0]} ({len(lacking)} missing); take a complete classifier")
    column = [model.config.id2label[index] for index in range(model.config.num_labels)].index(settings.positive)
    model.to(device).eval()

    @torch.no_grad()
    def scorer(texts: Sequence[str]) -> NDArray[np.float64]:
        encoded = [
            tokenizer(text, truncation=True, max_length=settings.max_tokens, return_attention_mask=False)["input_ids"]
            for text in texts
        ]
        probabilities = np.zeros(len(texts))
        for ids in sorted_batches([len(one) for one in encoded], settings.tokens_per_batch):
            batch = tokenizer.pad({"input_ids": [encoded[index] for index in ids]}, return_tensors="pt").to(device)
            probabilities[ids] = model(**batch).logits.double().softmax(-1)[:, column].cpu().numpy()
        return probabilities

    return scorer


def sorted_batches(lengths: Sequence[int], tokens_per_batch: int) -> Iterator[list[int]]:
    """Indices in batches of like length, the longest first, each of at most `tokens_per_batch` padded tokens."""
    batch: list[int] = []
    for index in np.argsort(-np.asarray(lengths, dtype=np.int64), kind="stable").tolist():
        if batch and (len(batch) + 1) * lengths[batch[0]] > tokens_per_batch:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def load_classifier(manifest: Manifest, device: torch.device) -> Scorer:
    """Load the classifier in a manifest's folder, from the stage `classifier` or from `fetch`."""
    folder = manifest.folder / "model"
    if manifest.content["stage"] == "classifier":
        return load_trained(folder)
    settings = Classifier.parse(manifest.content["config"]["classifier"], str(manifest.path), "config.classifier")
    return load_fetched(folder, settings, device)
