"""`sft.data`: rows for SFT alone, from the suite's keys to the jobs that read them."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import MINI, ROOT
from prefdag.config import jobs
from prefdag.config.loading import merge
from prefdag.config.suite import ExactSuite, Suite, read_suite, resolve
from prefdag.data.preflight import check_first_rows
from prefdag.errors import UserError
from prefdag.planning.graph import inputs_of, jobs_of

PAIRS = {
    "data": {"source": "pairs.jsonl", "world": None},
    "prepare": {"adapter": "pairs", "template": "plain", "test_fraction": 0.2},
    "pairs": None,
}
CHATS = {"source": "chats.jsonl", "adapter": "demonstrations", "template": "continuation"}


def suite(data: dict[str, Any] | None, /, **sections: Any) -> Suite:
    values = merge(merge(yaml.safe_load(MINI), PAIRS), {"seed": 7, **({"sft": {"data": data}} if data else {})})
    resolved = resolve(merge(values, sections), "configs/x.yaml")
    assert isinstance(resolved, Suite)
    return resolved


def config(resolved: Suite, stage: str, name: str | None = None) -> dict[str, Any]:
    read: dict[str, Any] = json.loads(jobs.config_of(resolved, stage, name))
    return read


def test_only_the_demonstrations_are_made_of_these_rows():
    source, shared = suite(CHATS), suite(None)
    assert set(jobs_of(source)) - set(jobs_of(shared)) == {"fetch/sft_data"}
    places = {job: job.split("/") for job in jobs_of(shared)}
    differ = [job for job, place in places.items() if inputs_of(source, *place) != inputs_of(shared, *place)]
    assert differ == ["prepare/demonstrations"]
    assert inputs_of(source, "prepare", "demonstrations")["rows"] == ["fetch/sft_data"]
    assert inputs_of(source, "prepare", "comparisons")["demonstrations"] == ["prepare/demonstrations"]


def test_each_job_sees_what_it_reads():
    """SFT's job has no `data`, and `fetch` neither adapter nor template: another adapter fetches nothing again."""
    source, shared = suite(CHATS), suite(None)
    for stage, name in (("sft", None), ("fetch", "data"), ("prepare", "comparisons"), ("pretrain", None)):
        assert config(source, stage, name) == config(shared, stage, name)
    fetched = config(source, "fetch", "sft_data")["sft_data"]
    assert fetched == {**config(shared, "fetch", "data")["data"], "source": "chats.jsonl"} and fetched["seed"] == 7
    stated, demonstrations = (config(source, "prepare", name)["prepare"] for name in ("comparisons", "demonstrations"))
    changes = {"adapter": "demonstrations", "template": "continuation", "test_fraction": 0.0}
    assert demonstrations == {**stated, **changes}
    like_prepare = config(suite({"source": "chats.jsonl"}), "prepare", "demonstrations")["prepare"]
    assert like_prepare == {**stated, "test_fraction": 0.0}


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_jobs_of_shipped_suites_do_not_know_the_key(path: Path):
    shipped = read_suite([str(path)])
    if isinstance(shipped, ExactSuite) or shipped.sft.data is not None:
        return
    assert "fetch/sft_data" not in jobs_of(shipped) and "data" not in config(shipped, "sft")["sft"]
    assert config(shipped, "prepare", "demonstrations")["prepare"] == shipped.prepare.model_dump(mode="json")


def test_paths_are_relative_to_the_suite_and_hub_sources_are_locked():
    data = {"source": "hub:o/chats", "train": "a.parquet", "adapter": "mine.py:chat", "template": "source.jinja"}
    source = suite(data)
    files = (Path("configs/mine.py"), Path("configs/source.jinja"))
    assert jobs.user_files_of(source, "prepare", "demonstrations") == files
    assert jobs.user_files_of(source, "prepare", "comparisons") == ()
    assert jobs.lock_of(source, "sft_data") == "configs/mini.lock.json" and jobs.lock_of(source, "data") is None


@pytest.mark.parametrize(
    ("sft", "sentence"),
    [
        ({"data": {**CHATS, "adapter": "demonstration"}}, "sft.data.adapter: expected one of world, hh"),
        ({"data": {**CHATS, "template": "chatty"}}, "sft.data.template: expected one of continuation"),
        ({"data": {"source": "chats", "train": "a", "test": "b"}}, "sft.data.test: nothing reads it"),
        ({"data": CHATS, "max_steps": 0}, "sft.data: nothing trains on it while max_steps is 0"),
        ({"data": {**CHATS, "sourse": "x"}}, "sft.data.sourse: unknown key; did you mean `source`?"),
        ({"data": {"adapter": "pairs"}}, "sft.data.source: missing"),
        ({"data": "chats.jsonl"}, "sft.data: expected keys and values"),
        ({"data": {**CHATS, "source": "~/chats.jsonl"}}, "sft.data.source: `~` is not expanded"),
    ],
)
def test_mistakes_are_sentences(sft: dict[str, Any], sentence: str):
    with pytest.raises(UserError) as error:
        suite(None, sft=sft)
    assert sentence in str(error.value) and "\n" not in str(error.value)


def test_rows_that_its_adapter_cannot_read_are_refused_at_plan_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    pairs = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(9)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    Path("chats.jsonl").write_text(json.dumps({"prompt": "p", "response": "a"}) + "\n")
    with pytest.raises(UserError, match=r"chats.jsonl: 1 different prompts, but at least 2 are needed"):
        check_first_rows(suite(CHATS))
    with pytest.raises(UserError, match=r"chats.jsonl: the adapter `hh` can use none .* correct sft.data.adapter or"):
        check_first_rows(suite({**CHATS, "adapter": "hh"}))
    Path("chats.jsonl").write_text("".join(json.dumps({"prompt": f"p{n}", "response": "a"}) + "\n" for n in range(2)))
    check_first_rows(suite(CHATS))
