"""A language model as judge, against a scripted endpoint and a real one: requests, cache, counts and errors."""

import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from conftest import MINI, ROOT, environment
from judge_server import Judge, judging
from prefdag.cli.main import main
from prefdag.cli.plan import requests
from prefdag.config import jobs
from prefdag.config.loading import merge
from prefdag.config.model import Architectural
from prefdag.config.sections.judge import LLM, PROMPTS
from prefdag.config.suite import read_suite, resolve
from prefdag.errors import UserError
from prefdag.evaluation.judge import client as endpoints
from prefdag.evaluation.judge.cache import Answer, AnswerCache, question_key, read_cached
from prefdag.evaluation.judge.prompts import read_template, render_question
from prefdag.evaluation.judge.readers import parse_choice
from prefdag.models.loading import build, save
from preparing import byte_tokenizer
from synthetic_results import touched

CANARY = "sk-canary-0123456789abcdef"
MODEL = {"model": "tiny-judge", "prompt": "summarisation-simple", "timeout": 60}
NEEDED = 12  # six pairs in both orders


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Judge]:
    """An endpoint that this process's environment names; back-off takes hundredths of a second."""
    monkeypatch.setattr(endpoints, "FIRST_WAIT", 0.01)
    with judging() as judge:
        monkeypatch.setenv("OPENAI_BASE_URL", judge.address)
        monkeypatch.setenv("OPENAI_API_KEY", CANARY)
        yield judge


def results(folder: Path, responses: dict[str, list[str]] | None = None) -> Path:
    """score/ and generate/ of `dpo` and `sft`: dpo says more at prompts 0 to 3, less at 4 and 5."""
    responses = responses or {
        "dpo": [f"A good long summary, number {n}." if n < 4 else f"Short {n}." for n in range(6)],
        "sft": [f"A middling one, {n}." for n in range(6)],
    }
    for policy, texts in responses.items():
        for stage in ("score", "generate"):
            (folder / stage / policy).mkdir(parents=True)
            touched(folder / stage / policy)
        rows = [f"{n},0,{float(len(text))},{len(text)}.0\n" for n, text in enumerate(texts)]
        (folder / f"score/{policy}/scores.csv").write_text("prompt_id,sample,reward,length\n" + "".join(rows))
        lines = [
            json.dumps({"prompt_id": n, "sample": 0, "prompt": f"Post {n}", "response": text}) + "\n"
            for n, text in enumerate(texts)
        ]
        (folder / f"generate/{policy}/generations.jsonl").write_text("".join(lines))
    return folder


def command(folder: Path, policy: str = "dpo", **settings: Any) -> list[str]:
    section = {"judges": [{**MODEL, **settings}], "bootstrap": 50}
    inputs = {"scores": f"score/{policy}", "against": "score/sft"}
    inputs |= {"generations": f"generate/{policy}", "against_generations": "generate/sft"}
    options = [text for key, at in inputs.items() for text in (f"--{key}", str(folder / at / "manifest.json"))]
    output = str(folder / f"judge/{policy}/manifest.json")
    return ["judge", "--config", json.dumps({"judge": section}), *options, "--output", output]


def summary(folder: Path, name: str = "dpo") -> dict[str, Any]:
    return json.loads((folder / f"judge/{name}/summary.json").read_text())


