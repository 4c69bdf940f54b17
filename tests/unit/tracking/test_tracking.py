"""Journals and what becomes of them in MLflow: the same content whether followed live, replayed, or replayed twice."""

import json
import logging
import math
import os
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

import prefdag
from prefdag.cli.console import show_diagnostics
from prefdag.cli.main import main
from prefdag.errors import UserError
from prefdag.provenance.journal import Journal, open_journal, process_is_gone, read_journal
from prefdag.tracking.environment import problem_with
from prefdag.tracking.links import follow_port
from prefdag.tracking.sync import Writer

PACKAGE = Path(prefdag.__file__).parent
SFT, DPO = "5" * 64, "d" * 64
ENVIRONMENT = os.environ | {"PYTHONPATH": str(PACKAGE.parent), "MLFLOW_TRACKING_URI": ""}


def write_sft(root: Path) -> str:
    journal = open_journal(root, "sft")
    journal.start(config={"sft": {"epochs": 1}}, inputs={}, code="c0de")
    journal.dataset("demonstrations", digest="e" * 64, path=root / "prepare/demonstrations/train", context="training")
    journal.metrics(0, {"loss": 3.0})
    journal.model("sft", path=root / ".partial/sft-all-1/model", sha256=SFT, role="output")
    journal.end(status="finished", manifest="5f7", seconds=1.0, peak_memory_mb=10.0)
    return journal.path.stem


def write_dpo(root: Path, *, end: bool = True) -> Journal:
    journal = open_journal(root, "preference", "dpo-beta0.1")
    inputs = {"policy": {"path": "results/suite/sft/manifest.json", "sha256": "5f7"}}
    config = {"preference": {"beta": 0.1, "hub_token": "hf_" + "x" * 30}, "objective": {"method": "dpo"}}
    journal.start(config=config, inputs=inputs, code="c0de")
    journal.dataset("train", digest="a" * 64, path=root / "prepare/comparisons/train", context="training")
    journal.dataset("test", digest="b" * 64, path=root / "prepare/comparisons/test", context="evaluation")
    journal.model("sft", path=root / "sft/model", sha256=SFT, role="input")
    for step, loss in enumerate([math.log(2), float("nan"), float("inf")]):
        journal.metrics(step, {"loss": loss, "accuracy": step / 4})
    made = root / ".partial" / "preference-dpo-beta0.1-0123"
    made.mkdir(parents=True, exist_ok=True)
    (made / "curves.csv").write_text("step,loss\n")
    journal.artifact(made / "curves.csv", "tables/curves of the run.csv")
    journal.model("dpo-beta0.1", path=made / "model", sha256=DPO, role="output", parents=[SFT])
    journal.metrics(None, {"test.accuracy": 0.75})
    if end:
        (root / "preference/dpo-beta0.1").mkdir(parents=True, exist_ok=True)
        (made / "curves.csv").rename(root / "preference/dpo-beta0.1/curves.csv")
        journal.end(status="finished", manifest="d90", seconds=2.0, peak_memory_mb=20.0)
    return journal


def write_by_hand(root: Path, moment: str, **changes) -> str:
    """A reward job that has begun, of another process, perhaps of another machine."""
    start = {"event": "start", "time": time.time(), "suite": root.name, "stage": "reward", "name": None, "config": {}}
    start |= {"inputs": {}, "code": "c0de", "host": socket.gethostname(), "pid": 1, "git": None} | changes
    start["id"] = f"{start['stage']}-{moment}-{start['pid']}"
    path = root / ".journal" / f"{start['id']}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(start) + "\n")
    return start["id"]


def dead_pid() -> int:
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def rows(database: Path) -> dict[str, list]:
    """Every row of every table."""
    with sqlite3.connect(database) as connection:
        names = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return {name: sorted(map(repr, connection.execute(f"select * from {name}"))) for name in names}


