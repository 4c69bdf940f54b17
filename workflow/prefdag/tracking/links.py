"""Addresses in MLflow's own pages, and `results/<suite>/mlflow.html`, through which the report's links go.

The report is the same file whatever database its runs are written to, and is there before them; this page is written by
the tracker, which knows their ids, and says where they are now.
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
_TEMPLATE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ suite }} in MLflow</title>
<style>
:root { color-scheme: light dark }
body { font: 15px/1.6 system-ui, sans-serif; max-width: 50rem; margin: 1rem auto; padding: 0 1rem }
:target { outline: 2px solid #e69f00; outline-offset: 2px }
</style>
<h1>{{ suite }} in MLflow</h1>
<p>{% if local %}These links open while <code>make ui</code> runs on this machine.{% else %}On {{ server }}.{% endif %}
They were written with the runs; a run that was made again has a new address.</p>
<ul>
{% for question, address in questions.items() %}<li><a href="{{ address }}">{{ question }}</a></li>
{% endfor %}</ul>
<ul>
{% for name, address in runs.items() %}<li id="{{ name }}"><a href="{{ address }}">{{ name }}</a></li>
{% endfor %}</ul>
</html>
"""


def questions(experiment: str) -> dict[str, str]:
    """What people ask first -> the runs that answer it, sorted, as an address within MLflow's pages."""
    found = {}
    for question, (search, order) in QUESTIONS.items():
        asked = {"searchFilter": search or f"metrics.{order} > -1e9"}
        asked |= {"orderByKey": f"metrics.`{order}`", "orderByAsc": "false"} if order else {}
        found[question] = _address(experiment, **asked)
    return found


def _address(experiment: str, run: str | None = None, **asked: str) -> str:
    """A run, or the experiment's runs that are asked for, in MLflow's layout for models rather than for agents."""
    asked["workflowType"] = "machine_learning"
    return f"#/experiments/{experiment}/runs{f'/{run}' if run else ''}?{urlencode(asked, quote_via=quote)}"


def describe_experiment(client: Any, experiment: str) -> None:
    """Put the questions at the head of the experiment's page; a description of somebody's own stays."""
    if NOTE not in client.get_experiment(experiment).tags:
        lines = [f"- [{question}]({address})" for question, address in questions(experiment).items()]
        client.set_experiment_tag(experiment, NOTE, "\n".join(lines))


def describe_run(client: Any, experiment: str, run: str, record: Record, runs: Iterable[StoredRun]) -> None:
    """Link a run to those that made what its job read: of equal ones the last that began before it."""
    assert record.start
    lines = []
    for name, told in record.start["inputs"].items():
        made = [one for one in runs if one.closing.get("prefdag.manifest") == told["sha256"] and not one.deleted]
        earlier = sorted((one for one in made if one.began <= record.began), key=attrgetter("began"))
        if earlier:
            lines.append(f"- reads {name}: [{earlier[-1].name}]({_address(experiment, earlier[-1].id)})")
    client.set_tag(run, NOTE, "\n".join(lines) or "Reads the output of no other run.")


def write_page(root: Path, uri: str, experiment: str, runs: Mapping[str, str]) -> None:
    """Write the page beside the suite's other pages. runs: name -> MLflow's id of the newest run of that name."""
    local = not uri.startswith(("http:", "https:"))
    server = "http://127.0.0.1:5000" if local else re.sub("//[^/@]*@", "//", uri).rstrip("/")  # no password
    content = (
        jinja2.Environment(autoescape=True)
        .from_string(_TEMPLATE)
        .render(
            suite=root.name,
            local=local,
            server=server,
            questions={text: f"{server}/{address}" for text, address in questions(experiment).items()},
            runs={name: f"{server}/{_address(experiment, id)}" for name, id in sorted(runs.items())},
        )
    )
    made = root / f".{PAGE}"
    made.write_text(content, encoding="utf-8")
    os.replace(made, root / PAGE)
