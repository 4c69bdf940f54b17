"""One row per policy in MLflow: answers, scores and judgements below the training that made the policy."""

from collections.abc import Mapping, Sequence
from typing import Any

from mlflow.entities import Metric

from prefdag.tracking.records import Record, StoredRun

TRAININGS = ("preference", "policy", "online", "selected", "sft")
RESULTS = {"score": ("reward", "kl", "length"), "judge": ("win_rate",)}
PARENT = "mlflow.parentRunId"


def nest(client: Any, records: Sequence[Record], runs: Mapping[str, StoredRun]) -> None:
    """Tag each finished run of a policy's answers with its training, which gets `result.reward` and so on.

    The tag is written last: a write that broke off is repeated, and MLflow ignores the metrics that it has.

    Args:
        client: MLflow's client.
        records: All journals, oldest first.
        runs: The run of each journal, by the journal's id.
    """
    trainings: dict[str, Record] = {}  # by policy: the last that began
    for record in records:
        assert record.start
        stage, name = record.start["stage"], record.start["name"] or "sft"
        if stage in TRAININGS:
            trainings[name] = record
        run = runs[record.start["id"]]
        training = trainings.get(name.partition("@")[0]) if stage in ("generate", *RESULTS) else None
        if training is None or run.deleted or run.parent or not record.end:
            continue
        assert training.start
        parent = runs[training.start["id"]]
        if parent.deleted:
            continue
        if "@" not in name and record.end["status"] == "finished":
            latest = {key: (point.time, value) for point in record.points for key, value in point.values.items()}
            metrics = [
                Metric(f"result.{key}", latest[key][1], int(latest[key][0] * 1000), 0)
                for key in RESULTS.get(stage, ())
                if key in latest
            ]
            client.log_batch(parent.id, metrics=metrics)
        client.set_tag(run.id, PARENT, parent.id)
        run.parent = parent.id
