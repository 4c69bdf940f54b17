"""Words of chosen and rejected responses: which ones distinguish the two, and a map of the texts.

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

from prefdag.evaluation.calibration import resample_prompts

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
MOST_WORDS = 50_000
PRIOR = 500.0  # words


def words(text: str) -> list[str]:
    """Return the runs of letters of a text in lower case, with apostrophes inside a word."""
    return WORD.findall(text.lower())


def count_words(texts: Sequence[str]) -> tuple[np.ndarray, Any]:
    """Return the sorted words of `texts` [V] and their counts per text, sparse [N, V]; [0] and None without words."""
    if not any(map(words, texts)):
        return np.array([]), None
    vectorizer = CountVectorizer(analyzer=words, max_features=MOST_WORDS)
    counts = vectorizer.fit_transform(texts)
    return vectorizer.get_feature_names_out(), counts


def log_odds(chosen, rejected, *, prior: float = PRIOR) -> pd.DataFrame:
    """Return each word's log-odds ratio between chosen and rejected texts, with an informative Dirichlet prior.

    The prior shrinks the ratios of rare words towards 0.

    Args:
        chosen: Word counts of the chosen texts [V].
        rejected: Word counts of the rejected texts [V].
        prior: The prior's size in words, which have the rates of both sides together.

    Returns:
        Columns delta (above 0: more frequent in chosen texts) and z = delta / standard deviation.

    Reference: Monroe, Colaresi and Quinn 2008, eqs. 16, 20 and 22.
    """
    first, second = (np.asarray(counts, dtype=float) for counts in (chosen, rejected))
    pseudo = prior * (first + second) / (first + second).sum()
    delta = _log_odds(first, first.sum(), pseudo, prior) - _log_odds(second, second.sum(), pseudo, prior)
    return pd.DataFrame({"delta": delta, "z": delta / np.sqrt(1 / (first + pseudo) + 1 / (second + pseudo))})


def _log_odds(counts: np.ndarray, total, pseudo: np.ndarray, prior: float) -> np.ndarray:
    return np.log(counts + pseudo) - np.log(total + prior - counts - pseudo)


def distinctive_words(chosen: Sequence[str], rejected: Sequence[str], prompts, *, number: int = 12) -> pd.DataFrame:
    """Return the words of largest z on either side, the chosen texts' first; see `log_odds`.

    Args:
        chosen: Texts [N].
        rejected: Texts [N].
        prompts: The prompt of each pair [N].
        number: Words per side.

    Returns:
        Columns word, delta, low, high (95% interval over prompts), z, chosen, rejected (counts).
    """
    names, counts = count_words([*chosen, *rejected])
    if not len(names):
        return pd.DataFrame()
    sides = [np.asarray(part.sum(0)).ravel() for part in (counts[: len(chosen)], counts[len(chosen) :])]
    if not all(side.sum() for side in sides):
        return pd.DataFrame()
    table = log_odds(*sides).assign(word=names, chosen=sides[0], rejected=sides[1])
    ranked = table.sort_values(["z", "word"], ascending=[False, True], kind="stable")
    best = pd.concat([ranked[ranked["z"] > 0].head(number), ranked[ranked["z"] < 0].tail(number)])
    groups, owner = np.unique(np.asarray(prompts), return_inverse=True)
    weights = resample_prompts(len(groups), seed="words", bootstrap=400)
    pseudo = PRIOR * (best["chosen"] + best["rejected"]).to_numpy(float) / (sides[0].sum() + sides[1].sum())
    samples = []
    for part in (counts[: len(chosen)], counts[len(chosen) :]):
        occurrences, total = part[:, best.index].toarray(), np.asarray(part.sum(1)).ravel()
        by_prompt = np.zeros((len(groups), len(best)))
        np.add.at(by_prompt, owner, occurrences)
        resampled = (weights @ np.bincount(owner, total))[:, None]
        samples.append(_log_odds(weights @ by_prompt, resampled, pseudo, PRIOR))
    low, high = np.quantile(samples[0] - samples[1], [0.025, 0.975], axis=0)
    return best.assign(low=low, high=high).reset_index(drop=True)


def text_map(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the first two principal components of the texts' TF-IDF vectors [N, 2] and their shares of variance [2].

    None for too few texts, or texts without variance.
    """
    names, counts = count_words(texts)
    if min(len(names), len(texts)) < 4:
        return None
    vectors = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    with threadpool_limits(limits=1):  # the order of BLAS's sums depends on the number of threads
        analysis = PCA(2, svd_solver="arpack", random_state=0)
        points = analysis.fit_transform(vectors)
    share = analysis.explained_variance_ratio_
    return (points, share) if np.isfinite(share).all() and share.all() else None
