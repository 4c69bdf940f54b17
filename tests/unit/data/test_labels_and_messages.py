"""Labels of every type and messages of every form: the right comparison, or the reason why a row is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from prefdag.data.adapters.records import Unusable
from prefdag.data.adapters.registry import adapter_of
from prefdag.data.token_store import Store
from preparing import audit, byte_tokenizer, fetch, prepare, write_rows

ASK, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "q"), ("assistant", "a"), ("assistant", "b"))
)
SYSTEM = {"role": "system", "content": "s"}
SHP = {"history": "q", "human_ref_A": "A", "human_ref_B": "B"}
SAFE = {"prompt": "q", "response_0": "zero", "response_1": "one"}
ALIGNED = {"question": "q", "response_1": "one", "response_2": "two"}


def best(adapter: str, row: dict[str, Any]) -> str:
    return adapter_of(adapter)(row).responses[0]


@pytest.mark.parametrize("label", [1, 1.0, "1", " 1 ", "1.0", True, "True", "true"])
def test_one_and_true_are_one_label(label: Any):
    """It is the first response of SHP, the second of SafeRLHF, and a good one of labelled rows."""
    assert best("shp", {**SHP, "labels": label}) == "A"
    assert best("saferlhf-better", {**SAFE, "better_response_id": label}) == "one"
    assert adapter_of("labelled")({"prompt": "q", "completion": "a", "label": label}).scores == (1.0,)


@pytest.mark.parametrize("label", [0, 0.0, "0", "0.0", False, "FALSE"])
def test_zero_and_false_are_one_label(label: Any):
    assert best("shp", {**SHP, "labels": label}) == "B"
    assert best("saferlhf-safer", {**SAFE, "safer_response_id": label}) == "zero"
    assert adapter_of("labelled")({"prompt": "q", "completion": "a", "label": label}).scores == (0.0,)


@pytest.mark.parametrize("label", [2, "2", 0.5, float("nan"), "A", None, "", [1]])
def test_other_labels_are_refused_with_their_value(label: Any):
    for adapter, row in (
        ("shp", {**SHP, "labels": label}),
        ("labelled", {"prompt": "q", "response": "a", "label": label}),
    ):
        with pytest.raises(Unusable) as error:
            adapter_of(adapter)(row)
        assert str(error.value) == f"label {label!r}"


@pytest.mark.parametrize("label", [2, 2.0, "2", "2.0"])
def test_labels_from_one_on(label: Any):
    assert best("align-anything", {**ALIGNED, "overall_response": label}) == "two"


def test_scores_may_be_text():
    entries = [{"response": "a", "overall_score": "3.0"}, {"response": "b", "overall_score": " 8.5"}]
    assert adapter_of("ultrafeedback")({"instruction": "q", "completions": entries}).scores == (8.5, 3.0)


@pytest.mark.parametrize("names", [("score_chosen", "score_rejected"), ("chosen-rating", "rejected-rating")])
def test_stated_scores_are_kept_and_ties_refused(names: tuple[str, str]):
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    assert adapter_of("pairs")({**row, **dict(zip(names, ("9", 2)))}).scores == (9.0, 2.0)
    assert adapter_of("pairs")({**row, **dict(zip(names, (None, None)))}).scores is None
    for scores, reason in (((8.0, 8), "tie"), ((8.0, None), f"`{names[0]}` and `{names[1]}` holds None")):
        with pytest.raises(Unusable, match=reason):
            adapter_of("pairs")({**row, **dict(zip(names, scores))})


QUESTION = (("user", "q"),)


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected", "expected"),
    [
        ([SYSTEM, ASK], [ASK, YES], [ASK, NO], (("system", "s"), *QUESTION)),
        ([ASK], [SYSTEM, ASK, YES], [SYSTEM, ASK, NO], (("system", "s"), *QUESTION)),
        ([SYSTEM, ASK], [SYSTEM, ASK, YES], [SYSTEM, ASK, NO], (("system", "s"), *QUESTION)),
        ([SYSTEM], [ASK, YES], [ASK, NO], (("system", "s"), *QUESTION)),
        ("q", [SYSTEM, YES], [SYSTEM, NO], (("system", "s"), *QUESTION)),
        ("q", YES, NO, QUESTION),
        (None, json.dumps([ASK, YES]), json.dumps([ASK, NO]), QUESTION),
        (None, str([ASK, YES]), str([ASK, NO]), QUESTION),
        (json.dumps([ASK]), "a", "b", QUESTION),
        ([{"role": "USER", "content": [{"type": "text", "text": "q"}]}], "a", "b", QUESTION),
        ([{"from": "Human", "value": "q"}], "a", "b", QUESTION),
        (
            [ASK, {"role": "Bot", "content": "So: "}],
            [{"role": "assistant", "content": "So: a"}],
            [{"role": "assistant", "content": "So: b"}],
            (*QUESTION, ("assistant", "So: ")),
        ),
    ],
)
def test_prompt_and_responses_are_one_dialogue(prompt: Any, chosen: Any, rejected: Any, expected: Any):
    row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
    comparison = adapter_of("pairs")({key: value for key, value in row.items() if value is not None})
    assert (comparison.prompt, comparison.responses) == (expected, ("a", "b"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "no prompt"),
        ({"prompt": [ASK], "chosen": [{**ASK, "content": "x"}, YES], "rejected": [ASK, NO]}, "`prompt` is not in the"),
        ({"prompt": "other", "chosen": [ASK, YES], "rejected": [ASK, NO]}, "`prompt` is not in the messages of"),
        (
            {"prompt": [SYSTEM, ASK], "chosen": [{**SYSTEM, "content": "t"}, ASK, YES], "rejected": [NO]},
            "the system turn",
        ),
        ({"prompt": [{"role": "narrator", "content": "q"}], "chosen": "a", "rejected": "b"}, "role 'narrator'"),
        ({"prompt": '[{"role": "user", "content": ', "chosen": "a", "rejected": "b"}, "`prompt` looks like messages"),
        ({"prompt": "q", "chosen": ["a", "c"], "rejected": ["b"]}, "`chosen` is a list of texts; name it `responses`"),
        ({"prompt": "q", "chosen": [{**YES, "weight": 0}], "rejected": [NO]}, "the last turn is not to be trained on"),
        ({"promt": "q", "Chosen": "a"}, "no field `chosen`; the row has promt, Chosen; the nearest is `Chosen`"),
        ({"prompt": [{"role": "user", "content": [{"type": "image"}]}], "chosen": "a", "rejected": "b"}, "not text"),
    ],
)
def test_what_is_no_dialogue_is_refused(row: dict[str, Any], reason: str):
    with pytest.raises(Unusable, match=reason):
        adapter_of("pairs")(row)


@pytest.mark.parametrize("adapter", ["labelled", "demonstrations"])
def test_completions_may_be_messages(adapter: str):
    comparison = adapter_of(adapter)({"prompt": [SYSTEM, ASK], "completion": [YES], "label": "1"})
    assert (comparison.prompt, comparison.responses) == ((("system", "s"), *QUESTION), ("a",))


def test_a_row_that_breaks_an_adapter_is_counted(tmp_path: Path):
    rows = [{"subreddit": "r", "title": "t", "post": "p", "summary": f"s{n}"} for n in range(2)]
    rows.append({"prompt": "q", "summaries": None})  # type: ignore[dict-item]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "rows.jsonl", rows))}) == 0
    code, folder = prepare(tmp_path, dataset="demonstrations", adapter="tldr", template="tldr")
    ((reason, entry),) = audit(folder)["dropped"].items()
    assert (code, reason[:31], entry["rows"]) == (0, "not a row of this adapter (Type", [2])


def test_turns_of_weight_0_are_not_trained_on(tmp_path: Path):
    bad, good = {**YES, "content": "bad", "weight": 0}, {**YES, "content": "good", "weight": 1}
    rows = [{"messages": [{**ASK, "content": str(n)}, bad, ASK, good, ASK, YES]} for n in range(3)]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "rows.jsonl", rows))}) == 0
    code, folder = prepare(tmp_path, dataset="demonstrations", adapter="demonstrations", counted="all")
    texts = [byte_tokenizer().decode(one.responses[0]) for one in Store.open(folder / "train")]
    assert (code, texts) == (0, [" good<e>", " a<e>"] * 3)


def test_hh_without_its_first_blank_lines_is_a_transcript():
    row = {side: f"Human: Hi\n\nAssistant: {side}" for side in ("chosen", "rejected")}
    assert adapter_of("hh")(row).prompt == "\n\nHuman: Hi\n\nAssistant:"


@pytest.mark.parametrize(
    ("first", "second", "reason"),
    [(True, True, "both responses are safe"), (False, False, "no response is safe"), (1, False, "not true or false")],
)
def test_pairs_without_one_safe_response_are_left_out(first: Any, second: Any, reason: str):
    row = {**SAFE, "is_response_0_safe": first, "is_response_1_safe": second}
    with pytest.raises(Unusable, match=reason):
        adapter_of("saferlhf-one-safe")(row)
    assert best("saferlhf-one-safe", {**row, "is_response_0_safe": True, "is_response_1_safe": False}) == "zero"
