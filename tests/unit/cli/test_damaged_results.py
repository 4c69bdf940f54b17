"""Results that were damaged after their stage had finished: each command says one sentence, without a traceback."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from manifests import bare
from prefdag.cli.main import main
from prefdag.errors import UserError
from prefdag.provenance.journal import read_journal
from prefdag.provenance.manifest import MANIFEST, describe, read_manifest

NO_MANIFESTS = {
    "{}": "stage, facts, code, config, inputs, files missing or damaged",
    "[]": "was changed since it was written",
    "null": "was changed since it was written",
    "3": "was changed since it was written",
    "": "broken JSON",
    '{"stage"': "broken JSON",
    "\xff": "broken JSON",
    '{"other": 1}': "was changed since it was written",
    bare(files=None): "files missing or damaged",
    bare(files={"a": {"size": 1}}): "files missing or damaged",
    bare(files={"a": []}): "files missing or damaged",
    bare(config=[]): "config missing or damaged",
    bare(facts="x"): "facts missing or damaged",
    bare(stage=None, inputs=3): "stage, inputs missing or damaged",
}


def refusal(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one sentence of a command that refuses."""
    capsys.readouterr()
    assert main([*words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("prefdag: ")


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """results/toy: a run `dpo` and SFT with scores and answers, the table of runs, and a journal."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///none.db")
    root = Path("results/toy")
    files = {
        "score/{}/scores.csv": "prompt_id,sample,reward,length\n0,0,1,2\n1,0,2,2\n",
        "generate/{}/generations.jsonl": '{"prompt_id": 0, "sample": 0, "prompt": "p", "response": "r"}\n',
        "judge/{}/summary.json": '{"held_against": "sft"}',
        "report/runs.csv": "run,reward,reward_low,reward_high,kl,kl_se,length,win_rate,win_low,win_high\n"
        "dpo,0.5,0.4,0.6,2,0.1,30,0.6,0.5,0.7\n",
    }
    for place, text in files.items():
        for name in ("dpo", "sft") if "{}" in place else ("",):
            path = root / place.format(name)
            path.parent.mkdir(parents=True)
            path.write_text(text)
            (path.parent / MANIFEST).write_bytes(describe(path.parent, path.parts[2], {}, {}, {}, None))
    for folder in ("sft", "preference/dpo", "fetch/data"):
        (root / folder).mkdir(parents=True)
        (root / folder / MANIFEST).write_bytes(describe(root / folder, folder.partition("/")[0], {}, {}, {}, None))
    (root / ".journal").mkdir()
    (root / ".journal/sft-20260101T000000000Z-7.jsonl").write_text("".join(json.dumps(one) + "\n" for one in EVENTS))
    return root


EVENTS: list[dict] = [
    {"event": "start", "time": 1.0, "id": "sft-20260101T000000000Z-7", "suite": "toy", "stage": "sft", "name": None}
    | {"config": {}, "inputs": {}, "code": "c", "host": "h", "pid": 7, "git": None},
    {"event": "metrics", "time": 2.0, "step": 1, "values": {"num_tokens": 5}},
    {"event": "end", "time": 3.0, "status": "finished", "error": None, "manifest": None, "seconds": 1.0}
    | {"peak_memory_mb": 2.0},
]


@pytest.mark.parametrize("text", NO_MANIFESTS, ids=[*map(str, range(len(NO_MANIFESTS)))])
def test_what_is_no_manifest_is_refused_with_what_to_do(text: str, tmp_path: Path):
    path = tmp_path / MANIFEST
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as error:
        read_manifest(path)
    assert str(error.value).startswith(f"{path}: ") and str(error.value).endswith("; delete it and rerun its stage")
    assert NO_MANIFESTS[text] in str(error.value)


@pytest.mark.parametrize(
    ("words", "path"),
    [
        (["compare", "dpo", "sft", "--results", "results/toy"], "preference/dpo"),
        (["compare", "dpo", "sft", "--results", "results/toy"], "generate/sft"),
        (["export", "dpo"], "preference/dpo"),
        (["register", "dpo"], "preference/dpo"),
        (["runs", "toy"], "report"),
    ],
)
def test_commands_name_the_manifest_that_is_damaged(
    words: list[str], path: str, results: Path, capsys: pytest.CaptureFixture[str]
):
    (results / path / MANIFEST).write_text("{}")
    sentence = refusal(capsys, *words)
    assert sentence.startswith(f"{results / path / MANIFEST}: not a manifest (")
    assert sentence.endswith("; delete it and rerun its stage")


@pytest.mark.parametrize("text", ["", "{}", "[1]\n", "null\n", "run\n", "\0"])
@pytest.mark.parametrize("path", ["report/runs.csv", "judge/dpo/summary.json"])
def test_the_table_of_runs_is_that_of_the_report(
    path: str, text: str, results: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["runs", "toy"]) == 0
    for one in ("dpo", "sft"):
        (results / path.replace("dpo", one)).write_text(text)
    sentence = refusal(capsys, "runs", "toy")
    assert str(results) in sentence and "manifest.json" in sentence and sentence.endswith("and rerun")


@pytest.mark.parametrize("text", ["{}\n", "[]\n", '{"prompt_id"\n', "\xff\n", '{"prompt_id": [], "sample": 0}\n'])
def test_damaged_answers_cannot_be_compared(text: str, results: Path, capsys: pytest.CaptureFixture[str]):
    assert main(["compare", "dpo", "sft", "--bootstrap", "10"]) == 0
    path = results / "generate/dpo/generations.jsonl"
    path.write_bytes(text.encode("latin-1"))
    wanted = f"{path}: not the answers of a policy, a line each; delete it and generate again"
    assert refusal(capsys, "compare", "dpo", "sft") == wanted
    scores = results / "score/dpo/scores.csv"
    scores.write_bytes(text.encode("latin-1"))
    assert refusal(capsys, "compare", "dpo", "sft").startswith(f"{scores}: not a table of scores")


def without(number: int, key: str) -> Callable[[list[dict]], None]:
    return lambda events: events[number].pop(key)


def holding(number: int, key: str, value: object) -> Callable[[list[dict]], None]:
    return lambda events: events[number].update({key: value})


DAMAGES = [without(0, "stage"), without(0, "name"), holding(0, "stage", None), holding(0, "name", [])]
DAMAGES += [without(1, "values"), holding(1, "values", 3), holding(1, "step", "x")]
DAMAGES += [holding(1, "values", {"num_tokens": value}) for value in (None, "7", [7])]
DAMAGES += [without(2, "status"), without(2, "seconds"), holding(2, "peak_memory_mb", None)]


@pytest.mark.parametrize("damage", DAMAGES)
def test_costs_name_a_damaged_journal(
    damage: Callable[[list[dict]], None], results: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["costs", "results/toy"]) == 0
    (path,) = (results / ".journal").iterdir()
    events = json.loads(json.dumps(EVENTS))
    damage(events)
    path.write_text("".join(json.dumps(one) + "\n" for one in events))
    assert refusal(capsys, "costs", "results/toy") == f"{path}: damaged; delete it to leave this attempt of its job out"


@pytest.mark.parametrize("line", ['{"event": "start", x\n', '{"event": "end"}\n', "\xff\n"])
def test_costs_name_a_journal_with_a_damaged_line(line: str, results: Path, capsys: pytest.CaptureFixture[str]):
    (path,) = (results / ".journal").iterdir()
    path.write_bytes(line.encode("latin-1"))
    assert refusal(capsys, "costs", "results/toy").startswith(f"{path}: damaged; ")


def test_costs_read_past_a_journal_of_another_name(results: Path):
    (results / ".journal/notes.jsonl").write_text("{}\n")
    assert main(["costs", "results/toy"]) == 0


def test_costs_name_a_damaged_table_of_times(results: Path, capsys: pytest.CaptureFixture[str]):
    for text in ("s\tcpu\nx\ty\n", "other\n1\n", "s\tcpu\n\n"):
        (results / "sft/benchmark.tsv").write_text(text)
        if text.endswith("\n\n"):
            assert main(["costs", "results/toy"]) == 0, "no line yet"
        else:
            assert refusal(capsys, "costs", "results/toy").startswith(f"{results}/sft/benchmark.tsv: not Snakemake's")


@pytest.mark.parametrize("number", range(len(EVENTS)))
def test_the_tracker_leaves_out_an_event_without_one_of_its_keys(
    number: int, results: Path, caplog: pytest.LogCaptureFixture
):
    """Each key of each event: missing, or of another type. What is left is tracked."""
    path = results / ".journal/sft-20260101T000000000Z-7.jsonl"
    for key, value in EVENTS[number].items():
        without_key = {name: other for name, other in EVENTS[number].items() if name != key}
        for event in (without_key, {**EVENTS[number], key: 1 if isinstance(value, dict) else {"a": 1}}):
            caplog.clear()
            path.write_text("".join(json.dumps(one) + "\n" for one in (event, *EVENTS)))
            assert read_journal(path)[0] == EVENTS
            assert "byte 0: JSON, but no event of a journal; this line is left out" in caplog.text
