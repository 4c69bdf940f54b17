"""What jobs cost, from journals that a reader can add up."""

import json
from pathlib import Path

from prefdag.cli.main import main
from prefdag.reporting.costs import by_stage, costs


def journal(
    root: Path, stage: str, name: str | None, at: int, seconds: float | None, tokens: dict[int, int], status="finished"
):
    """One attempt: its start, tokens by step, and its end unless it was cut off."""
    lines: list[dict] = [{"event": "start", "stage": stage, "name": name}]
    lines += [{"event": "metrics", "step": step, "values": {"num_tokens": n}} for step, n in tokens.items()]
    lines.append({"event": "metrics", "step": None, "values": {"accuracy": 1.0}})
    if seconds is not None:
        lines.append({"event": "end", "status": status, "seconds": seconds, "peak_memory_mb": 100.0 * seconds})
    folder = root / ".journal"
    folder.mkdir(exist_ok=True)
    stem = "-".join(filter(None, [stage, name, f"20260101T00000000{at}Z", "77"]))
    (folder / f"{stem}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_resumed_training_costs_all_its_attempts_and_counts_a_step_once(tmp_path: Path):
    journal(tmp_path, "preference", "dpo-seed0", 1, 2.0, {1: 10, 2: 20}, "killed")
    journal(tmp_path, "preference", "dpo-seed0", 2, 3.0, {2: 20, 3: 30})
    (row,) = costs(tmp_path)
    assert (row["attempts"], row["seconds"], row["peak_memory_mb"]) == (2, 5.0, 300.0)
    assert (row["steps"], row["tokens"], row["tokens_per_second"]) == (3, 60, 12.0)
    assert row["folder"] == "preference/dpo-seed0" and row["wall_seconds"] is None


def test_a_job_that_was_made_anew_costs_its_last_making(tmp_path: Path):
    """The first making does not count, nor one that never finished; a line that is cut off is passed over."""
    journal(tmp_path, "sft", None, 1, 9.0, {1: 10})
    journal(tmp_path, "sft", None, 2, 4.0, {1: 11})
    journal(tmp_path, "reward", None, 3, None, {1: 5})
    with next((tmp_path / ".journal").glob("sft-*1Z-*")).open("a") as stream:
        stream.write('{"event": "metrics", "st')
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/benchmark.tsv").write_text("s\tcpu_time\n6.5\t4\n")
    (row,) = costs(tmp_path)
    assert (row["stage"], row["seconds"], row["tokens"], row["wall_seconds"]) == ("sft", 4.0, 11, 6.5)


def test_tokens_of_generations_are_those_that_scores_count(tmp_path: Path):
    journal(tmp_path, "generate", "sft@t0.5", 1, 2.0, {})
    (tmp_path / "score/sft@t0.5").mkdir(parents=True)
    (tmp_path / "score/sft@t0.5/scores.csv").write_text("prompt_id,sample,length\n0,0,7\n1,0,5\n")
    (row,) = costs(tmp_path)
    assert (row["tokens"], row["tokens_per_second"], row["steps"]) == (12, 6.0, None)


def test_the_page_and_the_table_are_in_the_suites_folder(tmp_path: Path, capsys):
    journal(tmp_path, "sft", None, 1, 4.0, {1: 11})
    journal(tmp_path, "score", "<b>", 2, 1.0, {})
    assert main(["costs", str(tmp_path)]) == 0
    page = (tmp_path / "costs.html").read_text()
    assert 'href="sft/manifest.json"' in page and "score/&lt;b&gt;" in page and "<b>" not in page
    assert (tmp_path / "costs.csv").read_text().splitlines()[1].startswith("sft,,1,4.0,400.0,1,11,2.75")
    assert [(one["stage"], one["jobs"], one["seconds"]) for one in by_stage(costs(tmp_path))] == [
        ("sft", 1, 4.0),
        ("score", 1, 1.0),
    ]
    assert main(["costs", str(tmp_path / "nowhere")]) == 2
    assert "no journal of a finished job" in capsys.readouterr().err
