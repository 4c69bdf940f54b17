"""The words of chosen and rejected responses: what tells them apart, and a map of the texts.

Shapes: N texts, V words, G prompts.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer, TfidfTransformer
from threadpoolctl import threadpool_limits

from prefdag.evaluation.calibration import prompt_weights

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
MOST_WORDS = 50_000
PRIOR = 500.0  # words


def words(text: str) -> list[str]:
    """Runs of letters in lower case, an apostrophe inside one kept."""
    return WORD.findall(text.lower())


def counted(texts: Sequence[str]) -> tuple[np.ndarray, Any]:
    """The words of `texts`, sorted, and how often each text has each: [V] and sparse [N, V]; no word at all: [0]."""
    if not any(map(words, texts)):
        return np.array([]), None
    vectorizer = CountVectorizer(analyzer=words, max_features=MOST_WORDS)
    counts = vectorizer.fit_transform(texts)
    return vectorizer.get_feature_names_out(), counts


def log_odds(chosen, rejected, *, prior: float = PRIOR) -> pd.DataFrame:
    """Log-odds ratio of each word's rate in chosen and rejected texts, counts [V], with an informative Dirichlet prior.

    Monroe, Colaresi and Quinn 2008, eqs. 16, 20 and 22: the prior is `prior` words with the rates of both sides
    together, so that rare words are drawn to 0. Columns delta (above 0: chosen's) and z = delta / its deviation, words
    taken as independent draws.
    """
    first, second = (np.asarray(counts, dtype=float) for counts in (chosen, rejected))
    pseudo = prior * (first + second) / (first + second).sum()
    delta = _log_odds(first, first.sum(), pseudo, prior) - _log_odds(second, second.sum(), pseudo, prior)
    return pd.DataFrame({"delta": delta, "z": delta / np.sqrt(1 / (first + pseudo) + 1 / (second + pseudo))})


def _log_odds(counts: np.ndarray, total, pseudo: np.ndarray, prior: float) -> np.ndarray:
    return np.log(counts + pseudo) - np.log(total + prior - counts - pseudo)


def telling_words(chosen: Sequence[str], rejected: Sequence[str], prompts, *, number: int = 12) -> pd.DataFrame:
    """The `number` words of largest z on either side, chosen's first; see `log_odds`.

    chosen, rejected, prompts: [N]. Columns word, delta, low, high (95%, over prompts), z, chosen, rejected (counts).
    """
    names, counts = counted([*chosen, *rejected])
    if not len(names):
        return pd.DataFrame()
    sides = [np.asarray(part.sum(0)).ravel() for part in (counts[: len(chosen)], counts[len(chosen) :])]
    if not all(side.sum() for side in sides):
        return pd.DataFrame()
    table = log_odds(*sides).assign(word=names, chosen=sides[0], rejected=sides[1])
    ranked = table.sort_values(["z", "word"], ascending=[False, True], kind="stable")
    best = pd.concat([ranked[ranked["z"] > 0].head(number), ranked[ranked["z"] < 0].tail(number)])
    groups, owner = np.unique(np.asarray(prompts), return_inverse=True)
    weights = prompt_weights(len(groups), seed="words", bootstrap=400)
    pseudo = PRIOR * (best["chosen"] + best["rejected"]).to_numpy(float) / (sides[0].sum() + sides[1].sum())
    drawn = []
    for part in (counts[: len(chosen)], counts[len(chosen) :]):
        shown, total = part[:, best.index].toarray(), np.asarray(part.sum(1)).ravel()
        by_prompt = np.zeros((len(groups), len(best)))
        np.add.at(by_prompt, owner, shown)
        resampled = (weights @ np.bincount(owner, total))[:, None]
        drawn.append(_log_odds(weights @ by_prompt, resampled, pseudo, PRIOR))
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975], axis=0)
    return best.assign(low=low, high=high).reset_index(drop=True)


def text_map(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """First two principal components of the texts' TF-IDF vectors: [N, 2], and the share of variance of each [2].

    None for texts too few or too alike. One thread: BLAS then adds in one order.
    """
    names, counts = counted(texts)
    if min(len(names), len(texts)) < 4:
        return None
    vectors = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    with threadpool_limits(limits=1):
        analysis = PCA(2, svd_solver="arpack", random_state=0)
        points = analysis.fit_transform(vectors)
    share = analysis.explained_variance_ratio_
    return (points, share) if np.isfinite(share).all() and share.all() else None
