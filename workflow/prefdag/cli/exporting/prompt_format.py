"""Write the tokenizer and the generation config of an exported model, so that it reads prompts as it was trained to.

Training writes a prompt by a template of the suite, may put one BOS before it, and ends a response with one token. The
exported tokenizer has the same template as its chat template, adds the same BOS, and names the same token as its EOS;
the base model's sampling defaults are left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from prefdag.cli.exporting.text_templates import SUMMARY, TEXT, TURNS, VERBATIM
from prefdag.config.prepare import Prepare
from prefdag.data.adapters.dialogues import TURN, as_messages, as_turns
from prefdag.data.adapters.records import Prompt, Unusable
from prefdag.data.prompt_templates import Template, TextTemplate, load_template
from prefdag.data.settled import settle
from prefdag.data.token_store import Store
from prefdag.data.tokenization import (
    encode_rendered,
    encode_texts,
    end_of_turn,
    end_response,
    load_tokenizer,
    stop_token,
)
from prefdag.errors import UserError
from prefdag.provenance.manifest import Manifest
from prefdag.provenance.sources import digest_of

NUM_PROMPTS = 64  # of the prepared data, that are compared
TALK: Prompt = (("user", "Hi, what is 2 + 2?"), ("assistant", "It is 4."), ("user", "Naïve café - 你好\nwhy?"))
EXAMPLES: tuple[Prompt, ...] = (TALK[:1], TALK, (("system", "Be brief."), *TALK[:1]), "Once upon a time", "Why?\n")
RESPONSE = "Because it is so."


@dataclass(frozen=True)
class PromptFormat:
    """How prompts and responses were written when a model was trained and evaluated.

    Attributes:
        prepare: the settled section of the suite.
        tokenizer: as it was trained with.
        rows: of the model's embedding matrix.
        prompts: texts of prepared prompts; none for a chat template.
        transcripts: whether these are dialogues.
    """

    prepare: Prepare
    tokenizer: PreTrainedTokenizerBase
    rows: int
    prompts: tuple[str, ...]
    transcripts: bool

    @classmethod
    def of(cls, prepared: Manifest, model: Path) -> "PromptFormat":
        """Read how a dataset was prepared.

        Args:
            prepared: manifest of `prepare`.
            model: folder of the model, with its tokenizer.

        Raises:
            UserError: if the suite's Jinja file is missing or has changed since.
        """
        tokenizer = load_tokenizer(model)
        prepare = settle(Prepare.parse(prepared.content["config"]["prepare"], str(prepared.path), "config"), tokenizer)
        _check_file(prepared, prepare.template)
        is_text = isinstance(load_template(tokenizer, prepare), TextTemplate)
        prompts = tuple(_texts(prepared.folder, tokenizer)) if is_text else ()
        rows = json.loads((model / "config.json").read_text(encoding="utf-8")).get("vocab_size") or len(tokenizer)
        return cls(prepare, tokenizer, rows, prompts, not prompts or any(TURN.match(text) for text in prompts))

    @property
    def template(self) -> Template:
        return load_template(self.tokenizer, self.prepare)

    @property
    def bos(self) -> int | None:
        """The token that training puts before a prompt, apart from one that a chat template writes."""
        return self.tokenizer.bos_token_id if self.prepare.bos is True else None

    @property
    def end(self) -> int:
        """The token that ends a response."""
        return stop_token(self.tokenizer, self.prepare)

    def token(self, number: int) -> str:
        return str(self.tokenizer.convert_ids_to_tokens(number))

    def encode(self, prompt: Prompt, response: str | None = None) -> tuple[str, list[int]]:
        """Return a prompt's text and its token ids, with those of a response if there is one, as in training."""
        text = self.template.prompt(prompt)
        (ids,) = encode_rendered(self.tokenizer, [text], self.prepare)
        if response is None:
            return text, ids
        (rest,) = encode_texts(self.tokenizer, [self.template.response(prompt, text, response)])
        end = end_of_turn(self.tokenizer, self.prepare)
        return text, ids + end_response(rest, end, self.template.writes_end_of_turn)

    def written(self, prompt: Prompt) -> str | None:
        """Return a prompt's text as its tokens say it; None if the template cannot write it."""
        try:
            return str(self.tokenizer.decode(self.encode(prompt)[1]))
        except Unusable:
            return None

    def chat_template(self, scores: bool) -> str | dict[str, str]:
        """Return the Jinja template. scores: whether the model scores whole dialogues, read at their last token."""
        end = self._end_text()
        if isinstance(self.template, TextTemplate):
            body = {"tldr": SUMMARY, "continuation": VERBATIM}.get(
                self.prepare.template, TURNS if self.transcripts else TEXT
            )
            closing = f"{{% if not add_generation_prompt and messages[-1]['role'] == 'assistant' %}}{{{{ {end} }}}}"
            return f"{self._opening()}{body}{closing}{{% endif %}}"
        source: Any = self.tokenizer.chat_template
        if self.prepare.template != "chat":
            source = Path(self.prepare.template).read_text(encoding="utf-8")
        if isinstance(source, dict):
            return {name: self._around(text, scores, end) for name, text in source.items()}
        return self._around(source, scores, end)

    def _around(self, source: str, scores: bool, end: str) -> str:
        """Add BOS and system prompt to a chat template, and cut what follows the last end-of-turn if it scores."""
        opening = self._opening()
        if self.prepare.system is not None:
            system = json.dumps(self.prepare.system, ensure_ascii=False)
            opening += (
                "{% if not messages | selectattr('role', 'equalto', 'system') | list %}"
                f"{{% set messages = [{{'role': 'system', 'content': {system}}}] + messages %}}{{% endif %}}\n"
            )
        elif opening:
            opening += "{# #}\n"  # the comment removes the line break, and the template begins a line, as it did
        if not scores:
            return opening + source
        body = f"{{% set dialogue %}}\n{source.removesuffix(chr(10))}{{% endset %}}"
        cut = f"dialogue[:dialogue.rfind({end})] + {end}"
        return f"{opening}{body}{{{{ dialogue if add_generation_prompt or {end} not in dialogue else {cut} }}}}"

    def _opening(self) -> str:
        return "" if self.bos is None else "{{ bos_token }}"

    def _end_text(self) -> str:
        """Return the end-of-turn as a Jinja literal."""
        ids = end_of_turn(self.tokenizer, self.prepare)
        return json.dumps(self.token(ids[0]) if ids else "", ensure_ascii=False)


