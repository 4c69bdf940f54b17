"""Recover the dialogue of a prompt from its token ids, so that another template can write it."""

from collections.abc import Iterator, Sequence

from transformers import PreTrainedTokenizerBase

from prefdag.config.prepare import Prepare
from prefdag.data.adapters.records import Prompt, Turn, Unusable
from prefdag.data.prompt_templates import TextTemplate, load_template
from prefdag.data.tokenization import encode_rendered
from prefdag.errors import UserError

MARKS = tuple(f"qzx{number}xzq" for number in range(4))


class DialogueReader:
    """Reads prompts that the policy's template wrote; what it reads is written again and compared.

    Args:
        tokenizer: the policy's.
        prepare: the settled section of the suite.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prepare: Prepare) -> None:
        self.tokenizer, self.prepare = tokenizer, prepare
        self.template = load_template(tokenizer, prepare)
        self.is_text = isinstance(self.template, TextTemplate)
        self._forms = [] if self.is_text else list(self._written_forms())

    def __call__(self, ids: Sequence[int]) -> Prompt:
        """Return the text or the turns of a prompt. The suite's own system prompt is not one of the turns.

        Raises:
            UserError: if no turns give these ids.
        """
        if self.is_text:
            return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))
        after_bos = ids[1:] if self.prepare.bos is True else ids
        text = str(self.tokenizer.decode(list(after_bos), skip_special_tokens=False))
        for form in self._forms:
            turns = _parse(text, form)
            if turns is not None and self._encode(turns) == list(ids):
                return turns
        raise UserError(
            f"reward.template: the turns of the prompt {text[:60]!r} cannot be read back from the policy's template; "
            "use a reward model with the policy's tokenizer and say `template: policy`"
        )

    def _encode(self, turns: tuple[Turn, ...]) -> list[int] | None:
        try:
            return encode_rendered(self.tokenizer, [self.template.prompt(turns)], self.prepare)[0]
        except (Unusable, UserError):
            return None

    def _written_forms(self) -> Iterator[tuple[str, ...]]:
        """Yield what the template writes around the contents of turns, with and without a system turn."""
        talk = (("user", MARKS[1]), ("assistant", MARKS[2]), ("user", MARKS[3]))
        own_system = ((("system", MARKS[0]), *talk), talk)
        # A system prompt of the suite would be read as the dialogue's own.
        for turns in own_system if self.prepare.system is None else reversed(own_system):
            try:
                rest, parts = self.template.prompt(turns), []
            except Unusable:
                continue
            for _, mark in turns:
                before, _, rest = rest.partition(mark)
                parts.append(before)
            yield (*parts, rest)


def _parse(text: str, form: tuple[str, ...]) -> tuple[Turn, ...] | None:
    """Split a text into turns.

    Args:
        text: of a prompt.
        form: what precedes the contents of a system turn (only of five parts), of the first user's, the assistant's and
            the next user's, and what follows the last.
    """
    *before, to_assistant, to_user, tail = form
    if not (to_assistant and to_user and text.startswith(before[0])):
        return None
    turns: list[Turn] = []
    text = text[len(before[0]) :]
    if len(before) == 2:
        system, separator, text = text.partition(before[1])
        if not separator:
            return None
        turns.append(("system", system))
    role, separators = "user", {"user": to_assistant, "assistant": to_user}
    closed = text.endswith(tail)
    text = text.removesuffix(tail) if closed else text
    while True:
        content, separator, text = text.partition(separators[role])
        turns.append((role, content))
        if not separator:
            return tuple(turns) if closed == (role == "user") else None
        role = "assistant" if role == "user" else "user"
