"""Lines of rows to token ids, and what the audit must know of each: the part of `prepare` that runs on all cores."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import TextComparison, Unusable, as_text
from prefdag.data.adapters.registry import adapter_of
from prefdag.data.dedup import SIGNATURE, bands, digest, minhash
from prefdag.data.prompt_templates import assistant_turns, load_template
from prefdag.data.rows import decode_line
from prefdag.data.tokenization import encode_rendered, encode_texts, end_of_turn, end_response
from prefdag.errors import UserError

SURROGATE = re.compile("[\ud800-\udfff]")
CHARACTERS = {"\x85": "U+0085 (next line)", "\r": "carriage return", "\u2028": "U+2028 (line separator)"}


@dataclass(frozen=True)
class Chunk:
    """Lines of a file of rows. split: whose rows they are, None where that is decided by each prompt's hash."""

    path: Path
    split: str | None
    first: int
    offset: int
    lines: list[bytes]

    @property
    def size(self) -> int:
        return sum(map(len, self.lines))


@dataclass(frozen=True)
class EncodedRow:
    """A comparison as the store takes it, with what the audit counts."""

    split: str
    row: int
    prompt: list[int]
    responses: list[list[int]]
    scores: list[float] | None
    position: int | None
    characters: tuple[str, ...]
    cut: str | None


@dataclass
class EncodedChunk:
    """What became of a chunk. traits: one for each comparison that is kept, as `SIGNATURE` says."""

    size: int
    kept: list[EncodedRow] = field(default_factory=list)
    dropped: list[tuple[str, str, int]] = field(default_factory=list)  # split, reason, row
    traits: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, SIGNATURE))


Written = tuple[int, str, TextComparison, str, list[str]]  # row, split, comparison, prompt and responses as text


class ChunkEncoder:
    """Encodes chunks, one at a time, each by itself.

    held_out: share of the prompts of files that belong to no split of their own, for validation and for test.
    whole: a row of another number of responses is left out, counted, where a pair would be made of it.
    """

    def __init__(
        self,
        prepare: Prepare,
        adapter: str,
        num_responses: int,
        tokenizer: PreTrainedTokenizerBase,
        held_out: dict[str, float],
        whole: bool = False,
    ) -> None:
        self.whole = whole
        self.prepare, self.num_responses, self.tokenizer, self.held_out = prepare, num_responses, tokenizer, held_out
        self.adapt = adapter_of(adapter)
        self.template = load_template(tokenizer, prepare)
        self.end = end_of_turn(tokenizer, prepare)

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        """Raises `UserError` naming split and row for what is no row's own fault."""
        found = EncodedChunk(chunk.size)
        written = [
            row
            for number, line in enumerate(chunk.lines, chunk.first)
            for row in self._written(chunk, number, line, found)
        ]
        prompts = encode_rendered(self.tokenizer, [prompt for *_, prompt, _ in written], self.prepare)
        flat = encode_texts(self.tokenizer, [text for *_, responses in written for text in responses])
        texts = []
        for index, row in enumerate(written):
            responses = flat[index * self.num_responses : (index + 1) * self.num_responses]
            kept = self._kept(row, prompts[index], responses, found)
            if kept is not None:
                found.kept.append(kept)
                texts.append(row[2])
        found.traits = row_signatures([kept.row for kept in found.kept], texts)
        return found

    def _written(self, chunk: Chunk, number: int, line: bytes, found: EncodedChunk) -> Iterator[Written]:
        row = decode_line(line, chunk.path, number, chunk.offset)
        try:
            comparisons = self._comparisons(self.adapt(row), chunk, number)
        except Unusable as reason:
            found.dropped.append((chunk.split or "train", str(reason), number))
            return
        for comparison in comparisons:
            split = chunk.split or self._fallen(as_text(comparison.prompt))
            try:
                if any(SURROGATE.search(text) for text in (as_text(comparison.prompt), *comparison.responses)):
                    raise Unusable("a lone surrogate in the text")
                prompt = self.template.prompt(comparison.prompt)
                texts = [self.template.response(comparison.prompt, prompt, text) for text in comparison.responses]
            except Unusable as reason:
                found.dropped.append((split, str(reason), number))
            except UserError as mistake:
                raise UserError(f"{split}: row {number}: {mistake}") from None
            else:
                yield number, split, comparison, prompt, texts

    def _comparisons(self, whole: TextComparison, chunk: Chunk, number: int) -> list[TextComparison]:
        """The row as comparisons of K responses; a demonstration of which all turns are counted is one for each."""
        if self.whole and len(whole.responses) != self.num_responses:
            raise Unusable(f"{len(whole.responses)} responses, not {self.num_responses} as the first row has")
        if len(whole.responses) < self.num_responses:
            where = f"{chunk.split or 'train'}: row {number}"
            raise UserError(f"{where}: {len(whole.responses)} response, but a comparison needs {self.num_responses}")
        if self.num_responses > 1:
            return [whole if self.whole else self._pair(whole)]
        if len(whole.responses) == 1 and whole.scores == (0.0,):
            raise Unusable("labelled bad")
        one = replace(_first(whole, 1), scores=None)
        earlier = assistant_turns(whole.prompt) if self.prepare.counted == "all" else []
        return [*(TextComparison(prompt, (said,)) for prompt, said in earlier), one]

    def _pair(self, whole: TextComparison) -> TextComparison:
        """The best response against the one that the suite names."""
        worst = len(whole.responses) - 1
        drawn = 1 + digest(str(self.prepare.seed), as_text(whole.prompt), whole.responses[0]) % worst
        other = {"second": 1, "worst": worst, "random": drawn}[self.prepare.rejected]
        scores = whole.scores and (whole.scores[0], whole.scores[other])
        if scores and scores[0] == scores[1]:
            raise Unusable("tie")
        return replace(whole, responses=(whole.responses[0], whole.responses[other]), scores=scores)

    def _fallen(self, prompt: str) -> str:
        """The split of a prompt, by its hash and never by the order of rows: none is trained on and tested with."""
        place = _unit_hash(self.prepare.seed, prompt)
        if place < self.held_out["validation"]:
            return "validation"
        return "test" if place < sum(self.held_out.values()) else "train"

    def _kept(
        self, row: Written, prompt: list[int], responses: list[list[int]], found: EncodedChunk
    ) -> EncodedRow | None:
        number, split, comparison, *_ = row
        if not all(responses):
            raise UserError(f"{split}: row {number}: a response comes to no token; remove it or change the tokenizer")
        try:
            closed = [end_response(ids, self.end, self.template.closes) for ids in responses]
            prompt, closed, cut = self._fitted(f"{split}: row {number}", prompt, closed)
        except Unusable as reason:
            found.dropped.append((split, str(reason), number))
            return None
        text = "".join((as_text(comparison.prompt), *comparison.responses))
        characters = tuple(name for character, name in CHARACTERS.items() if character in text)
        scores = list(comparison.scores) if comparison.scores else None
        return EncodedRow(split, number, prompt, closed, scores, comparison.position, characters, cut)

    def _fitted(
        self, where: str, prompt: list[int], responses: list[list[int]]
    ) -> tuple[list[int], list[list[int]], str | None]:
        """Prompt and responses within the limits, and how they were cut. Raises `Unusable` for a row to be dropped."""
        prepare, cut = self.prepare, []
        longest = max(map(len, responses))
        limits = (
            ("prompt", len(prompt), prepare.max_prompt_tokens),
            ("response", longest, prepare.max_response_tokens),
        )
        for what, length, limit in limits:
            if length <= limit:
                continue
            if prepare.over_long == "error":
                key = f"prepare.max_{what}_tokens"
                raise UserError(f"{where}: a {what} of {length} tokens is over {key} {limit}; raise it or drop")
            if not prepare.over_long.startswith(f"cut-{what}"):
                raise Unusable(f"{what} over {limit} tokens")
            cut.append(f"{what} cut to {limit} tokens")
        if len(prompt) > prepare.max_prompt_tokens:
            bos = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id else []
            prompt = [*bos, *prompt[len(prompt) - prepare.max_prompt_tokens + len(bos) :]]
        return prompt, [ids[: prepare.max_response_tokens] for ids in responses], cut[0] if cut else None


