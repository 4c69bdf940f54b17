"""The benchmark: what it runs on, that every rung computes the same, and what its table says."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from benchmarks import __main__ as program
from benchmarks import arms, gpu, measure, micro
from benchmarks.arms import Arm, Cell
from benchmarks.cells import Length, best, interleaved, ratios
from benchmarks.config import Benchmark
from benchmarks.ladder import RUNGS
from benchmarks.memory import Phase
from benchmarks.page import as_markdown, speedups
from benchmarks.shapes import LONGEST, PROFILES, SHAPES, write_ids, write_model
from benchmarks.work import flops_of_pair, padded_flops_of_pair, tokens_of_pair
from prefdag.data.token_store import Comparison
from prefdag.errors import Stopped, UserError
from prefdag.models.loading import load_policy
from prefdag.models.packing import pack

ROOT = Path(__file__).parents[3]
NONE: dict[str, list[float]] = {"losses": [], "grad_norms": []}
RESULT = dict.fromkeys(("pairs_per_s", "peak_rss_mb", "start_rss_mb", "gemm_gflops", "stolen"), 1.0)
RESULT |= {"device": "cpu", "peak_cuda_mb": None}
TINY: dict[str, int | bool] = {"vocab_size": 300, "hidden_size": 32, "intermediate_size": 64}
TINY |= {"num_hidden_layers": 2, "num_attention_heads": 2}
CELL = Cell("small", "hh", "dpo", Path("model"), Path("ids.jsonl"))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SHAPES, "tiny", ("llama", TINY))
        return write_model("tiny", tmp_path_factory.mktemp("shape") / "tiny")


@pytest.mark.parametrize(("profile", "sharing"), [("hh", 1.57), ("ultrafeedback", 1.18), ("tldr", 1.84)])
def test_profiles_share_prompts_as_the_data_do(profile: str, sharing: float):
    """(2P + C + R) / (P + C + R): how much a prompt written once saves."""
    lengths = PROFILES[profile](384)
    assert (lengths > 0).all() and lengths.sum(1).max() <= LONGEST
    assert (lengths.sum() + lengths[:, 0].sum()) / lengths.sum() == pytest.approx(sharing, abs=0.03)


def test_samples_are_all_pairs_of_a_prompt(tmp_path: Path):
    """Steps of 6 pairs are whole prompts; the least work is one packed prompt with its four samples, over 6 pairs."""
    ids = write_ids("samples", 300, 12, tmp_path / "ids.jsonl")
    rows = [json.loads(line) for line in ids.read_text().splitlines()]
    sizes = np.array([[len(part) for part in row.values()] for row in rows])
    assert (sizes == PROFILES["samples"](12)).all() and set(sizes[:, 0]) == {8} and sizes[:, 1:].min() >= 64
    for step in (rows[:6], rows[6:]):
        assert len({tuple(row["prompt_ids"]) for row in step}) == 1
        texts = [tuple(row[name]) for row in step for name in ("chosen_ids", "rejected_ids")]
        assert sorted(texts.count(text) for text in set(texts)) == [3, 3, 3, 3]
    four = [[len(text) for text in dict.fromkeys(texts)]]
    width, vocabulary, token = 256, 4096, 4 * (4 * 256**2 + 3 * 256 * 1024)
    seen = sum(36 + sum(size * 8 + size * (size + 1) / 2 for size in part) for part in four)
    least = 6 * (token * (8 + sum(four[0])) + width * vocabulary * sum(four[0]) + 8 * width * seen) / 6
    alone = [flops_of_pair("small", "samples", "dpo", num) * num for num in (6, 12)]
    assert alone[1] - alone[0] == pytest.approx(6 * least)
    assert flops_of_pair("small", "samples", "reference", 12) == pytest.approx(alone[1] / 36)


@pytest.mark.parametrize("task", ["dpo", "reference"])
def test_only_pairs_that_steps_read_are_computed(
    task: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """Two steps of 2 pairs from a file of 20: four comparisons pass through the reference, and losses are the same."""
    sizes = list[int]()

    def counted(model: PreTrainedModel, store: Sequence[Comparison], *rest: object) -> int:
        sizes.append(len(store))
        return write_cache(model, store, *rest)

    write_cache = micro.write_cache
    monkeypatch.setattr(micro, "write_cache", counted)
    losses = []
    for num in (20, 4):
        ids = write_ids("hh", 300, num, tmp_path / f"{num}.jsonl")
        argv = ["--model", str(model_folder), "--ids", str(ids), "--pairs-per-step", "2", "--steps", "2"]
        assert micro.main([*argv, "--task", task]) == 0
        losses.append(json.loads(capsys.readouterr().out)["losses"])
    assert losses[0] == losses[1]
    assert sizes == ([4, 4] if task == "dpo" else [])


def test_every_rung_computes_the_same(model_folder: Path):
    """Log-probs of a step of 6 pairs, response by response, to float32's last digits of sums near -400."""
    draw = np.random.default_rng(0)
    step = [
        Comparison(*(draw.integers(2, 300, draw.integers(1, 60)) for _ in range(1)), _responses(draw)) for _ in range(6)
    ]
    result = {}
    for name, rung in RUNGS.items():
        model = load_policy(model_folder, torch.device("cpu"))
        if name in ("naive", "sorted", "completion"):
            model.set_attn_implementation("sdpa")
        totals = torch.zeros(len(step), 2)
        with torch.no_grad():
            for taken, policy in rung(model, step, 256):
                totals[taken] = policy.total
        result[name] = totals
    for name, totals in result.items():
        torch.testing.assert_close(totals, result["naive"], rtol=2e-6, atol=2e-4, msg=name)


