"""Text classifiers as ground truth: how they are kept without pickle, loaded, and asked for P(positive).

A trained one is logistic regression on TF-IDF: `model/vocabulary.json` (n-gram -> column, and how texts are cut) and
`model/model.safetensors` (float64: idf [F], coefficients [F], intercept [1]).
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from prefdag.config.classifier import TfIdf

VOCABULARY, WEIGHTS = "vocabulary.json", "model.safetensors"
Scorer = Callable[[Sequence[str]], NDArray[np.float64]]  # texts to a number each: [N]


def vectorizer(tfidf: TfIdf, vocabulary: dict[str, int] | None = None) -> TfidfVectorizer:
    """Lower-cased words of two characters and more, their n-grams, rows of length 1."""
    limits = {} if vocabulary else {"min_df": tfidf.min_df, "max_features": tfidf.max_features}
    return TfidfVectorizer(
        ngram_range=(1, tfidf.ngrams), sublinear_tf=tfidf.sublinear_tf, vocabulary=vocabulary, **limits
    )


def save_trained(folder: Path, tfidf: TfIdf, words: TfidfVectorizer, regression: LogisticRegression) -> None:
    """Write a fitted pair of the two; equal fits give equal bytes."""
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


def load_classifier(manifest: Path) -> Scorer:
    """The classifier beside a manifest."""
    return load_trained(manifest.parent / "model")
