"""Judge pairs of answers with a language model: each pair in both orders, each question once."""

import math
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

from prefdag.config.sections.judge import LLM, name_of
from prefdag.errors import UserError
from prefdag.evaluation.judge.cache import Answer, AnswerCache, question_key, read_cached
from prefdag.evaluation.judge.client import Endpoint, Interrupted
from prefdag.evaluation.judge.prompts import read_template, render_question
from prefdag.evaluation.judge.readers import parse_choice
from prefdag.evaluation.scores import Key, read_answers

FOLDER = ".judge"  # below a suite's results
OURS_FIRST = {"A": 1.0, "tie": 0.5, "B": 0.0, None: math.nan}  # letter chosen -> verdict
OURS_SECOND = {"A": 0.0, "tie": 0.5, "B": 1.0, None: math.nan}
SECONDS_BETWEEN_MESSAGES = 30.0


@dataclass(frozen=True)
class Pair:
    """Two answers to one prompt."""

    prompt: str
    ours: str
    theirs: str


def pairs_of(generations: Path, against: Path, keys: Sequence[tuple[Key, Key]]) -> list[Pair]:
    """Return the pairs of answers in two folders.

    Args:
        generations: Folder of our answers.
        against: Folder of their answers.
        keys: The keys of each pair, ours and theirs.

    Raises:
        UserError: An answer is missing, or the two prompts of a pair differ.
    """
    mine, others = read_answers(generations), read_answers(against)
    pairs = []
    for ours, theirs in keys:
        prompt, response = _answer(mine, generations, ours)
        other_prompt, reference = _answer(others, against, theirs)
        if prompt != other_prompt:
            raise UserError(
                f"{generations}: prompt {ours[0]} reads differently in {against}; make both from the same data"
            )
        pairs.append(Pair(prompt, response, reference))
    return pairs


def _answer(answers: dict[Key, tuple[str, str]], folder: Path, key: Key) -> tuple[str, str]:
    if key not in answers:
        raise UserError(f"{folder}: has no answer to prompt {key[0]} sample {key[1]}; generate and score it again")
    return answers[key]


@dataclass(frozen=True)
class Verdict:
    """A judge's answers for a pair, shown with ours first and with ours second, and their verdicts."""

    answers: tuple[Answer, Answer]
    reader: str

    @property
    def shown_first(self) -> float:
        return OURS_FIRST[self._choice(0)]

    @property
    def shown_second(self) -> float:
        return OURS_SECOND[self._choice(1)]

    def _choice(self, side: int) -> str | None:
        answer = self.answers[side]
        return None if answer.cut or answer.refused else parse_choice(answer.text, self.reader)


class Questions:
    """All questions of one judge about some pairs, and which of them the cache in `folder` cannot answer."""

    def __init__(self, judge: LLM, pairs: Sequence[Pair], folder: Path) -> None:
        self.judge, self.folder = judge, folder
        template = read_template(judge)
        self._keys: list[tuple[str, str]] = []
        self._texts: dict[str, str] = {}
        for pair in pairs:
            both = [(pair.ours, pair.theirs), (pair.theirs, pair.ours)]
            texts = [render_question(template, pair.prompt, first, second) for first, second in both]
            first, second = (question_key(judge, text) for text in texts)
            self._keys.append((first, second))
            self._texts |= {first: texts[0], second: texts[1]}
        self._answers = {key: text for key, text in read_cached(folder).items() if key in self._texts}

    def __len__(self) -> int:
        return len(self._texts)

    @property
    def remaining(self) -> dict[str, str]:
        """The questions without an answer, by key."""
        return {key: text for key, text in self._texts.items() if key not in self._answers}

    def endpoint(self) -> Endpoint | None:
        """Return the endpoint for the remaining questions, None without any. Raises `UserError` for too many."""
        name, number = name_of(self.judge), len(self.remaining)
        print(f"judge {name}: {len(self)} questions, {len(self) - number} answered before, {number} to ask", flush=True)
        if not number:
            return None
        if number > self.judge.max_requests:
            raise UserError(
                f"judge {name}: {number} requests are needed and max_requests allows {self.judge.max_requests} in a "
                "job; nothing was asked; raise it, or judge fewer prompts (generate.max_prompts)"
            )
        return Endpoint(self.judge)

    def ask(self, endpoint: Endpoint, job: str) -> None:
        """Ask the remaining questions and cache each answer. Raises `UserError` where a question fails for good."""
        pending, last_message = list(self.remaining.items()), time.monotonic()
        endpoint.answered = any(not answer.refused for answer in self._answers.values())
        doubtful: dict[str, Answer] = {}  # refusals that are believed once the endpoint has answered the rest
        with AnswerCache(self.folder / f"{job}.jsonl") as cache, ThreadPoolExecutor(self.judge.concurrency) as threads:
            try:
                running = {threads.submit(self._one, endpoint, cache, doubtful, *one): one[0] for one in pending}
                while running:
                    done, _ = wait(running, return_when=FIRST_COMPLETED)
                    self._take(done, running)
                    if time.monotonic() - last_message > SECONDS_BETWEEN_MESSAGES:
                        last_message = time.monotonic()
                        print(f"judge {name_of(self.judge)}: {len(running)} to ask", flush=True)
            except BaseException:
                endpoint.stopping.set()  # before the pool waits for its threads
                threads.shutdown(wait=True, cancel_futures=True)
                raise
            endpoint.believe(doubtful.values())
            for key, answer in doubtful.items():
                cache.add(key, self.judge.model, answer)
        print(f"judge {name_of(self.judge)}: {endpoint.requests} requests made", flush=True)

    def _take(self, done: set[Future[Answer]], running: dict[Future[Answer], str]) -> None:
        # Raise the error of the thread that failed, not of one that was interrupted for it.
        for future in sorted(done, key=lambda one: isinstance(one.exception(), Interrupted)):
            self._answers[running.pop(future)] = future.result()

    @staticmethod
    def _one(endpoint: Endpoint, cache: AnswerCache, doubtful: dict[str, Answer], key: str, text: str) -> Answer:
        if endpoint.stopping.is_set():
            raise Interrupted
        try:
            answer, certain = endpoint.ask(text)
            if certain:
                cache.add(key, endpoint.judge.model, answer)
            else:
                doubtful[key] = answer
        except BaseException:
            endpoint.stopping.set()  # before this thread takes the next question
            raise
        return answer

    def verdicts(self) -> list[Verdict]:
        """Return a verdict per pair, in order, once all questions are answered."""
        return [
            Verdict((self._answers[first], self._answers[second]), self.judge.reader) for first, second in self._keys
        ]
