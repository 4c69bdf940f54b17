"""A reward model from elsewhere: a sequence classifier with its own tokenizer, template and head.

What it reads is the text that the policy read and wrote: the prompt's turns and the response are recovered from the
policy's tokens and written by the reward model's template, unless both share their tokens.

A model with the linear head `score` runs on the packed route that is proved for its architecture, read at the last
token that is not padding; any other one in padded rows by its own forward pass. Both are compared with single rows.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefdag.data.adapters.dialogues import as_messages, as_turns
from prefdag.data.adapters.records import Prompt, as_text, question_of
from prefdag.data.detokenize import decode_response
from prefdag.data.prompt_templates import is_prefilled
from prefdag.data.token_store import Comparison, Indexed
from prefdag.errors import UserError
from prefdag.models.logprobs import padded_rows
from prefdag.models.packing import Segments
from prefdag.models.route import implementation
from prefdag.rewards.dialogue_reader import DialogueReader
from prefdag.rewards.model import RewardModel

Parts = tuple[list[int], list[list[int]]]  # tokens of a prompt, and of each response


@dataclass(frozen=True)
class FetchedReward:
    """A fetched reward model.

    Attributes:
        model: the classifier.
        tokenizer: its own.
        policy: the policy's tokenizer.
        read: recovers the dialogue of a prompt.
        template: how the model reads a dialogue.
        label: index of the label that is the reward.
        longest: most tokens that it reads; None: not stated.
        name: for errors.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    policy: PreTrainedTokenizerBase
    read: DialogueReader
    template: str
    label: int
    longest: int | None
    name: str

    @property
    def is_packed(self) -> bool:
        return has_linear_head(self.model)

    @property
    def _has_types(self) -> bool:
        """Whether the types of tokens mark the second of two texts."""
        return self.template == "pair" and (getattr(self.model.config, "type_vocab_size", 1) or 1) > 1

    def translated(self, comparisons: Indexed) -> list[Comparison]:
        """Return comparisons of the policy's tokens in this model's tokens.

        Raises:
            UserError: if a prompt cannot be read, or a row is longer than the model's context.
        """
        return [self._checked(self._parts(comparisons[index])) for index in range(len(comparisons))]

    def of_texts(self, prompts: Sequence[Prompt], responses: Sequence[str]) -> list[Comparison]:
        """Return prompts with one response each, as rows and the policy state them, in this model's tokens.

        Raises:
            UserError: if the model reads the policy's tokens and not texts.
        """
        if self.template == "policy":
            raise UserError("reward.template: the section `pairs` labels texts, not tokens; say `chat` or `plain`")
        return [self._checked(self.write(one, [text])) for one, text in zip(prompts, responses, strict=True)]

    def _parts(self, one: Comparison) -> Parts:
        prompt, responses = one.prompt.tolist(), [ids.tolist() for ids in one.responses]
        if self.template == "policy":
            return prompt, responses
        texts = [decode_response(self.policy, prompt, ids)[1] for ids in responses]
        return self.write(self.read(prompt), texts)

    def write(self, prompt: Prompt, responses: Sequence[str]) -> Parts:
        """Write a prompt and its responses as this model reads them."""
        if self.read.is_text:  # whose responses begin with the space after the prompt
            responses = [text.removeprefix(" ") for text in responses]
        if self.template == "pair":
            return self._pair(question_of(prompt), responses)
        rows = [self._row(prompt, text) for text in responses]
        # What all rows begin with is computed once; each keeps a token of its own, where the head reads.
        shared = min(map(len, rows)) - 1
        while len({tuple(row[:shared]) for row in rows}) > 1:
            shared -= 1
        if shared < 1:
            raise UserError(f"reward.source: {self.name}: a dialogue comes to {len(rows[0])} tokens; it needs two")
        return rows[0][:shared], [row[shared:] for row in rows]

    def _row(self, prompt: Prompt, response: str) -> list[int]:
        if self.template == "plain":
            text = as_text(prompt)
            space = "" if response[:1].isspace() or text[-1:].isspace() or is_prefilled(prompt) else " "
            return self._trimmed(self.tokenizer(text + space + response)["input_ids"])
        messages, tools = as_messages(as_turns(prompt))
        if is_prefilled(prompt):
            messages[-1]["content"] += response
        else:
            messages.append({"role": "assistant", "content": response})
        try:
            ids: Any = self.tokenizer.apply_chat_template(messages, tools, return_dict=False)
        except Exception as error:
            reason = " ".join(str(error).split())
            raise UserError(f"reward.template: the template of {self.name} refuses a dialogue ({reason})") from None
        return self._trimmed(list(ids))

    def _trimmed(self, ids: list[int]) -> list[int]:
        """Drop tokens at the end that transformers takes for padding: it reads the head before them."""
        pad = self.model.config.get_text_config().pad_token_id if self.is_packed else None
        while len(ids) > 1 and ids[-1] == pad:
            ids = ids[:-1]
        return ids

    def _pair(self, question: str, responses: Sequence[str]) -> Parts:
        parts: list[tuple[list[int], list[int]]] = []
        for text in responses:
            encoded = self.tokenizer(question, text)
            second = encoded.sequence_ids(0).index(1)
            parts.append((encoded["input_ids"][:second], encoded["input_ids"][second:]))
        return parts[0][0], [response for _, response in parts]

    def _checked(self, parts: Parts) -> Comparison:
        prompt, responses = parts
        longest = len(prompt) + max(map(len, responses))
        if self.longest is not None and longest > self.longest:
            raise UserError(
                f"reward.source: {self.name} reads {self.longest} tokens, and a prompt with its response comes to "
                f"{longest}; lower prepare.max_prompt_tokens, max_response_tokens or the max_new_tokens of sampling"
            )
        arrays = [np.array(ids, dtype=np.int32) for ids in (prompt, *responses)]
        return Comparison(arrays[0], tuple(arrays[1:]))

    def __call__(self, segments: Segments) -> Tensor:
        """Reward of every response, in this model's tokens: [B, K]."""
        if self.is_packed:
            return self._reward(RewardModel((self.model,)).values(segments))
        tokens, mask = padded_rows(segments)
        options: dict[str, Tensor] = {}
        if self._has_types:
            options["token_type_ids"] = _second_texts(segments, mask)
        logits = self.model(input_ids=tokens, attention_mask=mask, **options).logits
        return self._reward(logits.float()[segments.padded_row.flatten()[segments.last]])

    def _reward(self, values: Tensor) -> Tensor:
        """Return the only logit, or the log-odds of a label: [..., L] -> [...]."""
        if values.shape[-1] == 1:
            return values[..., 0]
        others = [index for index in range(values.shape[-1]) if index != self.label]
        return values[..., self.label] - values[..., others].logsumexp(-1)

    def single_rows(self, comparisons: Sequence[Comparison]) -> Tensor:
        """Return rewards from transformers' forward pass of one row at a time: [N * K]."""
        values, device = [], next(self.model.parameters()).device
        for one in comparisons:
            for response in one.responses:
                row = torch.tensor([[*one.prompt.tolist(), *response.tolist()]], device=device)
                options: dict[str, Tensor] = {}
                if self._has_types:
                    is_second = torch.arange(row.shape[1], device=device) >= len(one.prompt)
                    options["token_type_ids"] = is_second[None].long()
                with implementation(self.model, "eager") if self.is_packed else nullcontext():
                    values.append(self._reward(self.model(input_ids=row, **options).logits.float()))
        return torch.cat(values)


def _second_texts(segments: Segments, mask: Tensor) -> Tensor:
    """Return 1 at the responses' tokens of `padded_rows`, 0 elsewhere."""
    rows = segments.padded_row[segments.response > 0]
    num = torch.zeros_like(mask[:, 0]).index_add(0, rows, torch.ones_like(rows))
    lengths = mask.sum(1)
    column = torch.arange(mask.shape[1], device=mask.device)
    return ((column >= (lengths - num)[:, None]) & (column < lengths[:, None])).long()


def has_linear_head(model: PreTrainedModel) -> bool:
    """Return whether the head is the linear layer of decoders, read at one token."""
    head = getattr(model, "score", None)
    return isinstance(head, nn.Linear) and head.bias is None
