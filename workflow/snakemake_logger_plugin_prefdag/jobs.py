"""Read what the console shows about a job from the files that the job writes: its log, journal and manifest."""

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

CLOCKS = 5  # seconds
TAIL = 8192  # bytes; the last lines of a journal or a log
STEP = re.compile(r"step (\d+)/(\d+), loss (\S+)")


@dataclass
class Job:
    """A job of the workflow. name: the value of its wildcard; times are in seconds since the epoch."""

    stage: str
    name: str
    log: Path | None
    started: float
    status: Literal["running", "done", "failed", "stopped"] = "running"
    first_step: tuple[int, float] | None = field(default=None, repr=False)  # first step that was read, and its time

    @property
    def title(self) -> str:
        return f"{self.stage} {self.name}".strip()

    @property
    def folder(self) -> Path | None:
        """Return results/<suite>/<stage>/[<name>/], or None for a job without a log."""
        return self.log.parent if self.log else None


def describe_progress(job: Job) -> str:
    """Describe a running training, like `step 48/90  loss 1.213  ETA 9 s`; return '' for other jobs."""
    metrics = last_metrics(job)
    steps = STEP.findall(tail(job.log)) if job.log else []
    if not metrics or not steps:
        return ""
    step, total, now = metrics["step"], int(steps[-1][1]), metrics["time"]
    text = f"step {step}/{total}  loss {metrics['values']['loss']:.3f}"
    if job.first_step is None or step < job.first_step[0]:
        job.first_step = (step, now)
    steps_taken, seconds = step - job.first_step[0], now - job.first_step[1]
    if steps_taken and step < total:
        text += f"  ETA {format_seconds((total - step) * seconds / steps_taken)}"
    return text


def last_metrics(job: Job) -> dict[str, Any] | None:
    """Return the last journal event with an optimizer step of a job that is running."""
    if job.folder is None:
        return None
    root = job.folder.parent if not job.name else job.folder.parent.parent
    prefix = "-".join(filter(None, [job.stage, job.name]))
    started = re.compile(re.escape(prefix) + r"-\d{8}T\d{9}Z-\d+\.jsonl")
    journals = [path for path in root.glob(f".journal/{prefix}-*.jsonl") if started.fullmatch(path.name)]
    newest = max(journals, key=lambda path: path.name, default=None)
    if newest is None or newest.stat().st_mtime < job.started:
        return None
    for line in reversed(tail(newest).splitlines()):
        try:
            event = json.loads(line)
        except ValueError:  # cut off by the tail, or still being written
            continue
        if event["event"] == "metrics" and event["step"] is not None and "loss" in event["values"]:
            return event
    return None


def tail(path: Path) -> str:
    """Return the last bytes of a file as text, '' if it cannot be read."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - TAIL))
            return stream.read().decode(errors="replace")
    except OSError:
        return ""


def find_sentence(job: Job) -> str:
    """Return why a job failed: the `prefdag: ...` sentence of its log, otherwise the log's last line."""
    if job.log is None:
        return "the job has no log; its output is above"
    # A job that could not be started leaves the log of an earlier attempt. Clocks of machines may differ.
    written = job.log.is_file() and job.log.stat().st_mtime >= job.started - CLOCKS
    lines = [line for line in tail(job.log).splitlines() if line.strip()] if written else []
    sentences = [line for line in lines if line.startswith("prefdag: ")]
    return (sentences or lines or ["the job wrote nothing to its log"])[-1]


def key_result(job: Job) -> str:
    """Return the key result of a finished job, like `loss 0.41  margin 1.90`."""
    if job.folder is None:
        return ""
    if job.stage == "report":
        return str(job.folder / "index.html")
    try:
        facts = json.loads((job.folder / "manifest.json").read_text())["facts"]
        if job.stage == "score":
            facts = json.loads((job.folder / "summary.json").read_text())
        return describe_facts(job.stage, facts) + (describe_audit(job.folder) if job.stage == "prepare" else "")
    except (OSError, ValueError, KeyError, TypeError):  # a result for the eye only: the job has succeeded
        return ""