def content(client, suite: str) -> dict[str, object]:
    """Return what the database holds of a suite, with journals and names in place of MLflow's random ids."""
    experiment = client.get_experiment_by_name(suite).experiment_id
    models = {model.model_id: model for model in client.search_logged_models([experiment])}
    labels = {key: f"{model.tags['prefdag.journal']}:{model.name}" for key, model in models.items()}
    result: dict[str, object] = {}
    runs = client.search_runs([experiment])
    for run in runs:
        for other in runs if "mlflow.note.content" in run.data.tags else ():  # a running job has none yet
            note = run.data.tags["mlflow.note.content"].replace(
                f"#/experiments/{experiment}/runs/{other.info.run_id}?workflowType=machine_learning", ""
            )
            run.data.tags["mlflow.note.content"] = note
        history = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
        result[run.data.tags["prefdag.journal"]] = (
            (
                run.info.run_name,
                run.info.status,
                run.info.start_time,
                run.info.end_time,
                run.data.params,
                run.data.tags,
            ),
            {
                key: sorted((one.step, one.timestamp, repr(one.value)) for one in points)
                for key, points in history.items()
            },
            sorted(repr(one.to_dictionary()) for one in run.inputs.dataset_inputs),
            sorted(labels[one.model_id] for one in client.get_run(run.info.run_id).inputs.model_inputs),
            sorted(labels[one.model_id] for one in run.outputs.model_outputs),
            sorted((file.path, file.file_size) for file in client.list_artifacts(run.info.run_id, "tables")),
        )
    for key, model in models.items():
        tags = model.tags | {
            "prefdag.parents": [labels[one] for one in model.tags.get("prefdag.parents", "").split(",") if one]
        }
        tied = sorted((one.key, one.value, one.dataset_name, one.dataset_digest) for one in model.metrics or ())
        result[labels[key]] = (model.params, tags, str(model.status), model.model_type, tied)
    return result


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("project") / "results"


@pytest.fixture(scope="module")
def client(results):
    """A client of the module's database, which the first journal's replay makes."""
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    write_sft(results / "first")
    Writer(results / "first").replay()
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{results}/mlflow.db")


@pytest.fixture(scope="module")
def suite(results, client) -> dict[str, str]:
    """A suite of an SFT job and a DPO job, replayed; the journals' ids."""
    ids = {"sft": write_sft(results / "suite"), "dpo": write_dpo(results / "suite").path.stem}
    assert Writer(results / "suite").replay() == 2
    return ids


def test_replay_writes_everything(results, client, suite):
    result = content(client, "suite")
    (name, status, start, end, params, tags), history, datasets, read_models, made, artifacts = result[suite["dpo"]]
    assert (name, status) == ("preference/dpo-beta0.1", "FINISHED")
    assert params == {"preference.beta": "0.1", "preference.hub_token": "[redacted]", "objective.method": "dpo"}
    wanted = {"stage": "preference", "name": "dpo-beta0.1", "manifest": "d90", "input.policy": "5f7", "code": "c0de"}
    assert wanted.items() <= {key.removeprefix("prefdag."): value for key, value in tags.items()}.items()
    assert "prefdag.superseded" not in tags
    events, _ = read_journal(results / f"suite/.journal/{suite['dpo']}.jsonl")
    assert (start, end) == (int(events[0]["time"] * 1000), int(events[-1]["time"] * 1000))
    steps = [event for event in events if event["event"] == "metrics"][:3]
    assert history["accuracy"] == [(n, int(one["time"] * 1000), repr(n / 4)) for n, one in enumerate(steps)]
    assert [value for *_, value in history["loss"]][:2] == [repr(math.log(2)), "nan"]
    assert [one[0] for one in history["test.accuracy"]] == [2]  # a result is recorded at the last step
    assert history["job.seconds"][0][2] == "2.0"
    assert len(datasets) == 2  # the first is the test split
    assert f"'digest': '{'b' * 36}'" in datasets[0] and "results/suite/prepare/comparisons/test" in datasets[0]
    assert read_models == [f"{suite['sft']}:sft"] and made == [f"{suite['dpo']}:dpo-beta0-1"]
    assert artifacts == [("tables/curves of the run.csv", len("step,loss\n"))]
    note = tags["mlflow.note.content"].splitlines()
    assert note[0] == "- reads policy: [sft]()", "a link to the run that made what it read"
    assert [line.partition(":")[0] for line in note[1:]] == ["- data train", "- data test", "- weights sft"]