def mistake(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(list(arguments)) == 2
    err = capsys.readouterr().err
    assert err.startswith("prefdag: judge tiny-judge: ") and len(err.splitlines()) == 1
    return err


def test_both_orders_are_asked_and_nothing_twice(server: Judge, tmp_path: Path) -> None:
    """The longer answer wins in either position: 4 of 6. A second run asks nothing and writes the same bytes."""
    folder = results(tmp_path / "suite")
    assert main(command(folder)) == 0
    result = summary(folder)
    assert (result["win_rate"], result["wins"], result["losses"], result["n"]) == (pytest.approx(4 / 6), 4, 2, 6)
    assert (result["order"]["prefers_first"], result["order"]["judge"]) == (0.5, "no bias shown")
    assert result["unparsable"] == 0
    assert result["judge"] == "tiny-judge" and "length_controlled" in result
    lines = (folder / "judge/dpo/verdicts.csv").read_text().splitlines()
    assert lines[1] == "0,0,tiny-judge,1,,,1,1" and lines[6] == "5,0,tiny-judge,0,,,0,0"
    answers = [json.loads(line) for line in (folder / "judge/dpo/answers.jsonl").read_text().splitlines()]
    assert answers[0]["ours_first"].endswith("Preferred: A") and answers[0]["ours_second"].endswith("Preferred: B")
    assert server.answered == len(server.requests) == NEEDED
    assert all(body["temperature"] == 0 and body["model"] == "tiny-judge" for body in server.requests)
    manifest = (folder / "judge/dpo/manifest.json").read_bytes()
    assert main(command(folder)) == 0
    assert len(server.requests) == NEEDED and (folder / "judge/dpo/manifest.json").read_bytes() == manifest


def test_a_full_cache_needs_no_endpoint(server: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = results(tmp_path / "suite")
    assert main(command(folder)) == 0
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert main(command(folder)) == 0


def test_another_model_prompt_or_length_is_asked_anew(server: Judge, tmp_path: Path) -> None:
    folder = results(tmp_path / "suite")
    for settings in (
        {},
        {"model": "other"},
        {"prompt": "summarisation-concise"},
        {"max_tokens": 99},
        {"name": "again"},
    ):
        assert main(command(folder, **settings)) == 0
    assert len(server.requests) == 4 * NEEDED  # a name is only what tables call it


def test_pairs_that_two_jobs_share_are_asked_once(server: Judge, tmp_path: Path) -> None:
    """One of two answers is the same in another job: the first job's file is read as well."""
    texts = {"dpo": ["Some words.", "More."], "again": ["Some words.", "Else."], "sft": ["Few.", "Many words."]}
    folder = results(tmp_path / "suite", texts)
    assert main(command(folder)) == main(command(folder, "again")) == 0
    assert len(server.requests) == 4 + 2
    assert sorted(path.name for path in (folder / ".judge").iterdir()) == ["again.jsonl", "dpo.jsonl"]


def test_a_judge_that_goes_with_the_order(server: Judge, tmp_path: Path) -> None:
    """`A`, always: every pair is a tie, and 8 of 8 verdicts move to the first place: p = 2 / 2^8, biased."""
    server.answer = lambda question: "Preferred: A"
    texts = {"dpo": [f"One {n}" for n in range(8)], "sft": [f"Two {n}" for n in range(8)]}
    folder = results(tmp_path / "suite", texts)
    assert main(command(folder)) == 0
    result = summary(folder)
    assert (result["win_rate"], result["ties"]) == (0.5, 8)
    assert (result["order"]["judge"], result["order"]["prefers_first"]) == ("biased", 1.0)


def test_unparsable_answers_are_counted_and_left_out(server: Judge, tmp_path: Path) -> None:
    """No letter for posts 0 and 1 in either order, nor for post 2 where ours is shown first: 5 answers, 3 pairs."""

    def answer(question: str) -> str:
        lost = "Post 0" in question or "Post 1" in question or "Summary A:\nA good long summary, number 2." in question
        return "I cannot choose." if lost else "Preferred: B" if "A:\nA middling" in question else "Preferred: A"

    server.answer = answer
    folder = results(tmp_path / "suite")
    assert main(command(folder)) == 0
    result = summary(folder)
    assert (result["unparsable"], result["without_verdict"], result["n"], result["win_rate"]) == (5, 3, 3, 1.0)
    rows = (folder / "judge/dpo/verdicts.csv").read_text().splitlines()
    assert rows[1] == "0,0,tiny-judge,,,,," and rows[3] == "2,0,tiny-judge,,,,,1"


def test_a_judge_of_no_use_has_no_win_rate(server: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.answer = lambda question: "Once upon a time"
    folder = results(tmp_path / "suite")
    assert main(command(folder)) == 0
    result = summary(folder)
    assert (result["win_rate"], result["n"], result["unparsable"]) == (None, 0, NEEDED)
    err = capsys.readouterr().err
    assert "no verdict could be read in any of 12 answers" in err
    assert err.count("an answer, ended by stop: 'Once upon a time'") == 3


def test_a_verdict_of_an_answer_that_was_cut_is_none(
    server: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Post 0's answers end at the limit, one after a letter; a second run reads the same from the cache."""
    server.finish = lambda question: "length" if "Post 0" in question else "stop"
    folder = results(tmp_path / "suite")
    for _ in range(2):
        assert main(command(folder)) == 0
        result = summary(folder)
        assert (result["cut"], result["unparsable"], result["refused"], result["n"], result["wins"]) == (2, 0, 0, 5, 3)
        assert "2 of 12 answers were cut" in capsys.readouterr().err
        (folder / "judge/dpo/manifest.json").unlink()
    assert len(server.requests) == NEEDED
    first = json.loads((folder / "judge/dpo/answers.jsonl").read_text().splitlines()[0])
    assert first["ours_first"].endswith("Preferred: A") and first["ours_first_ended"] == "length"


REFUSALS = {
    "filter": {"error": {"message": "The prompt triggered the content management policy", "code": "content_filter"}},
    "context": {"error": {"message": "maximum context length is 512 tokens", "code": "context_length_exceeded"}},
    "no reason": {"error": {"message": "cannot process"}},
}


@pytest.mark.parametrize("what", REFUSALS)
def test_a_pair_that_is_refused_is_named_and_left_out(
    what: str, server: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Post 2 is refused in both orders, whichever is asked first; a second run asks nothing."""
    server.refuse = lambda question: "Post 2" in question
    server.body = json.dumps(REFUSALS[what]).encode()
    folder = results(tmp_path / "suite")
    assert main(command(folder, concurrency=1)) == 0
    result = summary(folder)
    assert (result["refused"], result["n"], result["wins"], result["without_verdict"]) == (2, 5, 3, 1)
    assert "refused 2 of 12 questions, which are left out: prompt 2 sample 0 (HTTP 400: " in capsys.readouterr().err
    (folder / "judge/dpo/manifest.json").unlink()
    assert main(command(folder)) == 0
    assert len(server.requests) == NEEDED and summary(folder) == result


def test_an_answer_that_a_filter_emptied_is_a_refusal(server: Judge, tmp_path: Path) -> None:
    server.finish = lambda question: "content_filter" if "Post 0" in question else "stop"
    folder = results(tmp_path / "suite")
    assert main(command(folder)) == 0
    assert (summary(folder)["refused"], summary(folder)["n"]) == (2, 5)


def test_an_endpoint_that_breaks_is_not_taken_for_refusals(
    server: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every question after the first few is refused for no reason: the job ends, and none is saved as refused."""
    texts = {name: [f"{name} says {n} " + "x" * n for n in range(20)] for name in ("dpo", "sft")}
    folder = results(tmp_path / "suite", texts)
    server.refuse = lambda question: len(server.requests) > 4
    assert "refuses the request (HTTP 400: as asked)" in mistake(capsys, *command(folder, concurrency=1))
    assert (len(server.requests), len(read_cached(folder / ".judge"))) == (4 + 20, 4)


def test_what_a_request_holds_is_the_suites(server: Judge, tmp_path: Path) -> None:
    settings = {"max_completion_tokens": 900, "temperature": None, "reasoning_effort": "low"}
    settings |= {"extra_body": {"service_tier": "flex", "seed": 1}}
    folder = results(tmp_path / "suite")
    assert main(command(folder, **settings)) == 0
    bodies = [{key: one[key] for key in one.keys() - {"messages"}} for one in server.requests]
    assert bodies == NEEDED * [
        {"model": "tiny-judge", "max_completion_tokens": 900, "reasoning_effort": "low", **settings["extra_body"]}
    ]
    assert main(command(folder, **{**settings, "reasoning_effort": "high"})) == 0
    assert len(server.requests) == 2 * NEEDED


def test_a_parameter_that_is_refused_ends_the_job_and_says_what_to_set(
    server: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = {"message": "Use 'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"}
    server.body, server.faults = json.dumps({"error": error}).encode(), [400] * 9
    message = mistake(capsys, *command(results(tmp_path / "suite"), concurrency=1))
    assert "keys temperature, max_tokens, max_completion_tokens, reasoning_effort (null: not sent)" in message
    assert len(server.requests) == 1


def test_a_column_and_a_model_side_by_side(server: Judge, tmp_path: Path) -> None:
    """The reward is the length here, so both agree on all of 6; the first judge is the headline."""
    folder = results(tmp_path / "suite")
    arguments = command(folder)
    arguments[2] = json.dumps({"judge": {"judges": ["reward", MODEL], "bootstrap": 50}})
    assert main(arguments) == 0
    result = summary(folder)
    assert result["judge"] == "reward" and set(result["judges"]) == {"reward", "tiny-judge"}
    assert result["win_rate"] == result["judges"]["tiny-judge"]["win_rate"] == pytest.approx(4 / 6)
    assert [(entry["judges"], entry["agreement"], entry["kappa"]) for entry in result["agreement"]] == [
        (["reward", "tiny-judge"], 1.0, 1.0)
    ]


PASSING = {
    "busy": [429],
    "busy, in seconds": [(429, {"Retry-After": "0.05"})],
    "busy, in milliseconds": [(429, {"retry-after-ms": "50"})],
    "busy, until": [(429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})],
    "broken": [500, 503, 502],
    "cut": ["cut", "cut"],
    "no completion": ["page", "empty", "other"],
    "stalls": ["stall"],
}


@pytest.mark.parametrize("what", PASSING)
def test_what_passes_is_waited_for(what: str, server: Judge, tmp_path: Path) -> None:
    server.faults = list(PASSING[what])
    folder = results(tmp_path / "suite")
    # Short only where time is to run out: a busy machine may keep any answer for seconds.
    patience = {"timeout": 5} if what == "stalls" else {}
    assert main(command(folder, concurrency=1, **patience)) == 0
    assert summary(folder)["wins"] == 4
    assert (server.answered, len(server.requests)) == (NEEDED, NEEDED + len(PASSING[what]))


def test_retry_after_is_honoured(server: Judge, tmp_path: Path) -> None:
    server.faults = [(429, {"Retry-After": "1"})]
    began = time.monotonic()
    assert main(command(results(tmp_path / "suite"), concurrency=1)) == 0
    assert time.monotonic() - began >= 1


def test_what_does_not_pass_leaves_what_was_answered(
    server: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five answers, then an endpoint that breaks for good: a sentence after 3 attempts; later only 7 are asked."""
    folder = results(tmp_path / "suite")
    server.answer = lambda question: "Preferred: A" if server.answered <= 5 else server.faults.extend([500] * 9) or "B"
    server.faults = []
    message = mistake(capsys, *command(folder, concurrency=1, attempts=3))
    assert "is busy or broken (HTTP 500), 3 times; answers are saved" in message
    assert not (folder / "judge/dpo/manifest.json").exists()
    saved, requests_made = len(read_cached(folder / ".judge")), len(server.requests)
    assert (saved, requests_made) == (6, 6 + 3)
    server.faults, server.answer = [], lambda question: "Preferred: B"
    assert main(command(folder, concurrency=1, attempts=3)) == 0
    assert len(server.requests) - requests_made == NEEDED - saved


FOR_GOOD = {
    "key": (
        401,
        b'{"error": {"message": "Incorrect API key: ' + CANARY.encode() + b'"}}',
        "refuses the key (HTTP 401)",
    ),
    "forbidden": (403, b"{}", "refuses the key (HTTP 403); set OPENAI_API_KEY"),
    "model": (404, b'{"error": {"message": "The model does not exist"}}', "knows no model 'tiny-judge'"),
    "request": (
        400,
        b'{"error": {"message": "bad ' + CANARY.encode() + b'"}}',
        "refuses the request (HTTP 400: bad [redacted]); the",
    ),
    "quota": (429, b'{"error": {"message": "You exceeded", "code": "insufficient_quota"}}', "the quota is spent"),
}


@pytest.mark.parametrize("what", FOR_GOOD)
def test_what_will_not_pass_is_asked_once(
    what: str, server: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, server.body, printed = FOR_GOOD[what]
    server.faults = [status] * 100
    message = mistake(capsys, *command(results(tmp_path / "suite"), concurrency=1))
    assert printed in message and CANARY not in message and "Traceback" not in message
    assert len(server.requests) == (3 if what == "request" else 1)  # a first refusal may be of one pair alone


def test_an_endpoint_that_asks_for_a_day(server: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.faults = [(429, {"Retry-After": "86400"})]
    assert "asks to wait 86400 s" in mistake(capsys, *command(results(tmp_path / "suite"), concurrency=1))


@pytest.mark.parametrize(
    ("variable", "value", "printed"),
    [
        ("OPENAI_BASE_URL", None, "no endpoint: set OPENAI_BASE_URL"),
        ("OPENAI_API_KEY", None, "no key: set OPENAI_API_KEY"),
        ("OPENAI_BASE_URL", "http://127.0.0.1:9/v1", "cannot be reached"),
        ("OPENAI_BASE_URL", "not an address", "OPENAI_BASE_URL"),
    ],
)
def test_an_endpoint_that_is_not_there(
    variable: str,
    value: str | None,
    printed: str,
    server: Judge,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The error comes first: nothing is asked, nothing written."""
    monkeypatch.setenv(variable, value) if value else monkeypatch.delenv(variable)
    folder = results(tmp_path / "suite")
    assert printed in mistake(capsys, *command(folder, attempts=2))
    assert not server.requests and not (folder / "judge/dpo/manifest.json").exists()


def test_the_key_goes_nowhere(
    server: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Servers that repeat the key, and one that answers: no run prints or writes it, or a password in the address."""
    secret = server.address.replace("//", "//somebody:hunter2-canary@")
    folder = results(tmp_path / "suite")
    server.body = json.dumps({"error": {"message": f"no {CANARY} hunter2-canary"}}).encode()
    server.faults = [400, 400, 400, 401, (429, {"Retry-After": "99999"})]
    codes = []
    for address in (secret, server.address, server.address, server.address):
        monkeypatch.setenv("OPENAI_BASE_URL", address)
        codes.append(main(command(folder, concurrency=1)))
    assert codes == [2, 2, 2, 0]
    # The client takes a password in the address for the key.
    assert f"Bearer {CANARY}" in server.keys and len(server.keys) == 2
    out, err = capfd.readouterr()
    written = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    for canary in (CANARY, "hunter2-canary"):
        assert canary not in out + err and canary.encode() not in written


def test_the_cap_is_kept(server: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """12 are needed: with 11 allowed nothing is asked; with 13 and three repetitions the 14th is not made."""
    folder = results(tmp_path / "suite")
    message = mistake(capsys, *command(folder, max_requests=NEEDED - 1))
    assert "12 requests are needed and max_requests allows 11 in a job; nothing was asked" in message
    assert not server.requests
    server.faults = [500, 500, 500]
    assert "max_requests (13) is spent" in mistake(capsys, *command(folder, max_requests=13, concurrency=1))
    assert len(server.requests) == 13 and len(read_cached(folder / ".judge")) == 10
    assert main(command(folder, max_requests=2)) == 0  # what remains


def test_requests_a_minute(server: Judge, tmp_path: Path) -> None:
    """1,200 a minute are one in 0.05 s: 12 take at least 0.55 s at any concurrency."""
    began = time.monotonic()
    assert main(command(results(tmp_path / "suite"), concurrency=12, requests_per_minute=1200)) == 0
    assert time.monotonic() - began >= 0.55


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_at_a_time(concurrency: int, server: Judge, tmp_path: Path) -> None:
    server.delay = 0.2
    assert main(command(results(tmp_path / "suite"), concurrency=concurrency)) == 0
    assert server.most == concurrency


def started(folder: Path, server: Judge, **settings: Any) -> subprocess.Popen[str]:
    """Start the job as a process; return when the server holds it up and all answers so far are saved."""
    inside = {**environment(), "PYTHONPATH": str(ROOT / "workflow")}
    run = [sys.executable, "-m", "prefdag", *command(folder, **settings)]
    job = subprocess.Popen(run, env=inside, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until = time.monotonic() + 60
    while len(server.requests) <= (server.hold_after or 0) or len(read_cached(folder / ".judge")) < server.answered:
        assert time.monotonic() < until and job.poll() is None, job.communicate()[0] if job.poll() is not None else ""
        time.sleep(0.01)
    return job


def test_killed_in_the_middle(server: Judge, tmp_path: Path) -> None:
    """kill -9 after 5 answers; the next run asks the other 7, and one line that the crash cut off."""
    folder = results(tmp_path / "suite")
    server.hold_after = 5
    job = started(folder, server, concurrency=1)
    job.kill()
    assert job.wait() == -signal.SIGKILL
    assert not (folder / "judge/dpo/manifest.json").exists()
    server.hold_after = None
    assert main(command(folder)) == 0
    assert server.answered == NEEDED and summary(folder)["wins"] == 4


def test_told_to_stop(server: Judge, tmp_path: Path) -> None:
    """SIGTERM: exit code 143 once the request under way has been given up; nothing of the 5 answers is lost."""
    folder = results(tmp_path / "suite")
    server.hold_after = 5
    job = started(folder, server, concurrency=1, timeout=5)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=120) == 143
    assert "the next run continues" in job.communicate()[0]
    assert len(read_cached(folder / ".judge")) == 5


def test_a_torn_line_is_asked_again(tmp_path: Path) -> None:
    """The crash cut the second line off: the first stays, a third lands on a line of its own."""
    path = tmp_path / "dpo.jsonl"
    with AnswerCache(path) as answers:
        answers.add("one", "m", Answer("A\nB"))
        answers.add("two", "m", Answer("B", "length"))
    path.write_bytes(path.read_bytes()[:-9])
    assert read_cached(tmp_path) == {"one": Answer("A\nB")}
    with AnswerCache(path) as answers:
        answers.add("three", "m", Answer("", "HTTP 400", refused=True))
    assert read_cached(tmp_path) == {"one": Answer("A\nB"), "three": Answer("", "HTTP 400", True)}


def test_two_writers_of_one_file(tmp_path: Path) -> None:
    """Three processes append 200 answers of 10 kB each to the same file: every line is whole."""
    code = (
        "import sys\nfrom pathlib import Path\nfrom prefdag.evaluation.judge.cache import Answer, AnswerCache\n"
        "with AnswerCache(Path(sys.argv[1])) as answers:\n"
        "    for n in range(200): answers.add(f'{sys.argv[2]}-{n}', 'm', Answer(sys.argv[2] * 10_000))\n"
    )
    inside = {**environment(), "PYTHONPATH": str(ROOT / "workflow")}
    run = [sys.executable, "-c", code, str(tmp_path / "dpo.jsonl")]
    writers = [subprocess.Popen([*run, name], env=inside) for name in "abc"]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    result = read_cached(tmp_path)
    assert len(result) == 600 and all(text == Answer(key[0] * 10_000) for key, text in result.items())


CHOICES = {
    "Comparison: A is short.\nPreferred: B": "B",
    "More helpful: A": "A",
    'Preferred: "A"': "A",
    "**Preferred:** **B**.\n\n": "B",
    "B": "B",
    "Preferred: Summary A": "A",
    "Preferred: [tie]": "tie",
    "Tie": "tie",
    "": None,
    "Preferred: A or B": None,
    "Preferred: C": None,
    "Preferred: A\nThough B has its merits": None,
    "I prefer A": None,
    "a": None,
    "Preferred: Better": None,
    "Preferred: A\n</s>": "A",
    "A<|im_end|>": "A",
    "Preferred: A\n```": "A",
    "\\boxed{A}": "A",
    "<answer>A</answer>": "A",
    "Option A": "A",
    "Verdict - B": "B",
    "选择：A": "A",
    "<think>\nA seems fine.\n</think>\nMore helpful: B": "B",
    "A seems fine.\n</think>\n\nB": "B",
    "<think>\nPreferred: A": None,
    "[[A]] or [[B]]": None,
}
READ = {
    "mt-bench": {
        "[[C]]": "tie",
        "By the rules [[A]] would be the first. My verdict: [[B]].": "B",
        "<think>[[A]]</think> [[B]]": "B",
        "<think>[[A]]": None,
        "A": None,
    },
    "arena-hard": {
        "My final verdict is [[A>>B]]": "A",
        "[[A=B]]": "tie",
        "[[B>A]]": "B",
        "[[A<B]]": "B",
        "[[A>A]]": None,
        "A>B": None,
    },
    "alpaca-eval": {
        "Output (a)": "A",
        "I prefer Output (b).": "B",
        "m": "A",
        "M": "B",
        "[\n  {'model': 'model_2', 'rank': 1},\n  {'model': 'model_1', 'rank': 2}\n]": "B",
        '```\n[{"model": "model_1", "rank": 1}, {"model": "model_2", "rank": 1}]\n```': "tie",
        "[{'model': 'm'}]": None,
        "model_1": None,
    },
    "json": {
        '```json\n{"explanation": "{A} is short", "winner": "B"}\n```': "B",
        '{"verdict": "tie"}': "tie",
        '{"choice": "Response A"}': "A",
        'Not {this}. {"preferred": "neither"}': "tie",
        '{"winner": "A", "verdict": "B"}': None,
        '{"winner": "A"': None,
        '{"winner": 1}': None,
    },
    r"(?:Preferred|More helpful): \W*(?:Summary )?([AB])\b": {
        "More helpful: A\n\nLet me know if you need more.": "A",
        "Preferred: Summary A is better": "A",
        "Preferred: B. Preferred: A": "A",
        "Preferred: Neither": None,
    },
    r"(?P<A>first)|(?P<B>second)|(?P<tie>neither)": {"The second": "B", "neither": "tie", "third": None},
}


@pytest.mark.parametrize("answer", CHOICES)
def test_an_answer_is_read_by_its_last_line(answer: str) -> None:
    assert parse_choice(answer) == CHOICES[answer]


@pytest.mark.parametrize(("reader", "answer"), [(reader, answer) for reader in READ for answer in READ[reader]])
def test_an_answer_is_read_as_the_suite_says(reader: str, answer: str) -> None:
    assert LLM.model_validate({**MODEL, "reader": reader}).reader == reader
    assert parse_choice(answer, reader) == READ[reader][answer]


@pytest.mark.parametrize("name", PROMPTS)
def test_a_shipped_prompt_holds_the_pair_in_its_order(name: str) -> None:
    text = render_question(read_template(LLM(model="m", prompt=name)), "the post", "one {B}", "other {prompt}")
    assert text.index("the post") < text.index("A:\none {B}\n") < text.index("B:\nother {prompt}\n")
    assert text.count("other {prompt}") == 1 and "A or B" in text


def test_the_key_of_an_answer_is_all_that_it_depends_on() -> None:
    judge = LLM.model_validate(MODEL)
    changed = [judge.model_copy(update=one) for one in ({"model": "x"}, {"max_tokens": 1})]
    keys = {question_key(one, "q") for one in (judge, *changed)} | {question_key(judge, "other")}
    assert len(keys) == 4
    assert question_key(judge.model_copy(update={"concurrency": 9, "name": "x"}), "q") in keys


def test_a_users_prompt_is_relative_to_the_suite(
    server: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its path is the suite's; it is one of the stage's sources; a file without a place for the pair is a sentence."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    section = {"judge": {"judges": ["reward", {"model": "m", "prompt": "mine.txt"}]}}
    Path("configs/mini.yaml").write_text(yaml.safe_dump(merge(yaml.safe_load(MINI), section)))
    suite = read_suite(["configs/mini.yaml"])
    assert suite.judge.user_files() == (Path("configs/mine.txt"),)
    assert json.loads(jobs.config_of(suite, "judge"))["judge"]["judges"][1]["prompt"] == "configs/mine.txt"
    folder = results(tmp_path / "suite")
    Path("configs/mine.txt").write_text("{prompt} A:\n{A}\n\n B:\n{B}\n\n")
    assert main(command(folder, prompt="configs/mine.txt")) == 0
    assert {body["messages"][0]["content"][:8] for body in server.requests} == {f"Post {n} A" for n in range(6)}
    digest = json.loads((folder / "judge/dpo/manifest.json").read_text())["code"]
    Path("configs/mine.txt").write_text("New: {prompt} A:\n{A}\n\n B:\n{B}\n\n")
    assert main(command(folder, prompt="configs/mine.txt")) == 0
    assert len(server.requests) == 2 * NEEDED
    assert json.loads((folder / "judge/dpo/manifest.json").read_text())["code"] != digest
    Path("configs/mine.txt").write_text("{prompt} {A}")
    assert main(command(folder, prompt="configs/mine.txt")) == 2
    assert "configs/mine.txt: has no {B}" in capsys.readouterr().err


SLIPS: dict[str, tuple[Any, str]] = {
    "no prompt": ([{"model": "m"}], "judge.judges.0.prompt: missing"),
    "key": ([{**MODEL, "temprature": 1}], "judge.judges.0.temprature: unknown key"),
    "prompt": ([{"model": "m", "prompt": "poem"}], "expected one of summarisation-simple"),
    "twice": (["reward", "reward"], "duplicate judge reward"),
    "names": (
        [MODEL, {**MODEL, "prompt": "summarisation-concise"}],
        "duplicate judge tiny-judge; give each model",
    ),
    "letters": ([{**MODEL, "model": "größer@home"}], "state a `name` of letters, digits"),
    "none": ([], "judge.judges"),
    "reader": ([{**MODEL, "reader": "mtbench"}], "expected one of prefdag, mt-bench"),
    "expression": ([{**MODEL, "reader": "([AB]"}], "is neither"),
    "two limits": (
        [{**MODEL, "max_tokens": 9, "max_completion_tokens": 9}],
        "max_completion_tokens: the same limit as max_tokens",
    ),
    "body": ([{**MODEL, "extra_body": {"messages": []}}], "messages is set by prefdag"),
    "heat": ([{**MODEL, "extra_body": {"temperature": 1}}], "temperature is set by prefdag"),
    "cap": ([{**MODEL, "max_requests": 0}], "judge.judges.0.max_requests: expected a number of at least 1"),
}


@pytest.mark.parametrize("what", SLIPS)
def test_a_slip_in_the_section_is_a_sentence(what: str) -> None:
    judges, printed = SLIPS[what]
    with pytest.raises(UserError) as result:
        resolve(merge(yaml.safe_load(MINI), {"judge": {"judges": judges}}), "x.yaml")
    assert printed in str(result.value) and len(str(result.value).splitlines()) == 1


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_a_real_server_with_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`transformers serve` with random weights: the protocol holds, and its babble is counted, never taken as a tie."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "{% for one in messages %}{{ one['content'] }}{% endfor %}"
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    shape = Architectural(architecture="llama", hidden_size=16, layers=1, heads=2, context=2048)
    model = build(shape, len(tokenizer), tokenizer.bos_token_id, tokenizer.eos_token_id, 0)
    save(model, tmp_path / "tokenizer", tmp_path / "model")
    port = free_port()
    serve = [str(Path(sys.executable).parent / "transformers"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    inside = {**environment(), "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hub")}
    with (tmp_path / "serve.log").open("w") as log:
        at = subprocess.Popen([*serve, "--device", "cpu", str(tmp_path / "model")], env=inside, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while True:
            assert at.poll() is None and time.monotonic() < until, (tmp_path / "serve.log").read_text()[-2000:]
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.2)
        monkeypatch.setenv("OPENAI_BASE_URL", f"http://127.0.0.1:{port}/v1")
        monkeypatch.setenv("OPENAI_API_KEY", "none asked for")
        folder = results(tmp_path / "suite")
        settings = {"model": str(tmp_path / "model"), "name": "tiny-judge", "max_tokens": 8, "timeout": 60}
        assert main(command(folder, **settings)) == 0
        assert main(command(folder, **{**settings, "model": "unknown"})) == 2
    finally:
        at.terminate()
        at.wait(timeout=30)
    result = summary(folder)
    answers = [json.loads(line) for line in (folder / "judge/dpo/answers.jsonl").read_text().splitlines()]
    read = [parse_choice(one[order]) for one in answers for order in ("ours_first", "ours_second")]
    assert any(one["ours_first"] for one in answers)
    assert result["unparsable"] + result["cut"] >= read.count(None) > 0 and result["n"] + result["without_verdict"] == 6
    assert np.isfinite(result["win_rate"]) if result["n"] > 1 else result["win_rate"] is None


def test_plan_counts_the_requests(server: Judge, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs dpo and base against sft: dpo's 12 questions are known exactly, base's 2 x 6 prompts by the suite's numbers.

    A suite without a size has no estimate of GPU hours; its requests are printed before that message.
    """
    monkeypatch.chdir(tmp_path)
    changes = {"judge": {"judges": ["reward", MODEL]}, "generate": {"max_prompts": 6}, "name": "suite"}
    row = {"name": "dpo", "method": "dpo", "beta": 0.1}
    suite = resolve({**merge(yaml.safe_load(MINI), changes), "runs": [row]}, "x.yaml")
    (judge,), folder = suite.judge.models, results(tmp_path / "results/suite")
    message = requests(suite, judge, folder)
    assert "12 of 12 requests remain, and 12 requests for answers that are not there yet" in message
    assert main(command(folder)) == 0
    assert "0 of 12 requests remain" in requests(suite, judge, folder)
    assert "24 requests for answers" in requests(suite, judge, tmp_path / "nothing")


def test_plan_counts_the_requests_of_candidates(tmp_path: Path) -> None:
    """Of base and dpo on 6 test prompts, and of dpo's two candidates on as many validation prompts, in both orders."""
    judge, row = {"judges": [MODEL, "reward"]}, {"name": "dpo", "method": "dpo", "beta": 0.1}
    changes = {"judge": judge, "generate": {"max_prompts": 6}, "name": "suite", "runs": [row]}
    grid = {"grid": {"learning_rate": [1e-4, 1e-3]}}
    for select, sets in (({"criterion": "win_rate"}, 4), ({"criterion": "reward_at_kl", "kl": 1}, 2)):
        suite = resolve({**merge(yaml.safe_load(MINI), changes), "select": {**grid, **select}}, "x.yaml")
        assert f" {sets * 6 * 2} requests for answers" in requests(suite, suite.judge.models[0], tmp_path)


@pytest.mark.parametrize("name", ["tldr", "hh"])
def test_the_papers_judge_is_a_line_away(name: str, tmp_path: Path) -> None:
    """The shipped suite asks no model; with its commented line in place of the one below, it asks the paper's judge."""
    text = (ROOT / f"configs/{name}.yaml").read_text()
    line = next(line for line in text.splitlines() if line.startswith("#   judge: "))
    suite = read_suite([str(ROOT / f"configs/{name}.yaml")])
    assert suite.judge.against == "chosen" and not suite.judge.models
    (tmp_path / "asked.yaml").write_text(text.replace("\njudge: {against: chosen}\n", f"\n{line[4:]}\n"))
    judging_suite = read_suite([str(tmp_path / "asked.yaml")])
    assert judging_suite.judge.against == "chosen" and [judge.model for judge in judging_suite.judge.models] == [
        "gpt-4-0314"
    ]
    sets = [one for one in jobs.answers(judging_suite) if jobs.against(judging_suite, one)]
    assert len(sets) >= 2 + len(judging_suite.runs)
    assert f" {len(sets) * 256 * 2:,} requests" in requests(judging_suite, judging_suite.judge.models[0], tmp_path)
