"""Adapters: rows of each shape, the comparisons that they give, and the reasons for refusing a row."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MINI, ROOT
from prefdag.config.adapters import ADAPTERS as NAMES
from prefdag.config.adapters import AdapterInfo, declared_adapters
from prefdag.config.data import Data
from prefdag.config.loading import merge
from prefdag.config.suite import resolve
from prefdag.data.adapters.records import TextComparison, Unusable
from prefdag.data.adapters.registry import ADAPTERS, adapter_of
from prefdag.data.mixture import rows_per_source
from prefdag.data.rows import read_rows
from prefdag.data.token_store import Store
from prefdag.errors import UserError
from preparing import audit, fetch, prepare, write_rows

USER, REPLY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
LAST = [{"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}]
POST = {"subreddit": "r/x", "title": "t", "post": "p"}
JUDGED = {"query": "q", "postprocessed_response": " mine", "reference_responses": " theirs", "preferred": "reference"}
DIALOGUE = (("user", "q"), ("assistant", "a"), ("user", "q"))
ROWS: list[tuple[str, dict[str, Any], TextComparison]] = [
    ("pairs", {"prompt": "q", "chosen": "good", "rejected": "bad"}, TextComparison("q", ("good", "bad"))),
    (
        "pairs",
        {"chosen": [USER, REPLY, USER, LAST[0]], "rejected": [USER, REPLY, USER, LAST[1]]},
        TextComparison(DIALOGUE, ("good", "bad")),
    ),
    (
        "pairs",
        {"prompt": [USER, REPLY, USER], "chosen": [LAST[0]], "rejected": [LAST[1]]},
        TextComparison(DIALOGUE, ("good", "bad")),
    ),
    (
        "pairs",
        {"prompt": "q", "chosen": [USER, LAST[0]], "rejected": [USER, LAST[1]]},
        TextComparison((("user", "q"),), ("good", "bad")),
    ),
    (
        "pairs",
        {"chosen": "ask me well done", "rejected": "ask me while away"},
        TextComparison("ask me", (" well done", " while away")),
    ),
    (
        "pairs",
        {"prompt": "q", "responses": ["a", "b"], "scores": [2, 1]},
        TextComparison("q", ("a", "b"), (2.0, 1.0)),
    ),
    (
        "ranked",
        {"prompt": "q", "responses": ["a", "b", "c"], "scores": [1, 3, 2]},
        TextComparison("q", ("b", "c", "a"), (3.0, 2.0, 1.0), 1),
    ),
    (
        "ranked",
        {"prompt": "q", "responses": ["a", "b", "c"], "ranks": [2, 3, 1]},
        TextComparison("q", ("c", "a", "b"), (-1.0, -2.0, -3.0), 2),
    ),
    ("labelled", {"prompt": "q", "completion": "a", "label": True}, TextComparison("q", ("a",), (1.0,))),
    ("labelled", {"prompt": "q", "response": "a", "label": "bad"}, TextComparison("q", ("a",), (0.0,))),
    ("demonstrations", {"prompt": "q", "response": "a"}, TextComparison("q", ("a",))),
    ("demonstrations", {"instruction": "q", "input": "i", "output": "a"}, TextComparison("q\n\ni", ("a",))),
    (
        "demonstrations",
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        TextComparison((("user", "q"),), ("a",)),
    ),
    (
        "tldr",
        {"info": POST, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 1},
        TextComparison("SUBREDDIT: r/x\n\nTITLE: t\n\nPOST: p", ("b", "a"), None, 1),
    ),
    ("tldr", JUDGED, TextComparison("q", (" theirs", " mine"), None, 1)),
    (
        "tldr",
        {**POST, "summary": "s"},
        TextComparison("SUBREDDIT: r/x\n\nTITLE: t\n\nPOST: p", ("s",)),
    ),
    (
        "align-anything",
        {"question": "q", "response_1": "a", "response_2": "b", "overall_response": 2},
        TextComparison("q", ("b", "a"), None, 1),
    ),
    (
        "saferlhf-better",
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0},
        TextComparison("q", ("b", "a"), None, 1),
    ),
    (
        "saferlhf-safer",
        {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0},
        TextComparison("q", ("a", "b"), None, 0),
    ),
    (
        "saferlhf-one-safe",
        {
            "prompt": "q",
            "response_0": "a",
            "response_1": "b",
            "is_response_0_safe": False,
            "is_response_1_safe": True,
            "safer_response_id": 0,
        },
        TextComparison("q", ("b", "a"), None, 1),
    ),
    (
        "ultrafeedback",
        {
            "instruction": "q",
            "completions": [{"response": "a", "overall_score": 2}, {"response": "b", "overall_score": 8.5}],
        },
        TextComparison("q", ("b", "a"), (8.5, 2.0), 1),
    ),
    (
        "shp",
        {"history": "q", "human_ref_A": "a", "human_ref_B": "b", "labels": 0, "score_A": 3, "score_B": 9},
        TextComparison("q", ("b", "a"), (9.0, 3.0), 1),
    ),
    (
        "stack-exchange",
        {"question": "q", "answers": [{"text": "a", "pm_score": 5}, {"text": "b", "pm_score": 1}]},
        TextComparison("q", ("a", "b"), (5.0, 1.0), 0),
    ),
    (
        "stack-exchange",
        {"question": "q", "response_j": "a", "response_k": "b"},
        TextComparison("q", ("a", "b"), None, 0),
    ),
    ("world", {"prompt": "The film", "continuation": " was"}, TextComparison("The film", (" was",))),
]


@pytest.mark.parametrize(("adapter", "row", "expected"), ROWS, ids=[f"{n}-{row[0]}" for n, row in enumerate(ROWS)])
def test_a_row_of_each_shape(adapter: str, row: dict[str, Any], expected: TextComparison):
    assert ADAPTERS[adapter](row) == expected


def test_every_adapter_is_named_tested_and_documented():
    assert list(ADAPTERS) == list(NAMES)
    assert {adapter for adapter, *_ in ROWS} | {"hh", "imdb"} == set(NAMES)
    page = (ROOT / "docs/howto/data.md").read_text()
    for name in NAMES:
        assert f"| `{name}` |" in page, name


@pytest.mark.parametrize(
    ("adapter", "row", "reason"),
    [
        ("pairs", {"chosen": "one", "rejected": "other"}, "no common prompt"),
        ("pairs", {"chosen": [USER, REPLY, USER, LAST[0]], "rejected": [USER, LAST[1]]}, "prompts differ"),
        ("pairs", {"chosen": [USER, REPLY, LAST[0]], "rejected": [USER, LAST[1]]}, "two assistant turns in a row"),
        ("pairs", {"chosen": [USER, REPLY], "rejected": [REPLY, USER]}, "the last turn is not the assistant's"),
        ("pairs", {"prompt": "q", "chosen": "a", "rejected": " \n"}, "empty rejected"),
        (
            "pairs",
            {"chosen": [{"role": "user"}], "rejected": [REPLY]},
            "`chosen` holds a message without role or text",
        ),
        ("ranked", {"prompt": "q", "responses": ["a", "b"], "scores": [1, 1]}, "tie"),
        (
            "ranked",
            {"prompt": "q", "responses": ["a", "b"], "scores": [1, True]},
            "`scores` holds True, which is not a finite number",
        ),
        (
            "ranked",
            {"prompt": "q", "responses": ["a", "b"], "ranks": [1]},
            "not two or more responses with a score each",
        ),
        ("labelled", {"prompt": "q", "response": "a", "label": "so so"}, "label 'so so'"),
        ("labelled", {"prompt": "q", "response": "a"}, "label None"),
        ("tldr", {**JUDGED, "preferred": ""}, "not judged"),
        ("tldr", {**JUDGED, "preferred": "both"}, "label 'both'"),
        (
            "align-anything",
            {"question": "q", "response_1": "a", "response_2": "b", "overall_response": 3},
            "tie",
        ),
        (
            "align-anything",
            {"question": "q", "response_1": "a", "response_2": "b", "overall_response": "0"},
            "tie",
        ),
        (
            "align-anything",
            {"question": "q", "response_1": "a", "response_2": "b", "overall_response": True},
            "label True",
        ),
        (
            "align-anything",
            {"question": "q", "response_1": True, "response_2": "b", "overall_response": 1},
            "`response_1` is not text",
        ),
        ("demonstrations", {"messages": [USER]}, "the last turn is not the assistant's"),
        ("imdb", {"text": "Short."}, r"not more than \d words"),
    ],
)
def test_what_is_refused_says_why(adapter: str, row: dict[str, Any], reason: str):
    with pytest.raises(Unusable, match=f"^{reason}$"):
        ADAPTERS[adapter](row)


def test_imdb_prompts_are_of_2_to_8_words_and_nothing_is_lost():
    reviews = [f"Number {n} is a film that I have seen more often\nthan I like." for n in range(200)]
    comparisons = [ADAPTERS["imdb"]({"text": review}) for review in reviews]
    assert [str(one.prompt) + one.responses[0] for one in comparisons] == reviews
    assert {len(str(one.prompt).split()) for one in comparisons} == {2, 3, 4, 5, 6, 7, 8}


RANKED_RUN = [{"name": "r", "method": "nca_k", "dataset": "rankings"}]
USER_ADAPTER = """
from prefdag.data.adapters.records import TextComparison, Unusable, adapter
from words import POLITE

