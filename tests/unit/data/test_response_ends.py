"""A response is counted with exactly one end-of-turn, and texts get no token that the tokenizer adds by itself."""

import pytest

from prefdag.data.adapters.records import Unusable
from prefdag.data.tokenization import encode_texts, end_response

END = [9]


def test_a_response_ends_once() -> None:
    assert end_response([1, 2], END, writes_end_of_turn=False) == [1, 2, 9]
    assert end_response([1, 2], [], writes_end_of_turn=False) == [1, 2]
    assert end_response([1, 2, 9, 3, 9], END, writes_end_of_turn=True) == [1, 2, 9]


def test_an_end_of_turn_in_the_text_is_refused() -> None:
    with pytest.raises(Unusable, match="an end-of-turn in the text"):
        end_response([1, 9, 2], END, writes_end_of_turn=False)


def test_no_special_token_is_added() -> None:
    def tokenizer(texts: list[str], add_special_tokens: bool = True) -> dict[str, list[list[int]]]:
        return {"input_ids": [[0] * add_special_tokens + [len(text)] for text in texts]}

    assert encode_texts(tokenizer, ["one", "three"]) == [[3], [5]]  # type: ignore[arg-type]
    assert encode_texts(tokenizer, []) == []  # type: ignore[arg-type]