def test_weights_are_external_models_with_lineage(client, suite):
    result = content(client, "suite")
    params, tags, status, kind, tied = result[f"{suite['dpo']}:dpo-beta0-1"]
    assert params == {"path": "results/suite/preference/dpo-beta0.1/model", "sha256": DPO, "parent.0": SFT}
    assert tags["mlflow.model.isExternal"] == "true" and tags["prefdag.parents"] == [f"{suite['sft']}:sft"]
    assert (status, kind) == ("READY", "preference")
    assert tied == [
        ("test.accuracy", 0.75, "test", "b" * 36)
    ]  # the curves are not tied: they are of no finished weights
    assert result[f"{suite['sft']}:sft"][0]["path"] == "results/suite/sft/model"


def test_replaying_twice_changes_no_row(results, client, suite):
    before = rows(results / "mlflow.db")
    Writer(results / "suite").replay()
    assert rows(results / "mlflow.db") == before
    assert {len(before[table]) > 0 for table in ("runs", "metrics", "params", "inputs", "logged_models")} == {True}


def test_a_write_that_broke_off_is_completed(results, client, suite):
    """Lose what a crash between two writes can lose: a replay restores the very content."""
    before = content(client, "suite")
    with sqlite3.connect(results / "mlflow.db") as connection:
        (run,) = connection.execute(
            "select run_uuid from tags where value = ? and key = 'prefdag.journal'", [suite["dpo"]]
        )
        connection.execute("update runs set status = 'RUNNING', end_time = null where run_uuid = ?", run)
        connection.execute("update tags set value = '1' where key = 'prefdag.num_metrics' and run_uuid = ?", run)
        for table in ("params where run_uuid = ?", "inputs where ? in (source_id, destination_id)"):
            connection.execute(f"delete from {table}", run)
        connection.execute("delete from metrics where run_uuid = ? and key = 'test.accuracy'", run)
    assert content(client, "suite") != before
    Writer(results / "suite").replay()
    assert content(client, "suite") == before


def test_followed_live_equals_replayed(results, client, suite):
    """The DPO job's journal is fed line by line to a follower; the SFT job's appears in the middle."""
    (results / "live/.journal").mkdir(parents=True)
    parent = subprocess.Popen(["sleep", "600"])
    command = [sys.executable, "-m", "prefdag", "track", str(results / "live"), "--follow", "--poll", "0.2"]
    follower = subprocess.Popen(
        [*command, "--parent", str(parent.pid)], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True
    )
    (results / "live/preference/dpo-beta0.1").mkdir(parents=True)
    source = results / "suite/preference/dpo-beta0.1/curves.csv"
    (results / "live/preference/dpo-beta0.1/curves.csv").write_bytes(source.read_bytes())
    try:
        for name in (suite["sft"], suite["dpo"]):
            with (results / f"live/.journal/{name}.jsonl").open("a") as file:
                for line in (results / f"suite/.journal/{name}.jsonl").read_text().splitlines(keepends=True):
                    file.write(line.replace('"suite": "suite"', '"suite": "live"'))
                    file.flush()
                    time.sleep(0.1)
        deadline = time.monotonic() + 120
        while not client.get_experiment_by_name("live") and time.monotonic() < deadline:
            time.sleep(0.2)
        assert follower.poll() is None and client.get_experiment_by_name("live")  # it writes while the workflow runs
        with pytest.raises(UserError, match=r"another writer is running \(process \d+ of"):
            Writer(results / "live", patience=0.1).replay()
    finally:
        parent.kill()
        parent.wait()
        _, output = follower.communicate(timeout=120)
    assert (follower.returncode, output) == (0, "")
    live = json.loads(json.dumps(content(client, "live")).replace("results/live", "results/suite"))
    replayed = json.loads(json.dumps(content(client, "suite")))
    for result in (live, replayed):
        for name in suite.values():
            del result[name][0][5]["prefdag.suite"]
    assert live == replayed


