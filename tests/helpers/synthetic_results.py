"""A results folder as the stages before the report leave it, with made-up numbers."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from manifests import bare
from prefdag.config.answer_sets import AnswerSet
from prefdag.config.sections.best_of_n import BestOfN
from prefdag.config.sections.judge import Judge
from prefdag.data.token_store import Store, StoreWriter
from prefdag.evaluation.bootstrap import summarise
from prefdag.rewards.evaluation import write_held_out
from prefdag.seeds import generator
from prefdag.stages import best_of_n, judge, report

METRICS = ("reward", "kl", "k1", "k3", "length", "distinct1", "distinct2", "untrained", "trained")
ATTACK = '<script>alert("owned")</script>'


def spec(name: str, method: str, seed: int = 0, **objective: object) -> dict:
    return {"name": name, "method": method, "seed": seed, "objective": {"method": method, **objective}}


RUNS = [
    *(spec(f"dpo-beta{beta}-seed0", "dpo", beta=beta) for beta in (0.05, 0.1, 0.3, 1.0)),
    *(spec(f"dpo-beta0.1-seed{seed}", "dpo", seed, beta=0.1) for seed in (1, 2)),
    *(spec(f"ipo-beta{beta}-seed0", "ipo", beta=beta, logprob="summed") for beta in (0.1, 0.5)),
    spec("cdpo-seed0", "cdpo", beta=0.1, label_smoothing=0.1),
    spec("simpo-seed0", "simpo", beta=2.0, gamma_beta_ratio=0.25),
    spec("preferred-ft-seed0", "preferred_ft"),
    spec("unlikelihood-seed0", "unlikelihood", alpha=0.5),
]
SOME = [run for run in RUNS if run["name"].startswith(("dpo-beta0.1", "dpo-beta0.3", "simpo"))]  # drawing takes seconds
STEPS = 60  # of a training with checkpoints
DRIFT = {  # (KL in nats, reward) that each policy is drawn around
    "base": (11.0, -0.02),
    "sft": (0.0, 0.12),
    "dpo-beta0.05-seed0": (31.0, 0.71),
    "dpo-beta0.1-seed0": (16.0, 0.68),
    "dpo-beta0.1-seed1": (14.5, 0.65),
    "dpo-beta0.1-seed2": (17.6, 0.69),
    "dpo-beta0.3-seed0": (6.1, 0.55),
    "dpo-beta1.0-seed0": (1.7, 0.36),
    "ipo-beta0.1-seed0": (9.0, 0.57),
    "ipo-beta0.5-seed0": (2.6, 0.37),
    "cdpo-seed0": (11.5, 0.6),
    "simpo-seed0": (22.0, 0.5),
    "preferred-ft-seed0": (1.1, 0.22),
    "unlikelihood-seed0": (48.0, 0.05),
}


def drift(answers: str) -> tuple[float, float]:
    """Of a checkpoint, on the way from SFT; of a temperature, a little worse the hotter it is."""
    one = AnswerSet.parse(answers)
    kl, reward = DRIFT[one.policy]
    if one.step is not None:
        way = one.step / STEPS
        return kl * way, 0.12 + (reward - 0.12) * min(1, 1.6 * way)
    if one.variant.startswith("t"):
        return kl, reward - 0.35 * (float(one.variant[1:]) - 0.7)
    return kl, reward


def score_table(policy: str, num_prompts: int, num_samples: int = 2) -> pd.DataFrame:
    """Scores whose two samples a prompt resemble one another, as real ones do."""
    rng, (kl, reward) = generator(0, policy), drift(policy)
    num = num_prompts * num_samples
    prompts = np.repeat(np.arange(num_prompts), num_samples)
    mood = np.repeat(generator(0, "prompts").normal(0, 0.25, num_prompts), num_samples)
    rewards = np.tanh(reward + mood + rng.normal(0, 0.35, num)).round(2)
    kls = kl * rng.gamma(6, 1 / 6, num)
    return pd.DataFrame(
        {
            "prompt_id": prompts,
            "sample": np.tile(np.arange(num_samples), num_prompts),
            "reward": rewards,
            "untrained": rng.normal(0.03, 0.2, num),
            "trained": 2.4 * rewards + rng.normal(0, 0.8, num),
            "kl": kls,
            "k1": kls + rng.normal(0, 1, num),
            "k3": kls + rng.exponential(0.5, num),
            "length": rng.poisson(22 + 0.4 * kl, num).clip(1, 48),
            "distinct1": rng.beta(18, 3, num),
            "distinct2": rng.beta(40, 2, num),
        }
    )


def write_scores(folder: Path, table: pd.DataFrame, name: str, with_reward_model: bool) -> Path:
    folder.mkdir(parents=True)
    metrics = [metric for metric in METRICS if with_reward_model or "trained" not in metric]
    table = table[["prompt_id", "sample", *metrics]]
    table.to_csv(folder / "scores.csv", index=False)
    means = {m: summarise(table[m], table["prompt_id"], seed=name, bootstrap=200).to_dict() for m in metrics}
    (folder / "summary.json").write_text(json.dumps(means))
    return touched(folder)


def touched(folder: Path) -> Path:
    (folder / "manifest.json").write_text(bare())
    return folder / "manifest.json"


def write_generations(folder: Path, policy: str, num_prompts: int, num_samples: int = 2) -> Path:
    folder.mkdir(parents=True)
    rng = generator(0, f"words {policy}")
    words = ["the", "a", "fine", "dull", "film", "was", "and", "with", "quiet", "brilliant", "tired", "warm", "never"]
    with (folder / "generations.jsonl").open("w") as stream:
        for prompt in range(num_prompts):
            for sample in range(num_samples):
                text = " ".join(rng.choice(words, rng.integers(12, 30)))
                response = ATTACK if (policy, prompt) == ("sft", 0) else "" if (policy, prompt) == ("base", 0) else text
                about = {
                    "prompt_id": prompt,
                    "sample": sample,
                    "prompt": f"Review {prompt}: I went in expecting & found",
                }
                stream.write(json.dumps({**about, "response": response, "ended": bool(rng.random() < 0.8)}) + "\n")
    return touched(folder)


def write_curves(folder: Path, run: dict, num_steps: int) -> Path:
    folder.mkdir(parents=True)
    rng, kl = generator(0, f"curve {run['name']}"), DRIFT[run["name"]][0]
    step = np.arange(1, num_steps + 1)
    rise = kl * (1 - np.exp(-step / (num_steps / 3)))
    chosen, rejected = 0.15 * rise - 0.1 * kl * step / num_steps, -0.9 * rise
    chosen, rejected = (side + rng.normal(0, 0.05 * kl + 0.1, num_steps) for side in (chosen, rejected))
    curve = pd.DataFrame({"step": step, "loss": np.log1p(np.exp(-0.1 * (chosen - rejected)))})
    if run["method"] not in ("simpo", "preferred_ft"):
        curve = curve.assign(chosen_logratio=chosen, rejected_logratio=rejected)
    curve["margin"] = chosen - rejected
    curve["accuracy"] = (0.5 + 0.35 * (1 - np.exp(-step / 40)) + rng.normal(0, 0.05, num_steps)).clip(0, 1)
    curve["chosen_logprob"], curve["rejected_logprob"] = chosen - 62, rejected - 60
    for side, values in (("chosen", chosen), ("rejected", rejected)):
        curve[f"held_out_{side}_logratio"] = np.where(step % 5 == 1, values, np.nan)  # measured now and then
    curve["held_out_chosen_fell"] = np.where(step % 5 == 1, 1 / (1 + np.exp(0.4 * chosen)), np.nan)
    curve.to_csv(folder / "curves.csv", index=False)
    return touched(folder)


def write_comparisons(folder: Path, num: int) -> Path:
    """Words 1 to 9 and, at the end of the first chosen response, the attack; chosen ones hold more of word 2."""
    rng, spoken = generator(0, "lengths"), generator(0, "spoken")
    for split, rows in (("train", num), ("validation", 40), ("test", num)):
        with StoreWriter(folder / split, num_responses=2, scored=False) as writer:
            for row in range(rows):
                sizes = rng.poisson(24, 2).clip(1, 48)
                chosen, rejected = (spoken.integers(1, 10, size).tolist() for size in sizes)
                chosen[-1] = 0 if row == 0 else 2
                writer.add([1] * 6, [chosen, rejected], row=row, prompt=row // 2)
    return touched(folder)


def write_tokenizer(folder: Path) -> Path:
    """The SFT policy, of which the report reads the tokenizer alone: whole words."""
    words = [ATTACK, "it", "fine", "dull", "film", "was", "warm", "never", "tired", "quiet", "[UNK]"]
    plain = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]").save_pretrained(folder / "model")
    return touched(folder)


def write_reward(folder: Path, comparisons: Path) -> Path:
    """A reward model that has learnt: held-out gaps are noise before and 1 more after its training."""
    folder.mkdir()
    rng, held_out, step = generator(0, "rewards"), Store.open(comparisons.parent / "test"), np.arange(1, 31)
    before = rng.normal(0, 0.2, (len(held_out), 2))
    rewards = {"before": before, "after": 3 * before + np.array([1.0, 0.0])}
    write_held_out(folder / "held_out.csv", held_out, rewards)
    curve = {"step": step, "loss": 0.7 * 0.98**step, "accuracy": 1 - 0.5 * 0.98**step, "learning_rate": 1e-3 / step}
    pd.DataFrame(curve).to_csv(folder / "curves.csv", index=False)
    before = {"accuracy": 0.512, "accuracy_low": 0.46, "accuracy_high": 0.56, "mean": 0.031, "std": 0.204, "n": 400}
    after = {"accuracy": 0.764, "accuracy_low": 0.72, "accuracy_high": 0.81, "mean": 0.942, "std": 1.533, "n": 400}
    (folder / "evaluation.json").write_text(json.dumps({"before": before, "after": after}))
    return touched(folder)


class Journal:
    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"event": "start", "git": None}) + "\n")
        self.artifacts: list[str] = []
        self.values: dict = {}

    def artifact(self, path: Path, as_: str) -> None:
        assert path.is_file()
        self.artifacts.append(as_)

    def metrics(self, step: int, values: dict) -> None:
        self.values = values


def workspace(output: Path) -> SimpleNamespace:
    output.mkdir(parents=True)
    return SimpleNamespace(output=output, journal=Journal(output / "../.journal/report.jsonl"))


def write_results(root: Path, runs: list[dict], num_prompts: int, num_steps: int, reward: bool = True) -> dict:
    """A results folder of base, sft and `runs`; returns the inputs of the report stage."""
    policies = ["base", "sft", *(run["name"] for run in runs)]
    tables = {policy: score_table(policy, num_prompts) for policy in policies}
    scores = [write_scores(root / "score" / name, table, name, reward) for name, table in tables.items()]
    comparisons = write_comparisons(root / "prepare" / "comparisons", 10 * num_prompts)
    return {
        "scores": scores,
        "judges": [write_verdicts(root, name) for name in policies if name != "sft"],
        "generations": [write_generations(root / "generate" / name, name, num_prompts) for name in policies],
        "preferences": [write_curves(root / "preference" / run["name"], run, num_steps) for run in runs],
        "reward": write_reward(root / "reward", comparisons) if reward else None,
        "comparisons": comparisons,
        "policy": write_tokenizer(root / "sft"),
    }


def write_verdicts(root: Path, name: str, judges: tuple[str, ...] = ("reward",)) -> Path:
    space = workspace(root / "judge" / name)
    held = root / f"score/{AnswerSet('sft', AnswerSet.parse(name).variant)}/manifest.json"
    held = held if held.is_file() else root / "score/sft/manifest.json"
    job = judge.Job(judge=Judge(bootstrap=200, judges=judges))
    judge.run(job, space, scores=root / "score" / name / "manifest.json", against=held)
    return touched(space.output)


def write_further(root: Path, inputs: dict, runs: list[dict], num_prompts: int) -> tuple[dict, list[dict]]:
    """Add checkpoints, temperatures, the pool and several judges; return inputs and answers for `made`."""
    policies = ["base", "sft", *(run["name"] for run in runs)]
    figures = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 48}
    answers = [{"name": name, **figures} for name in policies]
    for heat in (0.0, 0.25, 1.0):
        answers += [{"name": f"{name}@t{heat}", **figures, "temperature": heat} for name in ["sft", *policies[2:5]]]
    answers += [{"name": f"{run['name']}@step{step}", **figures} for run in runs for step in (15, 30, 45)]
    further = [expected["name"] for expected in answers[len(policies) :]]
    scores = [write_scores(root / "score" / n, score_table(n, num_prompts), n, True) for n in further]
    for name in (*further, "sft@pool"):
        (root / "generate" / name).mkdir()
        touched(root / "generate" / name)
    for path in (root / "judge").glob("*/*"):
        path.unlink()
    for path in (root / "judge").glob("*"):
        path.rmdir()
    judged = [name for name in (*policies, *further) if AnswerSet.parse(name).policy != "sft"]
    write_scores(root / "score/sft@pool", score_table("sft", num_prompts, 16), "sft@pool", True)
    space = workspace(root / "best_of_n")
    best_of_n.run(
        best_of_n.Job(best_of_n=BestOfN(selected_by="reward", seed=0, bootstrap=200)),
        space,
        scores=root / "score/sft@pool/manifest.json",
    )
    verdicts = [write_verdicts(root, name, ("reward", "trained", "length")) for name in judged]
    pool = {"name": "sft@pool", **figures}
    more = {"scores": [*inputs["scores"], *scores, root / "score/sft@pool/manifest.json"], "judges": verdicts}
    return {**inputs, **more, "best_of_n": touched(space.output)}, [*answers, pool]


def made(
    output: Path, inputs: dict, runs: list[dict], answers: list[dict] | None = None, **settings: object
) -> SimpleNamespace:
    space = workspace(output)
    settings = {"reward_label": "ground-truth reward (VADER compound)", **settings}
    figures = {"temperature": 0.7, "top_p": 1.0, "max_new_tokens": 48}
    answers = answers or [{"name": path.parent.name, **figures} for path in inputs["scores"]]
    job = report.Job.parse({"report": settings, "suite": "toy", "runs": runs, "answers": answers}, "test")
    report.run(job, space, exact=[], **{"choices": [], "reward_sets": [], **inputs})
    return space
