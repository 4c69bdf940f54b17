"""A local model as a judge: its log-odds of two answers, from the log-probs of A and B after a judge's question."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prefdag.config.model_folder import positions_of
from prefdag.data.token_store import Comparison
from prefdag.data.tokenization import encode_texts, load_tokenizer
from prefdag.errors import UserError
from prefdag.evaluation.judge.prompts import render_question
from prefdag.evaluation.judge.run import Pair
from prefdag.models.loading import load_policy, set_up
from prefdag.models.logprobs import logprobs
from prefdag.rewards.evaluation import score_all

TOKENS_PER_BATCH = 2048


def log_odds(
    pairs: Sequence[Pair], template: str, folder: Path, threads: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return log P(ours) - log P(theirs) with ours shown first, and with ours shown second, [N] each.

    Args:
        pairs: N pairs of answers.
        template: a judge's prompt, whose last line is the form of the verdict, such as `Preferred: <A or B>`.
        folder: of the model and its tokenizer; an adapter is merged into its base.
        threads: of torch.

    Raises:
        UserError: the folder holds no model, the template has no form of a verdict, or a question is too long.
    """
    if not (folder / "config.json").is_file():
        raise UserError(f"ask: {folder} holds no config.json; name the folder of a model and its tokenizer")
    tokenizer = load_tokenizer(folder)
    texts = [
        _question(tokenizer, template, pair.prompt, *answers)
        for pair in pairs
        for answers in ((pair.ours, pair.theirs), (pair.theirs, pair.ours))
    ]
    letters = tuple(np.array(ids, dtype=np.int32) for ids in encode_texts(tokenizer, [" A", " B"]))
    questions = [Comparison(np.array(ids, dtype=np.int32), letters) for ids in encode_texts(tokenizer, texts)]
    device = set_up(threads)
    model = load_policy(folder, device).eval()
    longest = max(len(one.prompt) + max(map(len, letters)) for one in questions)
    context = positions_of(model.config.to_dict())
    if context is not None and longest > context:
        raise UserError(
            f"ask: the longest question has {longest:,} tokens, beyond the context of {context:,} of the model in "
            f"{folder}; ask a model of a longer one, or about shorter pairs"
        )
    values = score_all(lambda segments: logprobs(model, segments).total, questions, TOKENS_PER_BATCH, device)
    of_a = (values[:, 0] - values[:, 1]).astype(np.float64)
    return of_a[::2], -of_a[1::2]


def _question(tokenizer: PreTrainedTokenizerBase, template: str, prompt: str, first: str, second: str) -> str:
    """Return the text up to the letter of the verdict, in the tokenizer's chat template if it has one."""
    label, colon, _ = template.rpartition("\n")[2].partition(":")
    if not colon:
        raise UserError("ask: the prompt's last line is not the form of a verdict; end it with `Preferred: <A or B>`")
    post = prompt.rstrip().removesuffix("TL;DR:").rstrip()
    question = render_question(template, post, first, second)
    if not tokenizer.chat_template:
        return f"{question}\n\n{label}:"
    turns = [{"role": "user", "content": question}]
    opened = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return f"{opened}{label}:"