def test_reruns_killed_and_foreign_jobs(results, client):
    """Two runs of a job on a machine far away: the first has no end and was run again, so it was killed."""
    root = results / "again"
    first = write_by_hand(root, "20260101T000000000Z", host="far", time=1e9)
    killed = write_by_hand(root, "20260101T000002000Z", pid=dead_pid(), stage="judge", time=1e9 + 2)
    alive = write_by_hand(root, "20260101T000003000Z", pid=os.getpid(), stage="score")
    second = write_by_hand(root, "20260101T000001000Z", host="far", time=1e9 + 1)
    with (root / f".journal/{killed}.jsonl").open("a") as file:
        file.write('{"event": "metrics", "time": 1000000005, "step": 3, "values": {"loss": 1}}\n{"event": "met')
    Writer(root).replay()
    result = {key: value[0] for key, value in content(client, "again").items()}
    status = {key: value[1] for key, value in result.items()}
    assert status == {first: "KILLED", second: "RUNNING", killed: "KILLED", alive: "RUNNING"}
    superseded = {key: value[5].get("prefdag.superseded") for key, value in result.items()}
    assert superseded == {first: second, second: None, killed: None, alive: None}
    assert "ended without a last event" in result[killed][5]["prefdag.closed"]
    assert result[killed][3] == 1000000005000  # its last event's time, whenever it is replayed


@pytest.mark.parametrize("stage", ["preference", "policy", "online", "selected"])
def test_answers_are_nested_in_the_training_of_their_policy(results, client, stage):
    root = results / f"nested-{stage}"
    training = write_by_hand(root, "20260101T000000000Z", stage=stage, name="a")
    scored = write_by_hand(root, "20260101T000001000Z", stage="score", name="a")
    with (root / f".journal/{scored}.jsonl").open("a") as file:
        file.write('{"event": "metrics", "time": 2, "step": 0, "values": {"reward": 0.5}}\n')
        end = {"event": "end", "time": 3, "status": "finished", "error": None, "manifest": None}
        file.write(json.dumps({**end, "seconds": 1.0, "peak_memory_mb": 1.0}) + "\n")
    Writer(root).replay()
    runs = {
        run.data.tags["prefdag.journal"]: run
        for run in client.search_runs([client.get_experiment_by_name(root.name).experiment_id])
    }
    assert runs[scored].data.tags["mlflow.parentRunId"] == runs[training].info.run_id
    assert runs[training].data.metrics["result.reward"] == 0.5


def test_a_rerun_s_file_and_a_deleted_run_are_left_alone(results, client):
    root = results / "later"
    write_dpo(root)
    (root / "preference/dpo-beta0.1/curves.csv").write_text("of the rerun\n")
    Writer(root).replay()
    (result,) = (value for key, value in content(client, "later").items() if ":" not in key)
    assert result[0][1] == "FINISHED" and result[5] == []
    (run,) = client.search_runs([client.get_experiment_by_name("later").experiment_id])
    client.delete_run(run.info.run_id)
    before = rows(results / "mlflow.db")
    Writer(root).replay()
    assert rows(results / "mlflow.db") == before


def test_gone():
    assert process_is_gone(dead_pid(), time.time())
    assert not process_is_gone(os.getpid(), time.time())
    assert process_is_gone(os.getpid(), 1e9)  # the process with this id in 2001 was another


def test_mlflow_down_is_a_sentence_and_never_a_crash(tmp_path, capsys):
    root = tmp_path / "results/suite"
    write_sft(root)
    show_diagnostics(logging.INFO)
    file_store = Writer(root, f"file://{tmp_path}/mlruns", patience=0.3)
    with pytest.raises(UserError, match="journals in .* are complete"):
        file_store.replay()
    assert file_store.follow(dead_pid(), poll=0.1) is False
    output = capsys.readouterr().err
    assert "Traceback" not in output and output.count("failed (") == 1 and f"run `prefdag track {root}`\n" in output