def duels(row):
    if row["winner"] == "none":
        raise Unusable("no winner")
    return TextComparison(row["duel"], tuple(row["fighters"]))

def broken(row):
    return row["nothing"]

def returns(row):
    return row
"""


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    (tmp_path / "words.py").write_text("POLITE = True\n")
    (tmp_path / "duels.py").write_text(USER_ADAPTER)
    rows = [{"duel": f"d{n}", "fighters": ["a", "b"], "winner": "none" if n == 2 else "a"} for n in range(4)]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "rows.jsonl", rows))}) == 0
    return tmp_path


def test_a_users_adapter(user_folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Its path is relative to the suite in YAML and to the working directory in jobs; it can import its neighbours."""
    monkeypatch.chdir(user_folder)
    suite = merge(yaml.safe_load(MINI), {"prepare": {"adapter": "duels.py:duels"}})
    section = resolve(suite, str(user_folder / "suites/x.yaml")).prepare
    assert (section.adapter, section.user_files()) == ("suites/duels.py:duels", (Path("suites/duels.py"),))
    code, folder = prepare(user_folder, adapter="duels.py:duels")
    assert code == 0
    assert (audit(folder)["used"], audit(folder)["dropped"]) == (3, {"no winner": {"count": 1, "rows": [2]}})


