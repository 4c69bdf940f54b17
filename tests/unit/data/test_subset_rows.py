"""Subsets that the rows of `evaluate_reward` do not have are refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MINI
from manifests import bare
from prefdag.cli.main import main
from prefdag.config import jobs
from prefdag.config.loading import merge
from prefdag.config.suite import Suite, resolve
from prefdag.data.preflight import check_new_rows, check_subsets
from prefdag.errors import UserError
from prefdag.planning.graph import made_before
from preparing import byte_tokenizer, write_rows

COLUMNS = "prompt, chosen, rejected, kind"


def rows(num: int, kind: str = "easy") -> list[dict[str, Any]]:
    return [{"prompt": f"p{n}", "chosen": "a", "rejected": "b", "kind": kind} for n in range(num)]


def suite(sets: dict[str, Any], data: Path | None = None) -> Suite:
    """The embedded suite, which samples pairs; with `data` one of the pairs in a file."""
    changes: dict[str, Any] = {"evaluate_reward": sets}
    if data is not None:
        stated = {"source": str(data), "world": None}
        changes |= {"data": stated, "prepare": {"adapter": "pairs"}, "pairs": None, "score": {"reward": "trained"}}
    resolved = resolve(merge(yaml.safe_load(MINI), changes), "x.yaml")
    assert isinstance(resolved, Suite)
    return resolved


def refusal(checked: Suite) -> str:
    with pytest.raises(UserError) as error:
        check_subsets(checked)
    return str(error.value)


def test_columns_that_local_rows_lack_are_refused_while_a_run_is_planned(tmp_path: Path):
    """Of a set's file and of the suite's own rows, a line each; an unusable row is not asked for its columns."""
    bench, data = (
        write_rows(tmp_path / "bench.jsonl", [{"note": 1}, *rows(9)]),
        write_rows(tmp_path / "x.jsonl", rows(9)),
    )
    stated = {"source": str(bench)}
    check_subsets(suite({"bench": {**stated, "subset": "kind"}, "test": {"subset": "kind"}}, data))
    wrong = suite({"bench": {**stated, "subset": "knd"}, "test": {"subset": ["kind", "harm"]}}, data)
    first, second = refusal(wrong).split("\n")
    assert first == f"evaluate_reward.bench.subset: {bench}: row 2: no column 'knd'; `subset` may name {COLUMNS}"
    assert second == f"evaluate_reward.test.subset: {data}: row 1: no column 'harm'; `subset` may name {COLUMNS}"


def test_subsets_that_no_local_row_has_are_refused_while_a_run_is_planned(tmp_path: Path):
    """The last of 500 rows is enough for a subset; the sentence names the section and what there is."""
    bench = write_rows(tmp_path / "bench.jsonl", [*rows(500), *rows(1, "hard")])
    one = {"source": str(bench), "subset": "kind", "sections": {"chat": ["easy", "hard"]}}
    check_subsets(suite({"bench": one}))
    assert refusal(suite({"bench": {**one, "sections": {"chat": ["easy", "hrad"]}}})) == (
        "evaluate_reward.bench.sections.chat: no comparison is of the subset 'hrad'; "
        "they have easy, hard: correct the name, or leave it out"
    )


def test_planning_reads_what_the_outdated_jobs_read(tmp_path: Path):
    wrong = suite({"test": {"subset": "harm"}}, write_rows(tmp_path / "x.jsonl", rows(9)))
    check_new_rows(wrong, ["fetch/data", "sft"])
    with pytest.raises(UserError, match="no column 'harm'"):
        check_new_rows(wrong, ["evaluate_reward/test"])


def test_sft_waits_for_the_sets_that_need_no_policy(tmp_path: Path):
    """Also where the suite's own comparisons are sampled from SFT, and so come after it."""
    bench = {"bench": {"source": "hub:o/n", "file": "x.json", "subset": "kind"}}
    assert made_before(suite(bench), "sft") == ["prepare/evaluated-bench"]
    assert made_before(suite(bench), "reward") == []
    assert "prepare/evaluated-bench" in made_before(suite(bench, write_rows(tmp_path / "x.jsonl", rows(9))), "sft")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"subset": "kind", "sections": {"chat": ["easy"]}}, ""),
        ({"subset": "knd"}, f"evaluate_reward.bench.subset: {{}}: row 1: no column 'knd'; `subset` may name {COLUMNS}"),
        (
            {"subset": "kind", "sections": {"chat": ["esay"]}},
            "evaluate_reward.bench.sections.chat: no comparison is of ",
        ),
    ],
)
def test_the_job_that_prepares_a_set_refuses_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], sentence: str
):
    source = write_rows(tmp_path / "bench.jsonl", rows(3))
    stated, fetched = suite({"bench": {"source": str(source), **changes}}), tmp_path / "fetch/evaluated-bench"
    config = jobs.config_of(stated, "fetch", "evaluated-bench")
    assert main(["fetch", "--config", config, "--output", str(fetched / "manifest.json")]) == 0
    byte_tokenizer().save_pretrained(tmp_path / "fetch/model/tokenizer")
    (tmp_path / "fetch/model/manifest.json").write_text(bare("fetch"))
    command = ["prepare", "--config", jobs.config_of(stated, "prepare", "evaluated-bench")]
    command += ["--rows", str(fetched / "manifest.json"), "--tokenizer", str(tmp_path / "fetch/model/manifest.json")]
    capsys.readouterr()
    code = main([*command, "--output", str(tmp_path / "prepare/evaluated-bench/manifest.json")])
    assert code == (2 if sentence else 0)
    lines = [line for line in capsys.readouterr().err.splitlines() if "evaluate_reward" in line]
    assert len(lines) == bool(sentence)
    assert sentence.format(fetched / "train.jsonl") in "".join(lines)