def _responses(draw: np.random.Generator) -> tuple[np.ndarray, ...]:
    return tuple(draw.integers(2, 300, draw.integers(1, 50)).astype(np.int32) for _ in range(2))


def test_rungs_train_alike(model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Three steps from the plain rung and from the product: losses within 1e-5, the first ln 2."""
    ids = write_ids("hh", 300, 6, tmp_path / "ids.jsonl")
    losses, norms = {}, {}
    for rung in ("completion", ""):
        rung_option = ["--rung", rung] if rung else []
        argv = ["--model", str(model_folder), "--ids", str(ids), "--pairs-per-step", "2", "--steps", "3", *rung_option]
        assert micro.main([*argv, "--learning-rate", "1e-4"]) == 0
        output = json.loads(capsys.readouterr().out)
        losses[rung], norms[rung] = output["losses"], output["grad_norms"]
    assert losses["completion"] == pytest.approx(losses[""], abs=1e-5)
    assert norms["completion"] == pytest.approx(norms[""], rel=1e-3) and len(norms[""]) == 3
    assert losses[""][0] == pytest.approx(np.log(2), abs=1e-6)
    assert losses[""][0] != losses[""][2]


@pytest.mark.parametrize("shape", ["small", "pythia-14m", "qwen2-style"])
@pytest.mark.parametrize("task", ["dpo", "reward", "sft", "reference"])
def test_the_least_work_is_what_torch_counts(
    shape: str, task: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of a pair of 5, 3 and 2 tokens, packed or padded: a forward pass, and 4 d for each key that a query may see."""
    kind, sizes = SHAPES[shape]
    monkeypatch.setitem(SHAPES, shape, (kind, {**sizes, "vocab_size": 300, "num_hidden_layers": 2}))
    monkeypatch.setitem(PROFILES, "one", lambda num: np.array([[5, 3, 2]] * num))
    model = load_policy(write_model(shape, tmp_path / "model"), torch.device("cpu"))
    width, responses = int(sizes["hidden_size"]), [3] if task == "sft" else [3, 2]
    products = counted_products(model, [(5, *responses)], 0 if task == "reward" else sum(responses))
    seen = 15 + sum(size * 5 + size * (size + 1) // 2 for size in responses)
    assert flops_of_pair(shape, "one", task, 2) == (1 if task == "reference" else 3) * (products + 8 * width * seen)
    assert tokens_of_pair("one", task, 2) == (8 if task == "sft" else 15)
    for read in (5, 16):  # padded: two rows of 8, each token seeing those before it
        products = counted_products(model, [(5, 3), (5, 3)], read)
        result = padded_flops_of_pair(shape, "one", 2, responses_only=read == 5)
        assert result == 3 * (products + 8 * width * 2 * 36)


def counted_products(model: PreTrainedModel, lengths: Sequence[Sequence[int]], read: int) -> int:
    """FLOPs of the forward pass over comparisons of such lengths, but attention's; the head reads so many positions."""
    pairs = [Comparison(np.arange(size), tuple(np.arange(each) for each in rest)) for size, *rest in lengths]
    segments = pack(pairs)
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        states = model.base_model(
            segments.tokens, position_ids=segments.positions, segments=segments
        ).last_hidden_state.flatten(0, 1)
        if read:
            model.get_output_embeddings()(states[torch.arange(read) % len(states)])
    return sum(number for name, number in counted.get_flop_counts()["Global"].items() if "attention" not in str(name))


def test_a_rung_is_of_dpo(model_folder: Path):
    with pytest.raises(UserError, match="the rungs are of --task dpo, got sft"):
        micro.main(["--model", str(model_folder), "--ids", "x", "--rung", "naive", "--task", "sft"])


def test_a_phase_counts_its_own_memory_alone():
    """96 MB that an earlier phase used and freed count for nothing; 32 MB of this one do, though freed as well."""
    phase = Phase()
    for size in (96, 32):
        phase.begin()
        torch.ones(size << 18).sum()
        assert size - 2 < phase.peak_mb - phase.start_mb < size + 24


def runs(**speeds: list[float]) -> pd.DataFrame:
    """Two rounds of each arm; losses that agree, but those of `off`."""
    keys = {"shape": "small", "profile": "hh", "task": "dpo", "gemm_gflops": 200.0, "stolen": 0.01, "device": "cpu"}
    keys |= {"useful_tokens_per_s": 1500.0, "of_product_speed": 0.8, "arithmetic": float("nan")}
    rows = [
        {
            **keys,
            "arm": arm,
            "round": turn,
            "pairs_per_s": speed,
            "memory_added_mb": 100.0 if arm == "prefdag" else 400.0,
            "losses": [0.6931, 0.7] if arm == "off" else [0.6931, 0.69],
            "grad_norms": [1.0, 2.01] if arm == "steep" else [1.0, 2.0],
        }
        for arm, values in speeds.items()
        for turn, speed in enumerate(values)
    ]
    return pd.DataFrame(rows)


def test_ratios_are_taken_round_by_round():
    """24 / 6 and 20 / 4: median 4.5, between 4 and 5, though the machine's speed changed; memory 100 / 400."""
    row = ratios(runs(prefdag=[24.0, 20.0], plain=[6.0, 4.0])).iloc[0]
    assert (row["arm"], row["speedup"], row["lowest"], row["highest"]) == ("plain", 4.5, 4.0, 5.0)
    assert (row["memory"], bool(row["agrees"])) == (0.25, True)


def test_a_speed_up_over_other_losses_is_void():
    result = ratios(runs(prefdag=[2.0, 2.0], off=[1.0, 1.0]))
    assert not result.iloc[0]["agrees"]
    assert result.iloc[0]["largest_difference"] == pytest.approx(0.01)
    assert "**void**" in as_markdown(result, runs(prefdag=[2.0], off=[1.0]), Benchmark(), {})
    assert not ratios(runs(prefdag=[2.0, 2.0], steep=[1.0, 1.0])).iloc[0]["agrees"], "gradients half a percent apart"
    half = runs(prefdag=[2.0, 2.0], off=[1.0, 1.0]).assign(device="cuda")
    half["losses"] = [[0.6931, 0.7001], [0.6931, 0.7], [0.6931, 0.7], [0.6931, 0.7]]
    assert ratios(half).iloc[0]["agrees"], "in bf16 a loss is known to two digits"


def test_the_table_and_the_figure_name_every_cell():
    table = runs(prefdag=[24.0, 20.0], naive=[6.0, 4.0], completion=[8.0, 8.0])
    table.loc[table["arm"] == "naive", "arithmetic"] = 1.5
    page = as_markdown(ratios(table), table, Benchmark(), {"torch": "2.13.0"})
    assert "| small | hh | dpo | padded, all logits | 4.5 (4.0 to 5.0) | 0.25 | 0.0e+00, +0.0e+00 | 0.0e+00 |" in page
    assert "| dpo | padded, all logits | 1 | 4.5 | 4.5 | 0.25 | 0.25 |" in page
    assert "| small, hh, dpo | 22.00 | 1,500 | 80% | 1.5 |" in page
    axes = speedups(ratios(table)).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["small, hh, dpo"]


def test_arms_are_interleaved(monkeypatch: pytest.MonkeyPatch):
    calls = []

    def ran(arm: Arm, *_: object) -> dict:
        calls.append(arm.name)
        return {**RESULT, **NONE}

    monkeypatch.setattr("benchmarks.cells.run", ran)
    list(interleaved(CELL, [Arm("prefdag"), Arm("naive", rung="naive")], Length(2, 3, 4, 1)))
    assert calls == ["prefdag", "naive", "prefdag", "naive"]


def test_a_cell_that_was_measured_is_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Stopped at the second of two cells; the next run measures that one alone."""
    measurements = []

    def ran(arm: Arm, cell: Cell, *_: object) -> dict:
        if cell.shape == "pythia-14m" and "stopped" not in measurements:
            measurements.append("stopped")
            raise Stopped(15)
        assert cell.model.is_dir() and cell.ids.is_file()
        measurements.append(cell.name)
        return {**RESULT, **NONE}

    for shape in ("small", "pythia-14m"):
        monkeypatch.setitem(SHAPES, shape, ("llama", TINY))
    monkeypatch.setattr("benchmarks.cells.run", ran)
    settings = tmp_path / "settings.yaml"
    settings.write_text("{shapes: [small, pythia-14m], trl: false, rounds: 1}")
    arguments = [str(settings), "--output", str(tmp_path / "output")]
    with pytest.raises(Stopped):
        program.main(arguments)
    assert program.main(arguments) == 0
    assert measurements == [*["small/hh/dpo"] * 6, "stopped", *["pythia-14m/hh/dpo"] * 6]
    assert list(pd.read_csv(tmp_path / "output/runs.csv")["shape"]) == ["small"] * 6 + ["pythia-14m"] * 6


def test_tuning_takes_the_fastest(monkeypatch: pytest.MonkeyPatch):
    def ran(arm: Arm, *_: object) -> dict:
        return {**RESULT, "pairs_per_s": {1: 2.0, 2: 5.0, 4: 3.0}[arm.per_device], **NONE}

    monkeypatch.setattr("benchmarks.cells.run", ran)
    assert best(CELL, "trl-tuned", [(1, False), (2, True), (4, False)], Length(1, 3, 4, 1)).per_device == 2


def test_an_arm_that_fails_says_its_last_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Arm, "command", lambda *_: ["sh", "-c", "echo first >&2; echo the reason >&2; exit 3"])
    with pytest.raises(UserError, match=r"small/hh/dpo, prefdag: failed \(the reason\)"):
        arms.run(Arm("prefdag"), CELL, 4, 3, 1)


def test_a_missing_peer_is_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "_version", lambda name: "missing")
    with pytest.raises(UserError, match="trl is not installed"):
        measure._check_peer()


def test_the_gpus_form_writes_every_part_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Where there is no GPU, on a tiny shape and without TRL."""
    monkeypatch.setitem(SHAPES, "small", ("llama", TINY))
    monkeypatch.setattr(sys, "argv", ["gpu.py", str(tmp_path), "--parts", "half", "large", "--shape", "small"])
    monkeypatch.setitem(gpu.PARTS, "large", {**gpu.PARTS["large"], "pairs_per_step": 4, "threads": 1})
    assert gpu.main() == 0
    half = pd.read_csv(tmp_path / "half.csv").iloc[0]
    assert half["shape"] == "small" and 0 < half["logprobs"] <= 2 and 0 < half["gradients"] <= 2
    (run,) = pd.read_csv(tmp_path / "large/runs.csv").to_dict("records")
    assert (run["arm"], run["shape"]) == ("prefdag", "small") and run["pairs_per_s"] > 0
    assert (tmp_path / "large/figures/speedups.png").is_file()
    capsys.readouterr()
    assert gpu.main() == 0 and not capsys.readouterr().out, "what is there is not measured again"


def test_the_gpus_form_needs_little() -> None:
    """Nor does an arm of prefdag's: no workflow, tracking, judging or data library."""
    absent = (
        "snakemake",
        "mlflow",
        "datasets",
        "sklearn",
        "scipy",
        "openai",
        "datasketch",
        "wordcloud",
        "jinja2",
    )
    output = f"""
import sys
for name in {absent}:
    sys.modules[name] = None
import benchmarks.gpu, benchmarks.micro
"""
    done = subprocess.run([sys.executable, "-c", output], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-500:]


def test_a_broken_settings_file_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    settings = tmp_path / "settings.yaml"
    settings.write_text("{profiles: [samples]}")
    assert program.main([str(settings), "--output", str(tmp_path / "output")]) == 2
    assert "6 pairs a prompt; take a multiple of that, got 16" in capsys.readouterr().err
    settings.write_text("{shapes: [huge]}")
    assert program.main([str(settings), "--output", str(tmp_path / "output")]) == 2
    assert f"benchmarks: {settings}: shapes" in capsys.readouterr().err
    assert program.main([str(tmp_path / "absent.yaml")]) == 2
    assert "absent.yaml: cannot be read" in capsys.readouterr().err
