"""Single labelled responses: what `prepare` stores of them, and what it says of their labels."""

import os
from pathlib import Path

import numpy as np
import pytest

from comparisons import comparisons, stored
from prefdag.config.objectives import objective
from prefdag.data.audit import findings
from prefdag.data.dropped import warnings
from prefdag.data.token_store import Store
from prefdag.data.views import Unpaired, objective_view
from prefdag.errors import UserError
from preparing import audit, fetch, prepare, write_rows

LABELS = [True, False, True, True, True]
OTHERS = {"prompt": "q", "chosen": "a", "rejected": "b"}
USERS = """
from prefdag.data.adapters.records import TextComparison

def votes(row):
    return TextComparison(row["q"], (row["a"],), (float(row["up"]),))
"""


def rows(labels: list[bool]) -> list[dict]:
    return [{"prompt": f"q{n}", "completion": f"a{n}", "label": label} for n, label in enumerate(labels)]


def prepared(folder: Path, lines: list[dict], dataset: str = "comparisons", **changes) -> tuple[int, Path]:
    write_rows(folder / "raw/train.jsonl", lines)
    assert fetch(folder, {"source": str(folder / "raw"), "train": "train.jsonl"}) == 0
    return prepare(folder, dataset=dataset, **{"adapter": "labelled", **changes})


def test_a_response_is_stored_with_its_label(tmp_path: Path):
    code, out = prepared(tmp_path, rows(LABELS))
    store = Store.open(out / "train")
    assert code == 0 and store.num_responses == 1 and store.scores is not None
    assert store.scores.tolist() == [[1], [0], [1], [1], [1]] and store.rows.tolist() == [0, 1, 2, 3, 4]
    view = objective_view(store, objective({"method": "kto"}, "tests", "kto"))
    assert isinstance(view, Unpaired) and view.labels.tolist() == LABELS
    assert audit(out)["labels"] == {"desirable": 4, "undesirable": 1, "balance": "lambda_d 1 and lambda_u from 3 to 4"}
    page = (out / "samples.html").read_text()
    assert page.count('class="part chosen"><b>desirable') == 4 and page.count('part rejected"><b>undesirable') == 1


def test_messages_and_a_users_adapter(tmp_path: Path):
    """TRL's format with messages; and a function without a decorator, whose rows say what they hold."""
    turns = [
        {
            "prompt": [{"role": "user", "content": f"q{n}"}],
            "completion": [{"role": "assistant", "content": "a"}],
            "label": n == 1,
        }
        for n in range(2)
    ]
    code, out = prepared(tmp_path / "messages", turns)
    assert code == 0 and Store.open(out / "train").scores.tolist() == [[0], [1]]
    (tmp_path / "mine.py").write_text(USERS)
    lines = [{"q": f"q{n}", "a": "b", "up": n % 2} for n in range(4)]
    code, out = prepared(tmp_path / "users", lines, adapter=f"{os.path.relpath(tmp_path)}/mine.py:votes")
    assert code == 0 and Store.open(out / "train").scores.tolist() == [[0], [1], [0], [1]]


def test_the_view_of_single_responses_is_that_of_the_pairs_they_come_from(tmp_path: Path):
    pairs = Unpaired(stored(tmp_path / "pairs", comparisons(7, 2), prompts=[0, 0, 1, 2, 3, 4, 5]))
    examples = [pairs[index] for index in range(len(pairs))]
    labels = [[float(label)] for label in pairs.labels]
    view = Unpaired(stored(tmp_path / "singles", examples, labels, pairs.prompts.tolist()))
    for name in ("labels", "prompts"):
        assert np.array_equal(getattr(view, name), getattr(pairs, name))
    assert np.array_equal(view.lengths(), pairs.lengths())
    assert np.array_equal(view.response_starts(), pairs.response_starts())
    assert all(np.array_equal(view[i].responses[0], examples[i].responses[0]) for i in range(len(pairs)))


