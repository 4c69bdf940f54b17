"""Journals: append-only, redacted, read while they grow; and the lineage that is read off them."""

import ast
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

import prefdag
from prefdag.cli.main import main
from prefdag.errors import UserError
from prefdag.provenance.journal import open_journal, read_journal
from prefdag.provenance.manifest import describe
from prefdag.provenance.redaction import redact
from prefdag.tracking.records import Record, StoredModel, newest, successors

PACKAGE = Path(prefdag.__file__).parent
SFT, DPO = "5" * 64, "d" * 64
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}


def test_journal_survives_nan_and_a_torn_line(tmp_path):
    journal = open_journal(tmp_path / "suite", "sft")
    journal.metrics(0, {"loss": float("nan"), "high": float("inf"), "low": float("-inf")})
    events, offset = read_journal(journal.path)
    assert math.isnan(events[0]["values"].pop("loss"))
    assert events[0]["values"] == {"high": math.inf, "low": -math.inf}
    assert "NaN" not in journal.path.read_text()  # which is no JSON
    with journal.path.open("a") as file:
        file.write('{"event": "metrics", "time": 1, "step": 1, "val')
        file.flush()
        assert read_journal(journal.path, offset) == ([], offset)
        file.write('ues": {"loss": 2}}\n')
    events, end = read_journal(journal.path, offset)
    assert events[0]["values"] == {"loss": 2.0} and end == journal.path.stat().st_size
    journal.path.write_text("{}}\n")
    with pytest.raises(UserError, match=r"byte 0: not a line of a journal"):
        read_journal(journal.path)


def test_journal_tells_paths_where_they_will_lie(tmp_path):
    root = tmp_path / "suite"
    journal = open_journal(root, "preference", "dpo")
    for path in (root / ".partial/preference-dpo-01/model", root / "sft/model", Path("/far/away"), "hf://datasets/x"):
        journal.model("x", path=path, sha256=DPO, role="input")
    paths = [event["path"] for event in read_journal(journal.path)[0]]
    assert paths == ["preference/dpo/model", "sft/model", "/far/away", "hf://datasets/x"]


def test_secrets_are_redacted():
    token = "hf_" + "a1B2" * 8
    message = {
        "api_key": "key",
        "hub": {"HF_TOKEN": "value"},
        "error": f"401 for {token}",
        "url": "https://me:pw@host/x",
    }
    saved = {
        "eos_token": "</s>",
        "max_tokens": 8,
        "tokenizer": "gpt2",
        "token": None,
        "model": "hf_small",
        "top": {"token": "e"},
    }
    assert redact(message | saved) == saved | {
        "api_key": "[redacted]",
        "hub": {"HF_TOKEN": "[redacted]"},
        "error": "401 for [redacted]",
        "url": "https://[redacted]@host/x",
    }


ADDRESSES = {
    "https://bucket/rows.jsonl?X-Amz-Signature=abc%2F1&n=1": "X-Amz-Signature=[redacted]&n=1",
    "https://container/rows.jsonl?sv=2022&sig=Zm9v%3D&se=1": "sv=2022&sig=[redacted]&se=1",
    "https://host/rows.jsonl?access_token=abc#part": "access_token=[redacted]#part",
    "https://host/rows.jsonl?monkey=abc&page=2": "monkey=abc&page=2",
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_signed_addresses_are_redacted(address: str, tmp_path: Path):
    """Everywhere: in journals and logs, and in manifests, which state other keys as they are."""
    expected = f"{address.split('?')[0]}?{ADDRESSES[address]}"
    assert redact(f"GET {address} failed") == f"GET {expected} failed"
    config = {"data": {"source": address}, "hub_token": "stays"}
    content = json.loads(describe(tmp_path, "fetch", config, {}, {}, {"source": [address]}))
    assert content["config"] == {"data": {"source": expected}, "hub_token": "stays"}
    assert content["facts"] == {"source": [expected]}


@pytest.mark.parametrize(
    "line", ["{}", "[1]", "3", '{"event": 1, "time": 1}', '{"event": "metrics", "time": 1, "values": 7}']
)
def test_json_that_is_no_event_costs_its_line(line: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "one.jsonl"
    path.write_text(f'{{"event": "a", "time": 1}}\n{line}\n{{"event": "b", "time": 2}}\n')
    events, end = read_journal(path)
    assert [event["event"] for event in events] == ["a", "b"] and end == path.stat().st_size
    assert "byte 26: JSON, but no event of a journal" in caplog.text


@pytest.mark.parametrize("error", [UserError, ValueError])
def test_no_token_comes_into_a_log_or_a_journal(tmp_path, monkeypatch, capsys, error):
    """A stage that fails with a token in its config, its address and its message, for either kind of error."""
    canary, password = "hf_" + "c4N4rY" * 5, "hunter2-canary"
    message = f"401 for {canary} at https://me:{password}@hub/x, Authorization: Bearer {password}"

    def fail(stage, *job):
        journal = open_journal(tmp_path / "suite", stage)
        journal.start(
            config={"data": {"hub_token": canary}, "source": f"https://me:{password}@hub/x"}, inputs={}, code=""
        )
        journal.end(status="failed", error=message, seconds=1.0, peak_memory_mb=1.0)
        raise error(message)

    monkeypatch.setattr("prefdag.runtime.stage.run_stage", fail)
    monkeypatch.delenv("PREFDAG_WARM", raising=False)
    assert main(["fetch", "--config", "{}", "--output", "x"]) == (2 if error is UserError else 1)
    output = capsys.readouterr()
    (journal,) = (tmp_path / "suite/.journal").glob("*.jsonl")
    for text in (output.out, output.err, journal.read_text()):
        assert canary not in text and password not in text
    assert "[redacted]" in output.err and "[redacted]" in journal.read_text()


def test_only_tracking_imports_mlflow():
    importers = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            importers |= {str(path.relative_to(PACKAGE)) for name in names if name.split(".")[0] == "mlflow"}
    assert importers == {"tracking/mlflow_client.py", "tracking/results.py"}


def test_journal_imports_neither_mlflow_nor_torch():
    ask = (
        "import sys, prefdag.provenance.journal, prefdag.tracking.sync; print({'mlflow', 'torch'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", ask], env=ENVIRONMENT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_newest_weights_and_successors_do_not_depend_on_order():
    made = [StoredModel(name, (name, "sft", SFT), at, {}, True) for name, at in (("a", 1.0), ("b", 3.0), ("c", 2.0))]
    for order in (made, made[::-1]):
        assert [getattr(newest(order, SFT, at), "id", None) for at in (0.5, 1.5, 2.5, 9.0)] == ["a", "a", "c", "b"]
        assert newest(order, DPO, 9.0) is None
    jobs = [("sft", 3.0, "c"), ("sft", 1.0, "a"), ("reward", 2.0, "r"), ("sft", 2.0, "b")]
    assert successors(jobs) == successors(jobs[::-1]) == {"a": "b", "b": "c"}


def test_measurements_of_a_job_that_trains_nothing_are_the_models_it_reads(tmp_path):
    journal = open_journal(tmp_path / "suite", "score", "dpo")
    journal.metrics(0, {"rows": 1.0})
    journal.model("dpo", path="x", sha256=DPO, role="input")
    journal.metrics(0, {"reward": 1.0})
    record = Record(journal.path)
    record.advance()
    assert record.measured_weights and record.measured_weights["sha256"] == DPO
    assert [point.measured for point in record.points] == [False, True]
    journal.dataset("train", digest="a", path="x", context="training")
    record.advance()
    assert record.measured_weights is None
