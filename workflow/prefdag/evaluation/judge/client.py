"""A client for an OpenAI-compatible endpoint, with rate limits, retries and clear errors.

Address and key come from OPENAI_BASE_URL and OPENAI_API_KEY. Only the client sees them: they enter no config, log,
journal, error or cache. The client's own retries are off, so that every request is counted and paced in this module.
"""

import os
import random
import re
import threading
import time
from collections.abc import Collection
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from prefdag.config.sections.judge import LLM, REQUEST, name_of
from prefdag.errors import UserError
from prefdag.evaluation.judge.cache import Answer, settings

if TYPE_CHECKING:
    from openai import APIStatusError

BUSY = (408, 409, 425, 429)
FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds of back-off: doubled each time, with full jitter
PATIENCE = 600.0  # the longest Retry-After, in seconds, that is followed


# A refusal of these texts and no other, as the endpoints of OpenAI, Azure, vLLM, llama.cpp and others word it.
ABOUT_THE_TEXT = re.compile(
    r"content[_ ]?(filter|management|policy|violation)|moderation|flagged|responsible ?ai|invalid_prompt|safety"
    r"|context[_ ]?(length|window|size)|(prompt|input|request)( is|s)? too (long|large)|too many (input )?tokens",
    re.IGNORECASE,
)
ABOUT_THE_REQUEST = ("unsupported_parameter", "unsupported_value", "unknown_parameter")
IN_A_ROW = 20  # refusals for no reason that is known, after which an endpoint is taken to be broken
AT_FIRST = 3  # the same before its first answer


class Refused(Exception):
    """The endpoint refuses one question. certain: it names the question's text as the reason."""

    def __init__(self, message: str, certain: bool) -> None:
        super().__init__(message)
        self.certain = certain


class Interrupted(Exception):
    """Another question has failed for good, or the job is stopping."""