def describe_audit(folder: Path) -> str:
    """Describe why rows of a dataset are not used, like `; dropped: 12 tie, 5 empty chosen`, and labels of train.

    Return '' if all are used and none has a label.
    """
    counts: Counter[str] = Counter()
    splits = json.loads((folder / "audit.json").read_text())["splits"]
    for audit in splits.values():
        counts.update({reason: entry["count"] for reason, entry in audit["dropped"].items()})
    dropped = ", ".join(f"{count:,} {reason}" for reason, count in counts.most_common())
    labels = splits.get("train", {}).get("labels")
    counted = f"; train: {labels['desirable']:,} desirable, {labels['undesirable']:,} undesirable" if labels else ""
    counted += f" (KTO: {labels['balance']})" if labels and labels["balance"] else ""
    return (f"; dropped: {dropped}" if dropped else "") + counted


def describe_facts(stage: str, facts: dict[str, Any]) -> str:
    """Describe the facts of a stage's manifest in a few words (of `score`: its summary)."""
    match stage:
        case "fetch" if "commit" in facts:
            return f"commit {facts['commit'][:8]}"
        case "fetch":
            return f"{sum(facts.values()):,} rows" if facts else ""
        case "classifier":
            return f"accuracy {facts['accuracy']['mean']:.3f}"
        case "pretrain":
            return f"loss {facts['nll']:.3f}  {facts['parameters']:,} parameters"
        case "prepare":
            splits = [split for split in facts.values() if "used" in split]
            used, read = (sum(split[key] for split in splits) for key in ("used", "rows_in"))
            return f"{used:,} of {read:,} rows used"
        case "sft":
            return f"loss {facts['nll_after']:.3f}"
        case "pairs" | "pairing":
            return f"{sum(split['pairs'] for split in facts.values()):,} pairs"
        case "gold":
            return f"{facts['labelled']:,} labels, {facts['pairs']:,} pairs"
        case "rating":
            lost = sum(facts[name] for name in ("unparsable", "cut", "refused"))
            return f"{facts['pairs']:,} pairs judged" + (f", {lost:,} answers without a verdict" if lost else "")
        case "reward" | "discriminator" | "reward_variant":
            return f"accuracy {facts['after']['accuracy']:.3f}"
        case "hidden_map":
            return f"{facts['pairs']:,} pairs"
        case "evaluate_reward":
            return f"accuracy {facts['accuracy']:.3f} of {facts['pairs']:,} pairs"
        case "preference":
            shown = {"loss": "validation_loss", "margin": "validation_margin", "accuracy": "validation_accuracy"}
            return "  ".join(f"{name} {facts[key]:.3f}" for name, key in shown.items() if facts.get(key) is not None)
        case "policy" | "online":
            last = {"score": facts.get("score"), "KL": facts.get("kl")}
            values = "  ".join(f"{name} {value:.2f}" for name, value in last.items() if value is not None)
            return "; ".join([values, *facts.get("doubts", [])])
        case "generate":
            cut = f", {1 - facts['ended']:.0%} cut at the token limit" if facts.get("ended", 1) < 1 else ""
            return f"{facts['generations']:,} answers{cut}"
        case "score":
            shown = {name: facts[name]["mean"] for name in ("reward", "kl") if name in facts}
            return "  ".join(f"{'KL' if name == 'kl' else name} {value:.2f}" for name, value in shown.items())
        case "judge":
            rate = facts["win_rate"]
            lost = {name: facts.get(name, 0) for name in ("unparsable", "cut", "refused")}
            counts = [f"{number:,} answers {name}" for name, number in lost.items() if number]
            result = "no win rate: no verdict could be read" if rate is None else f"win rate {rate:.2f}"
            return "  ".join([result, *counts])
        case "best_of_n":
            return f"{facts['prompts']:,} prompts, N up to {facts['samples']}"
        case "choose":
            return ", ".join(f"{key} {value}" for key, value in facts["chosen"].items())
        case "exact":
            return f"{facts['settings']:,} settings"
    return ""


def format_seconds(seconds: float) -> str:
    """Format a duration like `24 s`, `3.5 min` or `2.1 h`."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
