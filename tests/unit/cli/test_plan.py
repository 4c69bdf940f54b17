"""`prefdag plan`: the arithmetic by hand, and the table of every shipped suite of a paper."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from test_suites import PAPERS

from conftest import MINI, ROOT
from model_folder import write_model_folder
from prefdag.cli.main import main
from prefdag.cli.plan import disk, job_costs, label_requests
from prefdag.cli.size import H100, parameters_of, sized
from prefdag.config.loading import merge
from prefdag.config.sections.size import Size
from prefdag.config.suite import Suite, resolve
from prefdag.models.loading import build, load_policy

FLOPS, BANDWIDTH = H100.flops, H100.bandwidth
SIZE = {
    "parameters": 1e9,
    "layers": 10,
    "hidden_size": 100,
    "comparisons": 600,
    "prompt_tokens": 10,
    "response_tokens": 20,
}


def suite(**changes: object) -> Suite:
    return resolve(merge(yaml.safe_load(MINI), {"size": SIZE, **changes}), "x.yaml")


def test_by_hand() -> None:
    """Pre-training: 60 steps of 32 blocks of 128 tokens, 6e9 FLOPs a token. SFT: 10 steps of 16 prompts, 30
    tokens each. Preference: 3 runs of 5 steps of 2 pairs.

    Reference: 600 pairs of 50 tokens, forward. Pairs: 600 / 6 prompts, 400 samples 64 at a time, so 7 times 20 steps of
    2 bytes a weight, and 400 prompts of 10 tokens. AdamW holds 16 bytes a weight, activations 34 x 10 x 100 a token.
    """
    costs = {one.stage: one for one in job_costs(suite(), Size.model_validate(SIZE))}
    assert list(costs) == ["pretrain", "sft", "pairs", "reward", "reference", "preference", "generate", "score"]
    assert costs["pretrain"].hours * 3600 == pytest.approx(6e9 * 60 * 32 * 128 / FLOPS)
    assert costs["sft"].hours * 3600 == pytest.approx(6e9 * 160 * 30 / FLOPS)
    assert costs["preference"].hours * 3600 == pytest.approx(3 * 6e9 * 10 * 50 / FLOPS)
    assert costs["reference"].hours * 3600 == pytest.approx(2e9 * 600 * 50 / FLOPS)
    assert costs["pairs"].hours * 3600 == pytest.approx(140 * 2e9 / BANDWIDTH + 2e9 * 400 * 10 / FLOPS)
    assert costs["sft"].gigabytes == pytest.approx((16e9 + 34 * 1000 * 4096) / 1e9)
    assert (costs["preference"].jobs, costs["generate"].jobs) == (3, 5)


def test_pretraining_by_epochs_by_hand() -> None:
    """3 epochs of 100 documents of 10 + 20 + 2 tokens. Blocks of 16 tokens share one with the block before, so three of
    11 tokens in a document, and 300 in an epoch: 57 steps of 16. The world's reviews are documents, else rows are.
    """
    pretrain = {"epochs": 3, "max_steps": None, "batch_size": 16, "max_tokens": 64}
    world = suite(pretrain=pretrain, data={"world": {"reviews": 100}})
    costs = {one.stage: one for one in job_costs(world, Size.model_validate(SIZE))}
    assert costs["pretrain"].hours * 3600 == pytest.approx(6e9 * 19 * 16 * 32 / FLOPS)
    short = suite(pretrain={**pretrain, "max_tokens": 16}, data={"world": {"reviews": 100}})
    costs = {one.stage: one for one in job_costs(short, Size.model_validate(SIZE))}
    assert costs["pretrain"].hours * 3600 == pytest.approx(6e9 * 57 * 16 * 11 / FLOPS)
    data = {"source": "hub:o/n", "train": "x.jsonl", "world": None}
    stated = {"data": data, "pairs": None, "prepare": {"adapter": "pairs"}, "score": {"reward": "trained"}}
    costs = {one.stage: one for one in job_costs(suite(pretrain=pretrain, **stated), Size.model_validate(SIZE))}
    assert costs["pretrain"].hours * 3600 == pytest.approx(6e9 * 113 * 16 * 32 / FLOPS), "600 rows"


def test_adapters_by_hand() -> None:
    """Rank 4, 10 layers of 100: about 4 x 20 x 1000 trained weights of 16 bytes; the base as it is held, or loaded."""
    trained, activations = 4 * 20 * 1000, 34 * 1000 * 10**5
    for base, held in {"float32": 4e9, "bfloat16": 2e9, "nf4": 0.55e9}.items():
        preference = {"adapter": {"rank": 4, "base": base}, "tokens_per_batch": 10**5}
        costs = {one.stage: one for one in job_costs(suite(preference=preference), Size.model_validate(SIZE))}
        assert costs["preference"].gigabytes * 1e9 == pytest.approx(max(4e9, held + 16 * trained + activations))
        assert costs["preference"].hours * 3600 == pytest.approx(3 * 4e9 * 10 * 50 / FLOPS)
        assert costs["sft"].gigabytes > 16
    two = suite(preference={"adapter": {"rank": 4, "target": ["q_proj", "v_proj"]}, "tokens_per_batch": 10**5})
    costs = {one.stage: one for one in job_costs(two, Size.model_validate(SIZE))}
    assert costs["preference"].gigabytes * 1e9 == pytest.approx(4e9 + 16 * 4 * 6 * 1000 + activations)
    saved = disk(suite(), Size.model_validate(SIZE)) - disk(two, Size.model_validate(SIZE))
    assert saved == pytest.approx(3 * 4, rel=1e-2), "of three runs"


def test_on_policy_rows_by_hand() -> None:
    """PPO: 5 rounds of 4 answers of 30 tokens. A round samples 20 steps of 2 bytes a weight and 4 prompts of 10 tokens,
    measures policy, value head and reference, 2 FLOPs a weight and token each, and trains two models twice.

    Online DPO: two answers share a prompt, 50 tokens; log-probs are measured in the one update, and no value head.
    """
    runs = [
        {"name": "ppo", "method": "ppo", "epochs": 2},
        {"name": "dpo", "method": "dpo", "online": {"labels": "soft"}},
    ]
    online = {"batch_size": 4, "max_steps": 5, "learning_rate": 1e-3}
    mine = suite(runs=runs, online=online, grid=[])
    costs = {one.stage: one for one in job_costs(mine, Size.model_validate(SIZE))}
    assert "preference" not in costs and "reference" not in costs
    step = 20 * 2e9 / BANDWIDTH
    ppo = step + 2e9 * 40 / FLOPS + (3 * 2e9 + 2 * 2 * 6e9) * 120 / FLOPS
    assert costs["policy"].hours * 3600 == pytest.approx(5 * ppo)
    assert costs["policy"].gigabytes == pytest.approx((36e9 + 34 * 1000 * 8192) / 1e9)
    dpo = step + 2e9 * 80 / FLOPS + (2e9 + 6e9) * 4 * 50 / FLOPS
    assert costs["online"].hours * 3600 == pytest.approx(5 * dpo)
    assert costs["online"].gigabytes == pytest.approx((20e9 + 34 * 1000 * 8192) / 1e9)


def test_what_is_prepared_counts_instead(tmp_path: Path) -> None:
    totals = {"prompt": {"total": 70}, "chosen": {"total": 30}, "rejected": {"total": 50}}
    audit = {"splits": {"train": {"used": 10, "tokens": totals}}}
    path = tmp_path / "prepare/comparisons/audit.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(audit))
    size, counted = sized(suite(), tmp_path)
    assert (size.comparisons, size.prompt_tokens, size.response_tokens, counted) == (10, 7, 4, "counted by the audit")


def test_a_model_that_is_here_is_measured(tmp_path: Path) -> None:
    """A folder's weights are counted from their headers; a model to build without building it."""
    folder = write_model_folder(tmp_path / "mine", context=64)
    parameters = sum(one.numel() for one in load_policy(folder, torch.device("cpu")).parameters())
    assert parameters_of(folder) == parameters
    local = suite(model={"source": str(folder), "scratch": None}, size=None)
    size, counted = sized(local, tmp_path)
    assert (size.parameters, size.layers, size.hidden_size) == (parameters, 1, 16)
    assert counted == "number and tokens assumed; `prefdag check` counts both" and size.comparisons == 1000
    size, counted = sized(suite(model={"source": str(folder), "scratch": None}), tmp_path)  # of a suite that it extends
    assert (size.parameters, size.comparisons, counted) == (parameters, SIZE["comparisons"], "as the suite states")
    built = suite(size=None).model.scratch
    assert built is not None
    expected = sum(one.numel() for one in build(built, 500, 0, 1, 0).parameters())
    assert sized(suite(size=None), tmp_path)[0].parameters == expected