def test_track_and_ui_say_when_there_is_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["track", str(tmp_path / "results/suite")]) == 2
    assert "no journals; give the folder" in capsys.readouterr().err
    assert main(["ui", "--results", str(tmp_path)]) == 2
    assert "no runs there yet" in capsys.readouterr().err
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:1")
    assert main(["ui"]) == 2
    assert "open http" in capsys.readouterr().err


def test_ui_refuses_a_port_before_it_prints_an_address(results, client, monkeypatch, capsys):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        for value, sentence in (
            (port, f"port {port} is in use; choose another"),
            (70000, "from 1 to 65535, got 70000"),
        ):
            assert main(["ui", "--results", str(results), "--port", str(value)]) == 2
            out, err = capsys.readouterr()
            assert sentence in err and len(err.splitlines()) == 1 and not out


def test_results_are_metrics_of_the_training_that_made_the_policy(results, client):
    """Written live or afterwards, once: a second replay changes no row; the page follows the port of the UI."""
    root = results / "scored"
    write_sft(root)
    write_dpo(root)
    for stage, values in (("score", {"reward": 0.5, "kl": 4.0, "length": 9.0}), ("judge", {"win_rate": 0.75})):
        journal = open_journal(root, stage, "dpo-beta0.1")
        journal.start(config={}, inputs={}, code="c0de")
        journal.metrics(None, values)
        journal.end(status="finished", manifest=stage, seconds=1.0, peak_memory_mb=1.0)
    Writer(root).replay()
    experiment = client.get_experiment_by_name("scored")
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    (best,) = client.search_runs([experiment.experiment_id], "metrics.`result.kl` < 5")
    metrics = {key: value for key, value in best.data.metrics.items() if key.startswith("result.")}
    assert metrics == {"result.reward": 0.5, "result.kl": 4.0, "result.length": 9.0, "result.win_rate": 0.75}
    below = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{best.info.run_id}'")
    assert {run.info.run_name for run in below} == {"score/dpo-beta0.1", "judge/dpo-beta0.1"}
    before = rows(results / "mlflow.db")
    Writer(root).replay()
    assert rows(results / "mlflow.db") == before
    follow_port(results, 5123)
    Writer(root).replay()
    assert "http://127.0.0.1:5123/#" in (root / "mlflow.html").read_text()


def test_an_address_that_cannot_work_is_known_at_once():
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        address = f"127.0.0.1:{closed.getsockname()[1]}"
        assert problem_with(f"http://user:secret@{address}") == f"{address} does not answer (Connection refused)"
        closed.listen()
        assert problem_with(f"http://{address}") is None
    assert problem_with("htp://x") == "htp://x begins with htp:, which MLflow does not know"
    assert "names no server" in str(problem_with("http://"))
    assert "is no address" in str(problem_with("http://x:port"))
    for uri in ("sqlite:////tmp/x.db", "/tmp/runs", "file:///tmp/x", "postgresql+psycopg2://h/db", "databricks"):
        assert problem_with(uri) is None


@pytest.mark.parametrize("uri", ["htp://x", "http://127.0.0.1:9"])
def test_a_server_that_does_not_answer_is_not_waited_for(uri: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    """Neither MLflow's retries nor the writer's patience of a minute is spent."""
    root = tmp_path / "results/suite"
    write_sft(root)
    began = time.monotonic()
    assert Writer(root, uri).follow(dead_pid(), poll=0.05) is False
    assert time.monotonic() - began < 5
    assert f"run `prefdag track {root}` once it is reachable" in caplog.text


def test_a_database_that_is_there_is_not_called_unreachable(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    root = tmp_path / "results/suite"
    write_sft(root)
    monkeypatch.setattr(Writer, "_write", lambda _: 1 / 0)
    assert Writer(root, f"sqlite:///{tmp_path}/x.db", patience=0.1).follow(dead_pid(), poll=0.05) is False
    assert caplog.text.rstrip().endswith(f"run `prefdag track {root}`")