def test_a_users_adapter_may_declare_what_its_rows_hold(user_folder: Path):
    """With the decorator it is checked against a run as a built-in one is; without, nothing is known before it runs."""
    path = user_folder / "duels.py"
    changes = {"data": {"source": "rows.jsonl", "world": None}, "pairs": None, "score": {"reward": "trained"}}
    changes |= {"prepare": {"adapter": "duels.py:duels"}, "runs": RANKED_RUN}
    suite = merge(yaml.safe_load(MINI), changes)
    assert resolve(suite, str(user_folder / "x.yaml")).runs[0].dataset == "rankings"
    path.write_text(USER_ADAPTER.replace("def duels", "@adapter()\ndef duels"))
    with pytest.raises(UserError, match="runs.r.dataset: rows of the adapter `.*duels.py:duels` hold two responses"):
        resolve(suite, str(user_folder / "x.yaml"))
    assert declared_adapters(path) == {"duels": AdapterInfo(ranked=False, scored=False)}


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("duels.py:broken", "duels.py: broken raised KeyError: 'nothing' (line 11) on the row {'duel': 'd0'"),
        ("duels.py:returns", "returns must return a prefdag.data.adapters.records.TextComparison, got dict"),
        ("duels.py:absent", "prepare.adapter: duels.py holds no function absent; correct its name"),
        ("none.py:absent", "none.py: no such file; paths are relative to the suite's file"),
    ],
)
def test_a_users_adapters_mistake_is_one_sentence(
    user_folder: Path, name: str, sentence: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.chdir(user_folder)
    assert prepare(user_folder, adapter=name)[0] == 2
    assert sentence in capsys.readouterr().err


def test_an_unknown_adapter_names_the_known_ones():
    with pytest.raises(UserError, match=r"prepare.adapter: expected one of world, hh, .*, got 'hhh'"):
        resolve(merge(yaml.safe_load(MINI), {"prepare": {"adapter": "hhh"}}), "x")


def test_a_column_map_needs_no_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [{"ask": {"text": f"q{n}"}, "answers": ["yes", "no"]} for n in range(3)]
    data = {"source": str(write_rows(tmp_path / "rows.jsonl", rows))}
    columns = {"prompt": "ask.text", "chosen": "answers.0", "rejected": "answers.1"}
    assert fetch(tmp_path, {**data, "columns": columns}) == 0
    comparisons = [adapter_of("pairs")(row) for row in read_rows(tmp_path / "out/fetch/data/train.jsonl")]
    assert comparisons == [TextComparison(f"q{n}", ("yes", "no")) for n in range(3)]
    assert fetch(tmp_path, {**data, "columns": {"prompt": "ask.words"}}) == 2
    assert "data.columns: row 1 has no column 'ask.words'; it has ask, answers" in capsys.readouterr().err


def test_texts_are_replaced_in_every_column_the_longest_first(tmp_path: Path):
    """Two breaks are one match and not two, in messages as in plain text; numbers and names of columns stay."""
    rows = [{"text": "a<br /><br />b<br />c", "turns": [{"by": "<br />"}], "n": 1, "<br />": None}]
    data = {"source": str(write_rows(tmp_path / "rows.jsonl", rows))}
    for replace in ({"<br />": "|", "<br /><br />": "+"}, {"<br /><br />": "+", "<br />": "|"}):
        assert fetch(tmp_path, {**data, "replace": replace}) == 0
        fetched = list(read_rows(tmp_path / "out/fetch/data/train.jsonl"))
        assert fetched == [{"text": "a+b|c", "turns": [{"by": "|"}], "n": 1, "<br />": None}]


def mixture(folder: Path, **how: list[float]) -> dict[str, Any]:
    sources = []
    for index, size in enumerate((60, 30)):
        rows = [{"prompt": f"{index}-{n}", "chosen": "a", "rejected": "b"} for n in range(size)]
        source = {"source": str(write_rows(folder / f"{index}.jsonl", rows))}
        sources.append({**source, **{key: values[index] for key, values in how.items()}})
    return {"source": "mixed", "sources": sources}


def test_shares_by_weight_repeat_no_row():
    """60 and 30 rows at 1 : 1 are 30 and 30; at 3 : 1, 60 and 20; with 20 rows in all, 15 and 5."""
    for weights, limit, expected in (((1, 1), None, [30, 30]), ((3, 1), None, [60, 20]), ((3, 1), 20, [15, 5])):
        sources = [{"source": "a", "weight": weight} for weight in weights]
        data = Data.model_validate({"source": "mixed", "sources": sources, "max_rows": limit})
        assert rows_per_source(data, [60, 30]) == expected


def test_sources_are_mixed_by_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Sampled without replacement, in order; another seed samples others; too large a count is an error."""

    def sample(seed: int) -> list[str]:
        assert fetch(tmp_path, {**mixture(tmp_path, count=[10, 20]), "seed": seed}) == 0
        return [row["prompt"] for row in read_rows(tmp_path / "out/fetch/data/train.jsonl")]

    prompts = sample(0)
    assert [name[0] for name in prompts] == ["0"] * 10 + ["1"] * 20
    assert len(set(prompts)) == 30
    assert prompts == sorted(prompts, key=lambda name: tuple(map(int, name.split("-"))))
    assert sample(0) == prompts != sample(1)
    assert fetch(tmp_path, mixture(tmp_path, count=[61, 1])) == 2
    assert "holds 60 rows, not the 61 that its count asks for" in capsys.readouterr().err


def test_a_source_of_a_mixture_may_name_its_adapter(tmp_path: Path):
    data = mixture(tmp_path, count=[5, 5])
    rows = [{"question": "q", "response_1": "a", "response_2": f"b{n}", "overall_response": 2} for n in range(9)]
    data["sources"][1] = {
        "source": str(write_rows(tmp_path / "other.jsonl", rows)),
        "count": 9,
        "adapter": "align-anything",
    }
    assert fetch(tmp_path, data) == 0
    code, folder = prepare(tmp_path)
    assert (code, audit(folder)["used"], audit(folder)["dropped"]) == (0, 14, {})


def test_a_mixtures_source_may_hold_other_splits_alone(tmp_path: Path):
    """Rows to train on from one place, to test with and of another distribution from a second, of another adapter."""
    data = mixture(tmp_path, count=[5, 5])
    rows = [{"question": f"q{n}", "response_1": "a", "response_2": "b", "overall_response": 2} for n in range(9)]
    for name in ("far", "tests"):
        write_rows(tmp_path / f"other/{name}.jsonl", rows[:4] if name == "far" else rows[4:])
    other = {"source": str(tmp_path / "other"), "test": "tests.jsonl", "ood": "far.jsonl", "adapter": "align-anything"}
    data["sources"].append(other)
    assert fetch(tmp_path, data) == 0
    code, tested = prepare(tmp_path)
    assert (code, audit(tested)["used"], audit(tested, "test")["used"]) == (0, 10, 5)
    code, folder = prepare(tmp_path, dataset="ood")
    store = Store.open(folder / "test")
    assert (code, store.num_responses, len(store), (folder / "train").exists()) == (0, 1, 4, False)
    assert store[0].responses[0].tolist() == Store.open(tested / "test")[0].responses[0].tolist(), "the better one, `b`"
    data["sources"] = [other]
    with pytest.raises(UserError, match="none of them holds training rows"):
        Data.parse(data, "data")
    data["sources"] = [{**other, "weight": 1}, {"source": "a", "weight": 1}]
    with pytest.raises(UserError, match="names no `train`, so its weight or count says nothing"):
        Data.parse(data, "data")


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"source": "mixed"}, "data.sources: source `mixed` and this list go together"),
        ({"source": "x", "sources": [{"source": "a", "weight": 1}]}, "go together; state both or neither"),
        ({"source": "mixed", "sources": [{"source": "a"}]}, "sources: state a weight for each of them, or a count"),
        ({"source": "https://a.b/c.jsonl"}, "data.sha256: missing; a file behind an address must state its own"),
        ({"source": "hub:a/b"}, "data.train: missing"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(data: dict[str, Any], sentence: str):
    with pytest.raises(UserError, match="configs/x.yaml: data") as error:
        resolve(merge(yaml.safe_load(MINI), {"data": data, "pairs": {}}), "configs/x.yaml")
    assert sentence in str(error.value)