def test_rows_of_local_files_are_counted(tmp_path: Path) -> None:
    """Without test files a tenth is held out for test and a twentieth for validation: of 200 rows, 20 and 10."""
    row = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})
    (tmp_path / "train.jsonl").write_text(f"{row}\n" * 200)
    (tmp_path / "test.jsonl").write_text(f"{row}\n" * 7)
    folder = write_model_folder(tmp_path / "mine", context=64)

    def comparisons(data: dict[str, object], **changes: object) -> tuple[int, str]:
        values = {"name": "x", "model": {"source": str(folder)}, "data": data, "runs": [{"name": "a", "method": "dpo"}]}
        size, counted = sized(resolve({**values, **changes}, "x.yaml"), tmp_path)
        return size.comparisons, counted

    alone = {"source": str(tmp_path / "train.jsonl")}
    counted = "rows counted, tokens assumed; `prefdag check` counts both"
    assert comparisons(alone) == (170, counted)
    assert comparisons({**alone, "max_rows": 20}) == (17, counted)
    assert comparisons(alone, prepare={"test_fraction": 0.25, "validation_fraction": 0.25}) == (100, counted)
    assert comparisons({"source": str(tmp_path), "train": "train*", "test": "test.jsonl"}) == (190, counted)
    assert comparisons({"source": "hub:owner/name", "train": "*"})[0] == 1000


