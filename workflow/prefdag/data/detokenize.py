"""From token ids back to text."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase


def decode_response(
    tokenizer: PreTrainedTokenizerBase, prompt: Sequence[int], response: Sequence[int]
) -> tuple[str, str]:
    """The text of a prompt and of the response after it, special tokens left out.

    The response is cut from the text of both: some tokenizers drop the space before what they decode first.
    """
    before, whole, alone = (
        str(tokenizer.decode(list(ids), skip_special_tokens=True)) for ids in (prompt, [*prompt, *response], response)
    )
    if whole.startswith(before):
        return before, whole[len(before) :]
    return before, alone