def test_sft_learns_the_desirable_responses(tmp_path: Path):
    """A held-out split with undesirable responses alone is none of its concern."""
    write_rows(tmp_path / "raw/held.jsonl", [{"prompt": "h", "completion": "a", "label": 0}])
    write_rows(tmp_path / "raw/train.jsonl", rows([True, False, False]))
    assert fetch(tmp_path, {"source": str(tmp_path / "raw"), "train": "train.jsonl", "validation": "held.jsonl"}) == 0
    code, out = prepare(tmp_path, dataset="demonstrations", adapter="labelled")
    store = Store.open(out / "train")
    assert code == 0 and store.rows.tolist() == [0] and store.scores is None
    assert len(Store.open(out / "validation")) == 0
    assert audit(out)["dropped"] == {"labelled bad": {"count": 2, "rows": [1, 2]}}


def test_what_is_said_of_demonstrations(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, _ = prepared(tmp_path, rows([True, False, False]), "demonstrations")
    output = capsys.readouterr().out
    assert code == 0 and "2 dropped, labelled bad: rows 2, 3" in output and "warning" not in output


@pytest.mark.parametrize(("label", "kind"), [(True, "desirable"), (False, "undesirable")])
def test_one_label_alone_is_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str], label: bool, kind: str):
    code, out = prepared(tmp_path, rows([label] * 3))
    assert (
        code == 0 and f"warning: train: all 3 responses are {kind}; add rows with the other" in capsys.readouterr().out
    )
    assert audit(out)["labels"]["balance"] is None
    code, _ = prepared(tmp_path / "both", rows([True, False, True]))
    assert code == 0 and "warning" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("good", "bad", "weights"),
    [
        (4, 3, None),
        (1, 1, None),
        (5, 2, "lambda_d 1 and lambda_u from 1.88 to 2.5"),
        (2, 5, "lambda_d from 2.5 to 3.33 and lambda_u 1"),
    ],
)
def test_the_weights_that_balance_the_labels(tmp_path: Path, good: int, bad: int, weights: str | None):
    """Equation 8 of the paper: lambda_d n_d / (lambda_u n_u) from 1 to 4/3, at both ends of what is suggested."""
    code, out = prepared(tmp_path, rows([True] * good + [False] * bad))
    assert code == 0 and audit(out)["labels"]["balance"] == weights
    line = f"train: {good} desirable and {bad} undesirable responses"
    line += f"; KTO balances them with {weights}" if weights else ""
    assert line in findings("train", audit(out))
    assert f"test: {good} desirable and {bad} undesirable responses" in findings("test", audit(out))
    assert not warnings({"train": audit(out)})


@pytest.mark.parametrize(("first", "other"), [(rows([True])[0], OTHERS), (OTHERS, rows([True])[0])])
def test_pairs_among_single_responses_are_refused(tmp_path: Path, capsys, first: dict, other: dict):
    (tmp_path / "mine.py").write_text(
        "from prefdag.data.adapters.records import TextComparison\n\n"
        "def either(row):\n"
        "    if 'label' in row:\n"
        "        return TextComparison(row['prompt'], (row['completion'],), (float(row['label']),))\n"
        "    return TextComparison(row['prompt'], (row['chosen'], row['rejected']))\n"
    )
    adapter = f"{os.path.relpath(tmp_path)}/mine.py:either"
    code, _ = prepared(tmp_path, [first, other], adapter=adapter)
    error = capsys.readouterr().err
    expected = "not one response with a label" if "label" in first else "1 response, but a comparison needs 2"
    assert code == 2 and f"train: row 2: {expected}" in error and "Traceback" not in error


def test_losses_of_pairs_refuse_the_store(tmp_path: Path):
    _, out = prepared(tmp_path, rows(LABELS))
    with pytest.raises(UserError, match="dpo compares two responses, and each prompt of this store has 1"):
        objective_view(Store.open(out / "train"), objective({"method": "dpo"}, "tests", "dpo"))