def _first(whole: TextComparison, num: int) -> TextComparison:
    return replace(whole, responses=whole.responses[:num], scores=whole.scores and whole.scores[:num])


def _unit_hash(seed: int, text: str) -> float:
    found = hashlib.sha256(f"{seed}/{text}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(found[:8], "big") / 2**64


def row_signatures(rows: Sequence[int], comparisons: Sequence[TextComparison], near: bool = True) -> NDArray[np.void]:
    """The traits of comparisons: [N]. near: with the signatures that near-duplicates are found by."""
    traits = np.zeros(len(rows), SIGNATURE)
    for index, comparison in enumerate(comparisons):
        prompt, responses = as_text(comparison.prompt), comparison.responses
        label = (str(comparison.scores),) if len(responses) == 1 and comparison.scores else ()
        traits[index]["prompt"] = digest(prompt)
        traits[index]["whole"] = digest(prompt, *responses, *label)
        traits[index]["unordered"] = digest(prompt, *sorted(responses))
    traits["row"] = rows
    if not near or not rows:
        return traits
    signature = minhash(["\n".join((as_text(one.prompt), *one.responses)) for one in comparisons])
    traits["signature"], traits["bands"] = signature, bands(signature)
    return traits


def iter_chunks(path: Path, split: str | None, lines_at_once: int) -> Iterator[Chunk]:
    """The lines of a JSONL file that `fetch` or `pairs` wrote, some at a time."""
    lines: list[bytes] = []
    first = offset = 0
    with path.open("rb") as stream:
        for line in stream:
            lines.append(line)
            if len(lines) == lines_at_once:
                chunk = Chunk(path, split, first, offset, lines)
                yield chunk
                first, offset, lines = first + len(lines), offset + chunk.size, []
    if lines:
        yield Chunk(path, split, first, offset, lines)
