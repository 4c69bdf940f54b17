"""Links into MLflow's pages, and `results/<suite>/mlflow.html`, which the report's links lead to.

The report is written before its runs are tracked and does not depend on the database. This page is written by the
tracker, which knows the runs' ids, and links to each run.
"""

import os
import re
from collections.abc import Iterable, Mapping
from operator import attrgetter
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jinja2

from prefdag.tracking.records import Record, StoredRun

NOTE = "mlflow.note.content"
PAGE = "mlflow.html"
QUESTIONS = {
    "Reward of every policy, best first": ("", "reward"),
    "Reward of the policies under KL 5, best first": ("metrics.kl < 5", "reward"),
    "Runs that were killed or failed": ("attributes.status != 'FINISHED'", ""),
}
TEMPLATES = Path(__file__).parents[1] / "templates"

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{{ suite }} in MLflow</title>
<style>
{% include "look.css" %}

:target { outline: 2px solid #e69f00; outline-offset: 2px; }
</style>
</head>
<body>
<header>
  <h1>{{ suite }} in MLflow</h1>
  <p class="lead">{% if local %}These links open while <code>make ui</code> runs on this machine.
  {%- else %}On {{ server }}.{% endif %} A run that is repeated gets a new address.</p>
  <nav>
    <a href="report/index.html">Report</a>
    <a href="costs.html">Costs</a>
  </nav>
</header>
<main>
<section>
<h2>Questions</h2>
<ul>
{% for question, address in questions.items() %}<li><a href="{{ address }}">{{ question }}</a></li>
{% endfor %}</ul>
</section>
<section>
<h2>Runs</h2>
<ul>
{% for name, address in runs.items() %}<li id="{{ name }}"><a href="{{ address }}">{{ name }}</a></li>
{% endfor %}</ul>
</section>
</main>
</body>
</html>
"""


def questions(experiment: str) -> dict[str, str]:
    """Map each common question to the address, within MLflow's pages, of the sorted runs that answer it."""
    addresses = {}
    for question, (search, order) in QUESTIONS.items():
        query = {"searchFilter": search or f"metrics.{order} > -1e9"}
        query |= {"orderByKey": f"metrics.`{order}`", "orderByAsc": "false"} if order else {}
        addresses[question] = _address(experiment, **query)
    return addresses


def _address(experiment: str, run: str | None = None, **query: str) -> str:
    """Return the address of a run, or of an experiment's runs, in MLflow's layout for models (not for agents)."""
    query["workflowType"] = "machine_learning"
    return f"#/experiments/{experiment}/runs{f'/{run}' if run else ''}?{urlencode(query, quote_via=quote)}"


def describe_experiment(client: Any, experiment: str) -> None:
    """Link the questions from the experiment's page, unless a user has written a description there."""
    if NOTE not in client.get_experiment(experiment).tags:
        lines = [f"- [{question}]({address})" for question, address in questions(experiment).items()]
        client.set_experiment_tag(experiment, NOTE, "\n".join(lines))


def describe_run(client: Any, experiment: str, run: str, record: Record, runs: Iterable[StoredRun]) -> None:
    """Link a run to the runs that made its inputs.

    Of several runs that made the same manifest, the last that began before this one is linked.

    Args:
        client: MLflow's client.
        experiment: The experiment's id.
        run: The run's id.
        record: The run's journal.
        runs: All runs of the experiment.
    """
    assert record.start
    lines = []
    for name, read in record.start["inputs"].items():
        makers = [one for one in runs if one.end_tags.get("prefdag.manifest") == read["sha256"] and not one.deleted]
        earlier = sorted((one for one in makers if one.began <= record.began), key=attrgetter("began"))
        if earlier:
            lines.append(f"- reads {name}: [{earlier[-1].name}]({_address(experiment, earlier[-1].id)})")
    client.set_tag(run, NOTE, "\n".join(lines) or "Reads the output of no other run.")


def write_page(root: Path, uri: str, experiment: str, runs: Mapping[str, str]) -> None:
    """Write the page of links.

    Args:
        root: The suite's folder.
        uri: The tracking database.
        experiment: The experiment's id.
        runs: Name -> MLflow's id of the newest run of that name.
    """
    local = not uri.startswith(("http:", "https:"))
    server = "http://127.0.0.1:5000" if local else re.sub("//[^/@]*@", "//", uri).rstrip("/")  # no password
    content = (
        jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            suite=root.name,
            local=local,
            server=server,
            questions={text: f"{server}/{address}" for text, address in questions(experiment).items()},
            runs={name: f"{server}/{_address(experiment, id)}" for name, id in sorted(runs.items())},
        )
    )
    temporary = root / f".{PAGE}"
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, root / PAGE)
