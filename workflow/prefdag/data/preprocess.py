"""Lines of rows to token ids and to what the audit counts: the part of `prepare` that runs on all cores."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import TextComparison, Unusable, as_text, question_of
from prefdag.data.adapters.registry import adapter_of
from prefdag.data.dedup import SIGNATURE, bands, digest, minhash
from prefdag.data.prompt_templates import TextTemplate, assistant_turns, is_dialogue, load_template, without_first_turns
from prefdag.data.rows import decode_line
from prefdag.data.splits import split_of
from prefdag.data.tokenization import encode_rendered, encode_texts, end_of_turn, end_response
from prefdag.errors import UserError

UNDESIRABLE = "labelled bad"  # why a row is no demonstration
SURROGATE = re.compile("[\ud800-\udfff]")
CHARACTERS = {"\x85": "U+0085 (next line)", "\r": "carriage return", "\u2028": "U+2028 (line separator)"}


@dataclass(frozen=True)
class Chunk:
    """Consecutive lines of a file of rows.

    Attributes:
        path: the file.
        split: the split of the rows; None if the hash of each prompt decides.
        first: number of the first row in the file.
        offset: byte offset of the first line in the file.
        lines: the lines, each with its newline.
    """

    path: Path
    split: str | None
    first: int
    offset: int
    lines: list[bytes]

    @property
    def size(self) -> int:
        """Bytes of the lines."""
        return sum(map(len, self.lines))


@dataclass(frozen=True)
class EncodedRow:
    """One comparison as token ids, with what the audit counts of it."""

    split: str
    row: int
    prompt: list[int]
    responses: list[list[int]]
    scores: list[float] | None
    position: int | None
    characters: tuple[str, ...]
    cut: str | None
    is_prompt_empty: bool


@dataclass
class EncodedChunk:
    """The result of a chunk: comparisons to store, one signature for each, and the rows that are not used."""

    size: int
    rows: list[EncodedRow] = field(default_factory=list)
    dropped: list[tuple[str, str, int]] = field(default_factory=list)  # split, reason, row
    signatures: NDArray[np.void] = field(default_factory=lambda: np.zeros(0, SIGNATURE))


@dataclass(frozen=True)
class RenderedRow:
    """One comparison with its prompt and responses as the template writes them."""

    split: str
    row: int
    comparison: TextComparison
    prompt: str
    responses: list[str]


class ChunkEncoder:
    """Encodes chunks; the result of a chunk depends on nothing but the chunk.

    Args:
        prepare: the suite's section.
        adapter: name of the adapter.
        num_responses: K, the responses of each comparison.
        tokenizer: the model's tokenizer.
        held_out: shares of the prompts for validation and test (`splits.held_out_shares`).
        rankings: store all responses of a row; drop a row that has not exactly K. Else a pair is made of each row.
        labelled: each row is a single response, stored with its label as its score.
    """

    def __init__(
        self,
        prepare: Prepare,
        adapter: str,
        num_responses: int,
        tokenizer: PreTrainedTokenizerBase,
        held_out: dict[str, float],
        rankings: bool = False,
        labelled: bool = False,
    ) -> None:
        self.prepare, self.num_responses, self.tokenizer = prepare, num_responses, tokenizer
        self.held_out, self.rankings, self.labelled = held_out, rankings, labelled
        self.adapt = adapter_of(adapter)
        self.template = load_template(tokenizer, prepare)
        self.end = end_of_turn(tokenizer, prepare)

    def __call__(self, chunk: Chunk) -> EncodedChunk:
        """Encode a chunk. Raises `UserError` naming split and row for a mistake that is not a single row's."""
        result = EncodedChunk(chunk.size)
        rendered = [
            row
            for number, line in enumerate(chunk.lines, chunk.first)
            for row in self._render(chunk, number, line, result)
        ]
        # The tokenizer is called once for all prompts and once for all responses: many calls are slow.
        names = [f"{row.split}: row {row.row + 1}" for row in rendered]
        prompts = encode_rendered(self.tokenizer, [row.prompt for row in rendered], self.prepare, names)
        flat = encode_texts(self.tokenizer, [text for row in rendered for text in row.responses])
        comparisons = []
        for index, row in enumerate(rendered):
            responses = flat[index * self.num_responses : (index + 1) * self.num_responses]
            try:
                result.rows.append(self._finish(row, prompts[index], responses))
            except Unusable as reason:
                result.dropped.append((row.split, str(reason), row.row))
            else:
                comparisons.append(row.comparison)
        result.signatures = row_signatures([row.row for row in result.rows], comparisons)
        return result

    def _render(self, chunk: Chunk, number: int, line: bytes, result: EncodedChunk) -> Iterator[RenderedRow]:
        """Read one line and write its comparisons as text; what cannot be used is added to `result.dropped`."""
        row = decode_line(line, chunk.path, number, chunk.offset)
        try:
            comparisons = self._comparisons(self.adapt(row), chunk, number)
        except Unusable as reason:
            result.dropped.append((chunk.split or "train", str(reason), number))
            return
        for comparison in comparisons:
            split = chunk.split or split_of(as_text(comparison.prompt), self.prepare.seed, self.held_out)
            try:
                if any(SURROGATE.search(text) for text in (as_text(comparison.prompt), *comparison.responses)):
                    raise Unusable("a lone surrogate in the text")
                prompt = self.template.prompt(comparison.prompt)
                texts = [self.template.response(comparison.prompt, prompt, text) for text in comparison.responses]
            except Unusable as reason:
                result.dropped.append((split, str(reason), number))
            except UserError as mistake:
                raise UserError(f"{split}: row {number + 1}: {mistake}") from None
            else:
                yield RenderedRow(split, number, comparison, prompt, texts)

    def _comparisons(self, comparison: TextComparison, chunk: Chunk, number: int) -> list[TextComparison]:
        """Return the row's comparisons of K responses: one, or one per turn of a demonstration with `counted: all`."""
        num, responses = self.num_responses, comparison.responses
        if self.labelled:
            if not comparison.is_labelled:
                raise UserError(
                    f"{chunk.split or 'train'}: row {number + 1}: not one response with a label, as the first row has; "
                    "give single responses or pairs, not both"
                )
            return [comparison]
        if self.rankings and len(responses) != num:
            raise Unusable(f"{len(responses)} responses, not {num} as the first row has")
        if len(responses) < num:
            where = f"{chunk.split or 'train'}: row {number + 1}"
            raise UserError(f"{where}: {len(responses)} response, but a comparison needs {num}")
        if num > 1:
            return [comparison if self.rankings else self._pair(comparison)]
        if comparison.is_labelled and comparison.scores == (0.0,):
            raise Unusable(UNDESIRABLE)
        best = replace(comparison, responses=responses[:1], scores=None)
        earlier = assistant_turns(comparison.prompt) if self.prepare.counted == "all" else []
        excluded = {len(comparison.prompt) + at for at in comparison.untrained}
        trained = (turn for turn in earlier if len(turn[0]) not in excluded)
        return [*(TextComparison(prompt, (response,)) for prompt, response in trained), best]

    def _pair(self, comparison: TextComparison) -> TextComparison:
        """Pair the best response with the one that `prepare.rejected` names."""
        responses, scores = comparison.responses, comparison.scores
        worst = len(responses) - 1
        random = 1 + digest(str(self.prepare.seed), as_text(comparison.prompt), responses[0]) % worst
        rejected = {"second": 1, "worst": worst, "random": random}[self.prepare.rejected]
        scores = scores and (scores[0], scores[rejected])
        if scores and scores[0] == scores[1]:
            raise Unusable("tie")
        return replace(comparison, responses=(responses[0], responses[rejected]), scores=scores)

    def _finish(self, row: RenderedRow, prompt: list[int], responses: list[list[int]]) -> EncodedRow:
        """End each response with its end-of-turn and apply the limits. Raises `Unusable` for a row to be dropped."""
        where, comparison = f"{row.split}: row {row.row + 1}", row.comparison
        if not all(responses):
            raise UserError(f"{where}: a response comes to no token; remove it or change the tokenizer")
        prompt, ended, cut = self._cut(row, prompt, self._ended(responses))
        if len({tuple(ids) for ids in ended}) < len(ended):
            raise Unusable("equal responses as tokens" if cut is None else "equal responses once they are cut")
        text = "".join((as_text(comparison.prompt), *comparison.responses))
        characters = tuple(name for character, name in CHARACTERS.items() if character in text)
        scores = list(comparison.scores) if comparison.scores else None
        is_empty = not question_of(comparison.prompt)
        return EncodedRow(row.split, row.row, prompt, ended, scores, comparison.position, characters, cut, is_empty)

    def _ended(self, responses: Sequence[list[int]]) -> list[list[int]]:
        return [end_response(ids, self.end, self.template.writes_end_of_turn) for ids in responses]

    def _cut(
        self, row: RenderedRow, prompt: list[int], responses: list[list[int]]
    ) -> tuple[list[int], list[list[int]], str | None]:
        """Cut prompt and responses to their limits; return them, and how the row was cut as the audit says it."""
        prepare, cuts = self.prepare, []
        limits = (
            ("prompt", len(prompt), prepare.max_prompt_tokens),
            ("response", max(map(len, responses)), prepare.max_response_tokens),
        )
        for part, length, limit in limits:
            if length <= limit:
                continue
            if prepare.over_long == "error":
                key, where = f"prepare.max_{part}_tokens", f"{row.split}: row {row.row + 1}"
                raise UserError(f"{where}: a {part} of {length} tokens is over {key} {limit}; raise it or drop")
            if not prepare.over_long.startswith(f"cut-{part}"):
                raise Unusable(f"{part} over {limit} tokens")
            cuts.append(f"{part} cut to {limit} tokens")
        if len(prompt) > prepare.max_prompt_tokens:
            if not isinstance(self.template, TextTemplate) or is_dialogue(row.comparison.prompt):
                prompt, responses = self._without_first_turns(row)
            else:
                # The beginning is cut, but a BOS token stays in front.
                bos = prompt[:1] if prompt[0] == self.tokenizer.bos_token_id else []
                prompt = [*bos, *prompt[len(prompt) - prepare.max_prompt_tokens + len(bos) :]]
        return prompt, [ids[: prepare.max_response_tokens] for ids in responses], cuts[0] if cuts else None

    def _without_first_turns(self, row: RenderedRow) -> tuple[list[int], list[list[int]]]:
        """Return the ids of prompt and responses without the dialogue's first turns, as few as the limit allows.

        A part of a turn would begin within the template's words, so whole turns are left out, never the system turn.
        """
        limit, prompt = self.prepare.max_prompt_tokens, row.comparison.prompt
        while (shorter := without_first_turns(prompt)) is not None:
            prompt, rendered = shorter, self.template.prompt(shorter)
            (ids,) = encode_rendered(self.tokenizer, [rendered], self.prepare)
            if len(ids) <= limit:
                texts = [self.template.response(prompt, rendered, text) for text in row.comparison.responses]
                return ids, self._ended(encode_texts(self.tokenizer, texts))
        raise Unusable(f"prompt over {limit} tokens")