class Endpoint:
    """Ask one judge's questions, from several threads. Raises `UserError` where the environment has no endpoint."""

    def __init__(self, judge: LLM) -> None:
        self.judge, self.name = judge, name_of(judge)
        address, key = (os.environ.get(name, "").strip() for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY"))
        if not address:
            raise UserError(
                f"judge {self.name}: no endpoint: set OPENAI_BASE_URL to the address of an OpenAI-compatible server "
                "(such as http://localhost:8000/v1), or remove the model from judge.judges"
            )
        if not key:
            raise UserError(f"judge {self.name}: no key: set OPENAI_API_KEY (any text for a server that asks for none)")
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(
                f"judge {self.name}: OPENAI_BASE_URL is not an address; expected http(s)://<host>[:<port>]/v1"
            )
        self.place = f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)
        self._secrets = [secret for secret in (key, parts.password, parts.username) if secret]
        self._client = _client(address, key, judge.timeout)
        self._lock, self.stopping = threading.Lock(), threading.Event()
        self._next, self.requests = 0.0, 0
        self.answered, self._refused_in_a_row = False, 0

    def ask(self, question: str) -> tuple[Answer, bool]:
        """Return the model's answer, and whether it is to be trusted at once: a refusal without a reason is not.

        Raises:
            UserError: No question would be answered, as far as it shows.
        """
        try:
            answer, certain = self._ask(question), True
        except Refused as error:
            answer, certain = Answer("", str(error), refused=True), error.certain
        with self._lock:
            self.answered |= not answer.refused
            self._refused_in_a_row = 0 if certain else self._refused_in_a_row + 1
            if self._refused_in_a_row >= (IN_A_ROW if self.answered else AT_FIRST):
                raise self._refuses(answer.ended)
        return answer, certain

    def believe(self, refusals: Collection[Answer]) -> None:
        """Take refusals without a reason to be of their questions. Raises `UserError` where there is no answer."""
        if refusals and not self.answered:
            raise self._refuses(next(iter(refusals)).ended)

    def _refuses(self, message: str) -> UserError:
        return UserError(
            f"{self._where()} refuses the request ({message}); the judge's keys {', '.join(REQUEST)} (null: not sent) "
            f"and extra_body say what a request holds; {RESUMES}"
        )

    def _ask(self, question: str) -> Answer:
        import openai

        problem = ""
        for attempt in range(self.judge.attempts):
            self._take_turn()
            wait = None
            try:
                return self._answer(question)
            except openai.APIStatusError as error:
                problem, wait = self._check_status(error), _stated_wait(error.response.headers)
            except openai.APITimeoutError:
                problem = f"gives no answer in {self.judge.timeout:g} s"
            except openai.APIConnectionError as error:
                problem = f"cannot be reached or breaks off ({type(error.__cause__ or error).__name__})"
            except (openai.APIError, ValueError, AttributeError, TypeError, IndexError):
                problem = "answers with something other than a chat completion; is the address right (.../v1)?"
            if attempt + 1 < self.judge.attempts:
                self._wait_after(attempt, wait, problem)
        raise UserError(f"{self._where()} {problem}, {self.judge.attempts} times; {RESUMES}")

    def _answer(self, question: str) -> Answer:
        messages: Any = [{"role": "user", "content": question}]
        answer = self._client.chat.completions.create(model=self.judge.model, messages=messages, **settings(self.judge))
        choice = answer.choices[0]
        content = choice.message.content or getattr(choice.message, "refusal", None)
        if not isinstance(content, str | None):
            raise TypeError
        ended = str(choice.finish_reason or "stop")
        return Answer(content or "", ended, refused=ended == "content_filter")

    def _take_turn(self) -> None:
        """Count this request and wait for its turn in the minute. Raises `UserError` at the limit of requests."""
        gap = 60.0 / self.judge.requests_per_minute if self.judge.requests_per_minute else 0.0
        with self._lock:
            if self.requests >= self.judge.max_requests:
                raise UserError(
                    f"judge {self.name}: max_requests ({self.judge.max_requests}) is spent, partly on retries; "
                    f"raise it or check the endpoint; {RESUMES}"
                )
            self.requests += 1
            turn = max(self._next, time.monotonic())
            self._next = turn + gap
        self._pause(turn - time.monotonic())

    def _wait_after(self, attempt: int, stated: float | None, problem: str) -> None:
        """Wait as long as the endpoint states, with all threads; without a statement, back off exponentially."""
        if stated is None:
            self._pause(random.uniform(0, min(LONGEST_WAIT, FIRST_WAIT * 2**attempt)))
            return
        if stated > PATIENCE:
            raise UserError(f"{self._where()} {problem} and asks to wait {stated:.0f} s; {RESUMES}")
        with self._lock:
            self._next = max(self._next, time.monotonic() + stated)
        self._pause(stated)

    def _pause(self, seconds: float) -> None:
        if self.stopping.wait(max(0.0, seconds)):
            raise Interrupted

    def _check_status(self, error: "APIStatusError") -> str:
        """Describe a temporary error. Raises `Refused` for this question's, `UserError` for a permanent one."""
        status, message = error.status_code, f"HTTP {error.status_code}: {self._message(error)}"
        reason = f"{getattr(error, 'code', '')} {error.message}"
        if status not in (401, 402, 404, *BUSY) and ABOUT_THE_TEXT.search(reason):
            raise Refused(message, certain=True) from None
        if getattr(error, "code", None) == "insufficient_quota":
            raise UserError(f"{self._where()} says that the quota is spent (HTTP {status}); {RESUMES}") from None
        if status in BUSY or status >= 500:
            return f"is busy or broken (HTTP {status})"
        if status in (401, 402, 403):
            raise UserError(
                f"{self._where()} refuses the key (HTTP {status}); set OPENAI_API_KEY to one that may use it"
            ) from None
        if status == 404:
            raise UserError(
                f"{self._where()} knows no model {self.judge.model!r}, or serves no chat completions at this address "
                f"(HTTP 404); correct judge.judges or OPENAI_BASE_URL: {self._message(error)}"
            ) from None
        about = getattr(error, "param", None) in (*REQUEST, *self.judge.extra_body)
        if about or getattr(error, "code", None) in ABOUT_THE_REQUEST:
            raise self._refuses(message) from None
        raise Refused(message, certain=False) from None

    def _message(self, error: "APIStatusError") -> str:
        """Return the endpoint's message, shortened and without secrets of the environment."""
        text = " ".join(re.sub(r"^Error code: \d+ - ", "", str(error.message)).split())
        for secret in self._secrets:
            text = text.replace(secret, "[redacted]")
        return text if len(text) <= 300 else f"{text[:300]}..."

    def _where(self) -> str:
        return f"judge {self.name}: the endpoint {self.place}"


RESUMES = "answers are saved, and the next run asks only the remaining questions"


def _client(address: str, key: str, timeout: float) -> Any:
    from openai import OpenAI  # takes a second, and most suites have no such judge

    return OpenAI(base_url=address, api_key=key, timeout=timeout, max_retries=0)


def _stated_wait(headers: Any) -> float | None:
    """Return Retry-After in seconds, from seconds or a date; None where it is missing or cannot be read."""
    if (milliseconds := headers.get("retry-after-ms", "")).isdigit():
        return int(milliseconds) / 1000
    stated = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(stated))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(stated).timestamp() - time.time())
    except (TypeError, ValueError):
        return None
