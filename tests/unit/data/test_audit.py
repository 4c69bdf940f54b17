"""The audit: every finding on rows made for it, and on public files whose faults are known."""

import gzip
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefdag.data.adapters.records import TextComparison
from prefdag.data.adapters.registry import ADAPTERS
from prefdag.data.dedup import DuplicateIndex, bands, minhash
from prefdag.data.preprocess import row_signatures
from prefdag.data.rows import read_rows
from prefdag.data.token_store import Store
from preparing import ABSENT, SHARED, UNLIMITED, audit, fetch, prepare, write_rows

real = pytest.mark.skipif(not SHARED.is_dir(), reason=ABSENT)


def pair(prompt: str, chosen: str = "yes", rejected: str = "no") -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def audited(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> dict[str, Any]:
    assert fetch(folder, {"source": str(write_rows(folder / "rows.jsonl", rows))}) == 0
    code, made = prepare(folder, **changes)
    assert code == 0
    return audit(made)


WORDS = [f"word{n}" for n in range(40)]


def test_duplicates_contradictions_and_repeated_prompts(tmp_path: Path):
    """Rows 2 and 4 repeat row 0, row 3 has its labels turned, row 5 only its prompt."""
    rows = [pair("a"), pair("b"), pair("a"), pair("a", "no", "yes"), pair("a"), pair("a", "one", "two")]
    counts = audited(tmp_path, rows)
    assert counts["duplicates"] == {"count": 2, "rows": [[2, 0], [4, 0]]}
    assert counts["contradictions"] == {"count": 1, "rows": [[3, 0]]}
    assert counts["prompts"] == {"repeated_rows": 4, "most_rows_of_one": 5, "its_first_row": 0}


def test_near_duplicates(tmp_path: Path):
    """One word of forty changed at the end breaks 1 of 37 shingles; half the words changed breaks them all but some."""
    near, far = [*WORDS[:-1], "other"], [*WORDS[:20], *(f"new{n}" for n in range(20))]
    rows = [pair(" ".join(words), "well then", "oh no") for words in (WORDS, far, near)]
    assert audited(tmp_path, rows)["near_duplicates"] == {"count": 1, "rows": [[2, 0]]}


def test_signatures_estimate_the_share_of_shingles_in_common():
    """Of 96 five-word shingles of 100 words, 20 words changed at the end leave 76: J = 76 / 116 = 0.655, ± 0.12."""
    words = [f"w{n}" for n in range(100)]
    texts = [" ".join(words), " ".join([*words[:80], *(f"v{n}" for n in range(20))])]
    hashes = minhash(texts)
    assert abs((hashes[0] == hashes[1]).mean() - 76 / 116) < 0.12
    assert np.array_equal(bands(hashes)[0], bands(minhash(texts[:1]))[0]), "a signature depends on its row alone"


def test_position_bias_and_labels_that_never_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def rows(labels: list[int]) -> list[dict[str, Any]]:
        texts = {"response_1": "yes", "response_2": "no"}
        return [{"question": f"q{n}", **texts, "overall_response": label} for n, label in enumerate(labels)]

    assert audited(tmp_path, rows([1] * 30), adapter="align-anything")["best_position"] == {"0": 30}
    assert "suspicious: every one of 30 labels says that response 1 is best" in capsys.readouterr().out
    audited(tmp_path, rows([2, 2, 2, 1] * 25), adapter="align-anything")
    assert "position bias: response 2 is best in 75.0% of 100" in capsys.readouterr().out
    audited(tmp_path, rows([2, 1] * 50), adapter="align-anything")
    assert "position" not in capsys.readouterr().out


def test_longer_responses_padding_and_shared_prompts(tmp_path: Path):
    """Tokens (one a byte, a BOS before, an end behind): prompts 5 and 3, responses 3 and 2, 2 and 6.

    Apart 5+3 + 5+2 + 3+2 + 3+6 = 29; the prompt once, 21; four sequences padded to the longest, 9, are 36.
    """
    counts = audited(tmp_path, [pair("aaaa", "yy", "n"), pair("bb", "y", "nnnnn")])
    assert (counts["chosen_longer"], counts["rejected_longer"]) == (0.5, 0.5)
    savings = counts["savings"]
    assert (savings["apart"], savings["packed"], savings["padded"]) == (29, 21, 36)
    assert (savings["shared_prompt"], savings["padding"]) == (1 - 21 / 29, 1 - 29 / 36)
    assert counts["tokens"]["rejected"] == {"total": 8, "median": 6, "max": 6, "histogram": {"0": 2}}


def test_characters_that_break_naive_readers(tmp_path: Path):
    """Each is counted by row; a lone surrogate, which no tokenizer takes, is dropped; all of them survive `fetch`."""
    rows = [pair("a\x85"), pair("b\r\n"), pair("c\u2028"), pair("d\ud800"), pair("e")]
    counts = audited(tmp_path, rows)
    assert [row["prompt"] for row in read_rows(tmp_path / "out/fetch/data/train.jsonl")] == [
        row["prompt"] for row in rows
    ]
    assert counts["characters"] == {
        "U+0085 (next line)": {"count": 1, "rows": [0]},
        "U+2028 (line separator)": {"count": 1, "rows": [2]},
        "carriage return": {"count": 1, "rows": [1]},
    }
    assert counts["dropped"] == {"a lone surrogate in the text": {"count": 1, "rows": [3]}}


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_bytes_that_are_no_utf8_are_told_with_their_offset(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    content = b'{"prompt": "a"}\n{"prompt": "\xe9"}\n' if name == "a.jsonl" else b"prompt,chosen\naa,b\n\xe9,c\n"
    (tmp_path / name).write_bytes(content)
    assert fetch(tmp_path, {"source": str(tmp_path / name)}) == 2
    assert f"byte {content.index(0xE9)} of the file; convert the file" in capsys.readouterr().err


def test_leakage_is_an_error_unless_the_suite_allows_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    write_rows(tmp_path / "raw/train.jsonl", [pair(f"p{n}") for n in range(9)])
    write_rows(tmp_path / "raw/test.jsonl", [pair("p1"), pair("p2"), pair("q")])
    data = {"source": str(tmp_path / "raw"), "train": "train.jsonl", "test": "test.jsonl"}
    assert fetch(tmp_path, data) == 0
    assert prepare(tmp_path)[0] == 2
    assert "test: the prompt 'p1' is in the train split too; set prepare.leakage to drop" in capsys.readouterr().err
    code, folder = prepare(tmp_path, leakage="allow")
    assert code == 0
    assert json.loads((folder / "audit.json").read_text())["shared_prompts"] == {"test and train split": 2}
    assert "2 prompts are in test and train split" in (folder / "audit.html").read_text()


def test_what_a_later_split_holds_can_be_dropped_and_is_counted(tmp_path: Path):
    """p1 is held out by test, and by validation as well; p2 by validation. SFT's rows lack them too."""
    write_rows(tmp_path / "raw/train.jsonl", [pair(f"p{n}") for n in (1, 0, 2, 1, 3)])
    write_rows(tmp_path / "raw/validation.jsonl", [pair("p2"), pair("p1")])
    write_rows(tmp_path / "raw/test.jsonl", [pair("p1"), pair("q")])
    data = {"source": str(tmp_path / "raw"), **{split: f"{split}.jsonl" for split in ("train", "validation", "test")}}
    assert fetch(tmp_path, data) == 0
    code, demonstrations = prepare(tmp_path, dataset="demonstrations", leakage="drop")
    assert code == 0
    assert Store.open(demonstrations / "train").rows.tolist() == [1, 4]
    code, folder = prepare(tmp_path, inputs={"demonstrations": demonstrations / "manifest.json"}, leakage="drop")
    audit = json.loads((folder / "audit.json").read_text())
    assert code == 0 and audit["shared_prompts"] == {"train and SFT's training": 2}
    rows = {split: Store.open(folder / split).rows.tolist() for split in audit["splits"]}
    assert rows == {"train": [1, 4], "validation": [0], "test": [0, 1]}
    dropped = {split: entry["dropped"] for split, entry in audit["splits"].items()}
    held = "a prompt that is held out in"
    assert dropped["train"] == {
        f"{held} test": {"count": 2, "rows": [0, 3]},
        f"{held} validation": {"count": 1, "rows": [2]},
    }
    assert dropped["validation"] == {f"{held} test": {"count": 1, "rows": [1]}} and dropped["test"] == {}


def test_prompts_that_sft_trains_on_may_not_be_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Demonstrations from other rows than the comparisons: p1 is SFT's training and the comparisons' test."""
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "r.jsonl", [pair("p1"), pair("p2")]))}) == 0
    code, demonstrations = prepare(tmp_path, dataset="demonstrations")
    assert code == 0
    shutil.rmtree(tmp_path / "out/fetch/data")
    write_rows(tmp_path / "raw/train.jsonl", [pair("p2"), pair("p3")])
    write_rows(tmp_path / "raw/test.jsonl", [pair("p1"), pair("q")])
    data = {"source": str(tmp_path / "raw"), "train": "train.jsonl", "test": "test.jsonl"}
    assert fetch(tmp_path, data) == 0
    seen = {"demonstrations": demonstrations / "manifest.json"}
    assert prepare(tmp_path, inputs=seen)[0] == 2
    assert "test: the prompt 'p1' is in SFT's training too" in capsys.readouterr().err
    code, folder = prepare(tmp_path, inputs=seen, leakage="allow")
    shared = json.loads((folder / "audit.json").read_text())["shared_prompts"]
    assert (code, shared) == (0, {"train and SFT's training": 1, "test and SFT's training": 1})


@pytest.mark.parametrize(("split", "rows"), [("train", ["q", "q"]), ("test", ["q"])])
def test_a_split_of_one_prompt_is_refused_before_anything_is_trained(
    split: str, rows: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    for name in ("train", "test"):
        write_rows(tmp_path / f"raw/{name}.jsonl", [pair(n) for n in (rows if name == split else ["p1", "p2"])])
    assert fetch(tmp_path, {"source": str(tmp_path / "raw"), "train": "train.jsonl", "test": "test.jsonl"}) == 0
    assert prepare(tmp_path)[0] == 2
    assert f"{split}: the {split} split has 1 prompt, but needs at least 2" in capsys.readouterr().err
    assert not (tmp_path / "out/prepare/comparisons/manifest.json").exists()


def test_the_audit_is_a_page_and_an_artifact(tmp_path: Path):
    audited(tmp_path, [pair("<script>alert(1)</script>"), pair("b"), pair("b")])
    folder = tmp_path / "out/prepare/comparisons"
    for name, other in (("audit", "samples"), ("samples", "audit")):
        text = (folder / f"{name}.html").read_text()
        assert '<a href="../../report/index.html">' in text and f'<a href="{other}.html">' in text
        assert "--paper: #fdfdfc" in text, "the report's look"
    page = (folder / "audit.html").read_text()
    assert "3 of 3 rows used" in page and "1 repeat an earlier row: rows 3" in page and "<script" not in page
    (journal,) = (tmp_path / "out/.journal").glob("prepare-*.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    names = {event["as"] for event in events if event["event"] == "artifact"}
    assert names == {f"comparisons-{name}" for name in ("audit.json", "audit.html", "samples.html")}


@pytest.mark.parametrize(("rejected", "expected"), [("second", {"b"}), ("worst", {"d"}), ("random", {"b", "c", "d"})])
def test_the_best_of_k_is_set_against_the_one_that_the_suite_names(rejected: str, expected: set[str], tmp_path: Path):
    rows = [{"prompt": f"q{n}", "responses": ["b", "d", "a", "c"], "scores": [3, 1, 4, 2]} for n in range(40)]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "r.jsonl", rows))}) == 0
    code, folder = prepare(tmp_path, adapter="ranked", rejected=rejected)
    assert code == 0
    from prefdag.data.token_store import Store

    store = Store.open(folder / "train")
    seen = {(chr(one.responses[0][0] - 2 + ord("!")), chr(one.responses[1][0] - 2 + ord("!"))) for one in store}
    assert seen == {("a", other) for other in expected}
    assert store.scores is not None and set(store.scores[:, 0]) == {4.0}


@pytest.mark.parametrize(("rejected", "dropped"), [("second", 20), ("worst", 0)])
def test_a_pair_of_equal_scores_is_left_out_and_counted(rejected: str, dropped: int, tmp_path: Path):
    """Of every second row the two best scores are equal; best and worst always differ."""
    rows = [{"prompt": f"q{n}", "responses": ["a", "b", "c"], "scores": [4, 4 - n % 2, 1]} for n in range(40)]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "r.jsonl", rows))}) == 0
    code, folder = prepare(tmp_path, adapter="ranked", rejected=rejected)
    counts = audit(folder)
    assert code == 0 and counts["used"] == 40 - dropped
    assert {reason: each["count"] for reason, each in counts["dropped"].items()} == (
        {"tie": dropped} if dropped else {}
    )


def real_audit(folder: Path, path: str, adapter: str, **data: Any) -> dict[str, Any]:
    assert fetch(folder, {"source": str(SHARED / path), **data}) == 0
    code, made = prepare(folder, adapter=adapter, **UNLIMITED)
    assert code == 0
    return audit(made)


@real
def test_saferlhf(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """One prompt 85 times; response 2 is better in 5,194 of 8,211 (63 %); three better responses are empty."""
    counts = real_audit(tmp_path, "saferlhf/combined_test_8211.json.xz", "saferlhf-better")
    assert counts["rows_in"] == 8211
    assert counts["dropped"] == {"empty chosen": {"count": 3, "rows": [781, 1301, 1678]}}
    assert counts["prompts"]["most_rows_of_one"] == 85
    output = capsys.readouterr().out
    assert f"that of row {counts['prompts']['its_first_row'] + 1} comes 85 times" in output
    assert "position bias: response 2 is best in 63.2% of 8208" in output


@real
def test_align_anything(tmp_path: Path):
    """One equal pair; 85 rows share their prompt with another, 44 of them after its first."""
    counts = real_audit(tmp_path, "align-anything/newvalset.json", "align-anything")
    assert (counts["rows_in"], counts["dropped"]) == (999, {"equal responses": {"count": 1, "rows": [273]}})
    assert counts["best_position"] == {"0": 498, "1": 500}
    assert counts["prompts"]["repeated_rows"] == 44


@real
def test_the_parquet_that_was_overwritten_is_suspicious(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    counts = real_audit(tmp_path, "messy/val_1k.parquet", "align-anything")
    assert counts["dropped"]["equal responses"]["count"] == 4
    assert "suspicious: every one of 995 labels says that response 1 is best" in capsys.readouterr().out


@real
def test_pandalms_booleans_are_refused_by_row(tmp_path: Path):
    """Columns of other names by a map; responses that a conversion made true and false are no text; 0 is a tie."""
    columns = {
        "question": "instruction",
        "response_1": "response1",
        "response_2": "response2",
        "overall_response": "annotator1",
    }
    counts = real_audit(tmp_path, "messy/pandalm-testset.json", "align-anything", columns=columns)
    assert counts["dropped"]["`response_1` is not text"] == {"count": 4, "rows": [157, 158, 159, 164]}
    assert counts["dropped"]["`response_2` is not text"] == {"count": 2, "rows": [161, 162]}
    assert counts["rows_in"] == 999
    assert sum(entry["count"] for entry in counts["dropped"].values()) + counts["used"] == 999


@real
def test_tldr_with_fields_of_several_lines(tmp_path: Path):
    counts = real_audit(tmp_path, "tldr/oai1b.csv_judged.csv", "tldr")
    assert (counts["rows_in"], counts["used"]) == (1945, 1000)
    assert counts["dropped"]["not judged"]["count"] == 945
    assert counts["best_position"] == {"0": 640, "1": 360}


@real
def test_hh_and_its_odd_rows(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    counts = real_audit(tmp_path, "hh-harmless/test.jsonl.gz", "hh")
    assert counts["dropped"]["prompts differ"] == {"count": 5, "rows": [1254, 1688, 1950, 1952, 2036]}
    dialogues = [row["chosen"] for row in read_rows(SHARED / "hh-harmless/test.jsonl.gz")]
    empty = [number for number, dialogue in enumerate(dialogues) if dialogue.rstrip().endswith("\n\nAssistant:")]
    assert counts["dropped"]["empty chosen"] == {"count": 4, "rows": empty}
    listed = ", ".join(str(row + 1) for row in empty)
    assert f"train: 4 dropped, empty chosen: rows {listed}" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        real_audit(tmp_path, "messy/lfs_pointer_helpful-base_train.jsonl.gz", "hh")
    assert "a Git-LFS pointer, not the file itself" in capsys.readouterr().err


@real
@pytest.mark.parametrize(("name", "rows", "repeated"), [("train", 25_000, 96), ("unsup", 50_000, None)])
def test_imdb(name: str, rows: int, repeated: int | None, tmp_path: Path):
    """Reviews that hold U+0085 stay whole; of the labelled, 96 repeat an earlier one."""
    texts = [row["text"] for row in read_rows(SHARED / f"imdb/{name}.jsonl.gz")]
    assert len(texts) == rows
    if repeated is None:
        with gzip.open(SHARED / f"imdb/{name}.jsonl.gz", "rt", encoding="utf-8") as stream:
            assert len(stream.read().splitlines()) > rows, "what a naive reader makes of them"
        return
    comparisons: list[TextComparison] = [ADAPTERS["imdb"]({"text": text}) for text in texts]
    path = tmp_path / "signatures"
    path.write_bytes(row_signatures(range(rows), comparisons, near=False).tobytes())
    pairs = DuplicateIndex(path).duplicates()
    assert len(pairs) == repeated == sum(count - 1 for count in Counter(texts).values())
    assert all(texts[row] == texts[first] for row, first in pairs)


def test_pairs_against_their_scores_are_used_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = [
        {"prompt": f"q{n}", "chosen": "a", "rejected": "b", "score_chosen": n, "score_rejected": 1.5} for n in range(4)
    ]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "rows.jsonl", rows))}) == 0
    code, folder = prepare(tmp_path)
    assert (code, audit(folder)["used"], audit(folder)["against_scores"]) == (0, 4, {"count": 2, "rows": [0, 1]})
    assert (
        "train: 2 with a lower score of the chosen response than of the rejected one: rows 1, 2"
        in capsys.readouterr().out
    )


def test_empty_prompts_are_counted_and_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Text, a transcript and messages may each ask nothing; a system prompt asks nothing either."""
    system, nothing = {"role": "system", "content": "Be brief."}, {"role": "user", "content": " "}
    transcripts = ["\n\nHuman: q\n\nAssistant:", "\n\nHuman: \n\nAssistant:"]
    prompts = ["q", transcripts[0], " \n", transcripts[1], [nothing], [system, nothing]]
    rows = [
        {"prompt": one if isinstance(one, str) else json.dumps(one), "chosen": "a", "rejected": "b"} for one in prompts
    ]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "rows.jsonl", rows))}) == 0
    code, folder = prepare(tmp_path)
    assert (code, audit(folder)["used"], audit(folder)["empty_prompts"]) == (0, 6, {"count": 4, "rows": [2, 3, 4, 5]})
    assert "train: 4 with an empty prompt: rows 3, 4, 5, 6" in capsys.readouterr().out
    texts = [{"prompt": one, "chosen": "a", "rejected": "b"} for one in ("q", "")]
    assert fetch(tmp_path, {"source": str(write_rows(tmp_path / "rows.jsonl", texts))}) == 0
    assert prepare(tmp_path, bos=False)[0] == 2
    assert "train: row 2: the prompt '' comes to no token; set prepare.bos to true" in capsys.readouterr().err