def row_signatures(rows: Sequence[int], comparisons: Sequence[TextComparison], near: bool = True) -> NDArray[np.void]:
    """Return the signatures of comparisons, [N] of `SIGNATURE`.

    Args:
        rows: row number of each comparison.
        comparisons: the comparisons, N.
        near: whether to compute the MinHash, by which near-duplicates are found.
    """
    signatures = np.zeros(len(rows), SIGNATURE)
    for index, comparison in enumerate(comparisons):
        prompt, responses = as_text(comparison.prompt), comparison.responses
        label = (str(comparison.scores),) if len(responses) == 1 and comparison.scores else ()
        signatures[index]["prompt"] = digest(prompt)
        signatures[index]["question"] = digest(question_of(comparison.prompt))
        signatures[index]["whole"] = digest(prompt, *responses, *label)
        signatures[index]["unordered"] = digest(prompt, *sorted(responses))
    signatures["row"] = rows
    if near and rows:
        hashes = minhash(["\n".join((as_text(one.prompt), *one.responses)) for one in comparisons])
        signatures["minhash"], signatures["bands"] = hashes, bands(hashes)
    return signatures


def iter_chunks(path: Path, split: str | None, lines_per_chunk: int) -> Iterator[Chunk]:
    """Iterate over a JSONL file that `fetch` or `pairs` wrote in chunks of `lines_per_chunk` lines."""
    lines: list[bytes] = []
    first = offset = 0
    with path.open("rb") as stream:
        for line in stream:
            lines.append(line)
            if len(lines) == lines_per_chunk:
                chunk = Chunk(path, split, first, offset, lines)
                yield chunk
                first, offset, lines = first + len(lines), offset + chunk.size, []
    if lines:
        yield Chunk(path, split, first, offset, lines)