def _texts(folder: Path, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """Yield the texts of some prepared prompts, without special tokens."""
    for split in ("test", "validation", "train"):
        if (folder / split / "store.json").is_file():
            store = Store.open(folder / split)
            for index in range(min(NUM_PROMPTS, len(store))):
                yield str(tokenizer.decode(store[index].prompt.tolist(), skip_special_tokens=True))


def _check_file(prepared: Manifest, template: str) -> None:
    """Raise `UserError` unless the Jinja file that `prepare` read is still the same."""
    digest = prepared.content["code"].get(template)
    path = Path(template)
    if digest is None:
        return
    if not path.is_file():
        raise UserError(f"{template}: no such file; export in the folder that the suite was run in")
    if digest_of(path.read_bytes(), path) != digest:
        raise UserError(f"{template}: changed since {prepared.folder.name} was prepared; restore it, or run the suite")


def write_tokenizer(form: PromptFormat, folder: Path, scores: bool = False) -> list[str]:
    """Write the tokenizer of an exported model, load it, and compare it with training.

    Args:
        form: how the model reads prompts.
        folder: of the export.
        scores: whether it is a reward model.

    Returns:
        What the files cannot do, in sentences for the model card.
    """
    tokenizer = load_tokenizer(Path(form.tokenizer.name_or_path))
    if form.end in _special_ids(tokenizer):
        tokenizer.eos_token = form.token(form.end)
    if (pad := padding_token(form, scores)) is None:
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    else:
        tokenizer.pad_token = form.token(pad)
    tokenizer.padding_side = "right" if scores else "left"
    is_text = isinstance(form.template, TextTemplate)
    if hasattr(tokenizer, "add_bos_token"):
        tokenizer.add_bos_token = is_text and form.bos is not None
    tokenizer.chat_template = form.chat_template(scores)
    _save(tokenizer, folder)
    exported = load_tokenizer(folder)
    notes = []
    if form.token(form.end) != exported.eos_token:
        notes.append(
            f"`{form.token(form.end)}` is an ordinary token, so the tokenizer's EOS is another; "
            "`generation_config.json` stops generation at it."
        )
    if is_text and any(exported(text)["input_ids"] != ids for text, ids in _encoded(form)):
        notes.append("`tokenizer(text)` differs from training: encode without special tokens and put the BOS in front.")
    if not all(_equal(exported, form, prompt, None) for prompt in _messages(form)):
        tokenizer.chat_template = None
        _save(tokenizer, folder)
        notes.append("No chat template gives this tokenizer's ids of training: encode prompts as text.")
    elif scores and not all(_equal(exported, form, prompt, RESPONSE) for prompt in _messages(form)):
        notes.append("Encode the prompt, the response and the end of turn apart, as training does, and join their ids.")
    return notes


def _save(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer; its class keeps the name that it had, which earlier versions of transformers know."""
    path = folder / "tokenizer_config.json"
    before = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(folder)
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {key: before[key] for key in ("tokenizer_class",) if key in before}
    config["padding_side"] = tokenizer.padding_side  # which transformers does not save
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _encoded(form: PromptFormat) -> Iterator[tuple[str, list[int]]]:
    """Yield prompts as the suite writes them, with their ids."""
    for prompt in (*EXAMPLES, *form.prompts):
        try:
            yield form.encode(prompt)
        except Unusable:
            continue


def _messages(form: PromptFormat) -> list[Prompt]:
    """Return the prompts that messages can state as the suite writes them."""
    if not isinstance(form.template, TextTemplate):
        return [prompt for prompt in EXAMPLES if not isinstance(prompt, str)]
    if form.prepare.template == "plain" and form.transcripts:
        parsed = {text: as_turns(text) for text in form.prompts}
        same = [turns for text, turns in parsed.items() if form.template.prompt(turns) == text]
        return [*(prompt for prompt in EXAMPLES if not isinstance(prompt, str)), *same]
    return [prompt for prompt in (*EXAMPLES, *form.prompts) if isinstance(prompt, str)]


def _equal(tokenizer: PreTrainedTokenizerBase, form: PromptFormat, prompt: Prompt, response: str | None) -> bool:
    """Compare the chat template's ids with those of training; prompts that training refuses are equal."""
    try:
        expected = form.encode(prompt, response)[1]
    except Unusable:
        return True
    messages, tools = as_messages((("user", prompt),) if isinstance(prompt, str) else prompt)
    if response is not None:
        messages.append({"role": "assistant", "content": response})
    try:
        ids: Any = tokenizer.apply_chat_template(messages, tools, add_generation_prompt=response is None)
    except Exception:  # a template may fail in any way
        return False
    return list(ids["input_ids"] if isinstance(ids, Mapping) else ids) == expected


def _special_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | set(tokenizer.all_special_ids)


def padding_token(form: PromptFormat, scores: bool) -> int | None:
    """Return a token to pad with, or None if the vocabulary needs a new one.

    A reward model is read at the last token that is not padding, so it is never padded with the end-of-turn.
    """
    tokenizer = form.tokenizer
    named: Sequence[int | None] = [tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.bos_token_id]
    candidates = [*named, *sorted(_special_ids(tokenizer))] if scores else [tokenizer.pad_token_id, form.end]
    usable = [one for one in candidates if one is not None and one < form.rows]
    return next((one for one in usable if one != form.end or not scores), None)


def generation_config(form: PromptFormat, max_new_tokens: int) -> dict[str, Any]:
    """Return the content of generation_config.json: greedy, to the end of turn, without the base's settings."""
    tokens = {"bos_token_id": form.tokenizer.bos_token_id, "eos_token_id": form.end}
    return {**tokens, "pad_token_id": padding_token(form, False), "do_sample": False, "max_new_tokens": max_new_tokens}