def test_weights_that_are_links_take_no_space(tmp_path: Path) -> None:
    """Base, SFT, reward and three runs in float32, and one training's state of 12 bytes; an untrained SFT is a link."""
    size = Size.model_validate(SIZE)
    assert disk(suite(), size) == pytest.approx(4 * (1 + 5) + 12)
    assert disk(suite(sft={"max_steps": 0}), size) == pytest.approx(4 * (1 + 4) + 12)


def test_a_hub_model_that_was_not_fetched_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.yaml").write_text(
        MINI.replace("source: scratch", "source: hub:a/b").replace("name: mini", "name: x")
    )
    assert main(["plan", str(tmp_path / "x.yaml")]) == 2
    assert "x: size is missing: run `snakemake --until fetch` first, or state" in capsys.readouterr().err


@pytest.mark.parametrize("name", PAPERS)
def test_the_documented_table_is_what_plan_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(ROOT / f"configs/{name}.yaml")]) == 0
    _, hours, gigabytes = capsys.readouterr().out.splitlines()[-1].split()
    lines = (ROOT / "docs/tutorials/reproduce.md").read_text().splitlines()
    row = next(line for line in lines if line.startswith(f"| `{name}` |"))
    assert row.endswith(f"| {float(hours):.0f} | {gigabytes} |")


def test_reward_models_and_labels_of_rounds_by_hand() -> None:
    """Three rounds of 40 prompts with 3 samples: 3 pairs in 2 orders each; and two rounds of 8 gold labels."""
    judge = {"judges": ["reward", {"model": "m", "prompt": "summarisation-simple"}]}
    rated = {"law": "max_min", "draws": 3, "max_prompts": 40, "reward": "judge:m"}
    row = {"method": "dpo", "pairs": "max_min", "discriminator": {"gold_pairs": 8, "gold": "judge:m"}}
    rows = [{"name": "a", "method": "dpo", "rounds": 3, "pairs": rated}, {"name": "b", "rounds": 2, **row}]
    one = suite(judge=judge, runs=rows)
    assert label_requests(one, "m") == 3 * 40 * 6 + 2 * 2 * 8 and label_requests(one, "other") == 0
    costs = {cost.stage: cost for cost in job_costs(one, Size.model_validate(SIZE))}
    assert costs["discriminator"].jobs == 2
    assert costs["discriminator"].hours == pytest.approx(2 * costs["reward"].hours)
