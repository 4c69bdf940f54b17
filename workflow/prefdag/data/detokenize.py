"""Decode token ids to text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def decode_response(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], response: Sequence[int]
) -> tuple[str, str]:
    """Return the text of a prompt and of the response after it, without special tokens.

    Both are decoded together and the prompt is cut off: some tokenizers drop a space at the beginning of a text.
    """
    before, whole, alone = (
        str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in (prompt, [*prompt, *response], response)
    )
    if whole.startswith(before):
        return before, whole[len(before) :]
    return before, alone
