"""Load a fetched reward model, decide how it reads dialogues, and prove how it is computed."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel

from prefdag.config.prepare import Prepare
from prefdag.config.reward_source import RewardSource, check_labels
from prefdag.data.adapters.records import Prompt
from prefdag.data.settled import settle
from prefdag.data.token_store import Comparison
from prefdag.data.tokenization import encode_prompts, encode_texts, load_tokenizer
from prefdag.errors import UserError
from prefdag.models.loading import load_scorer
from prefdag.models.packing import pack
from prefdag.models.proof import TOLERANCE, attention_of, relative_error
from prefdag.models.route import Route, set_route
from prefdag.provenance.manifest import read_manifest
from prefdag.rewards.dialogue_reader import DialogueReader
from prefdag.rewards.evaluation import score_all
from prefdag.rewards.fetched import FetchedReward, has_linear_head
from prefdag.rewards.model import RewardModel, load_reward_model
from prefdag.schema import Section

SOURCE, POLICY = "source.json", "policy"
BUDGET = 4096  # padded tokens of one forward
PADDED = Route(kind="padded", last_layer=False)
STATED = 1 << 20  # a tokenizer that reads more tokens states no limit


class Adopted(Section):
    """How a fetched reward model is used, as saved in `source.json`."""

    source: RewardSource
    template: Literal["policy", "chat", "plain", "pair"]
    prepare: Prepare
    padded: bool = False


def adopt(
    folder: Path,
    source: RewardSource,
    policy: Path,
    prepare: Prepare,
    comparisons: Sequence[Comparison],
    device: torch.device,
) -> tuple[FetchedReward, Adopted]:
    """Load a fetched reward model, and prove its route on some comparisons.

    Args:
        folder: of the model.
        source: the suite's statement.
        policy: folder of the policy, for its tokenizer.
        prepare: how the policy's prompts are written, settled.
        comparisons: in the policy's tokens.
        device: where to put it.

    Raises:
        UserError: if it cannot be loaded, needs a statement, or no route equals single rows.
    """
    adopted = Adopted(source=source, template=_template(source, folder, policy, prepare), prepare=prepare)
    reward = _load(folder, policy, adopted, device)
    rows = reward.translated(comparisons)
    with torch.no_grad():
        truth = reward.single_rows(rows)
        for padded in (False, True):
            if padded and reward.is_packed:
                _use_padded_rows(reward.model)
            together = reward(pack(rows, [[*range(len(rows))]]).to(device)).flatten()
            alone = torch.cat([reward(pack([one]).to(device)).flatten() for one in rows])
            error = max(relative_error(values, truth) for values in (together, alone))
            if error <= 10 * TOLERANCE:
                return reward, adopted.model_copy(update={"padded": padded})
    raise UserError(
        f"reward.source: {source.source}: padded rows differ from single rows by {error:.2g}; name another model"
    )


def _use_padded_rows(model: PreTrainedModel) -> None:
    set_route(model, PADDED)
    model.set_attn_implementation(attention_of(PADDED))


def prepare_of(comparisons: Path, policy: Path) -> Prepare:
    """Return the settled section that a dataset was prepared by.

    Args:
        comparisons: manifest of `prepare`.
        policy: folder of the policy, for its tokenizer.
    """
    values = read_manifest(comparisons).content["config"]["prepare"]
    return settle(Prepare.parse(values, str(comparisons), "config.prepare"), load_tokenizer(policy))


def load_labeller(
    fetched: Path, policy: Path, prepare: Prepare, device: torch.device
) -> Callable[[Prompt, Sequence[str]], NDArray[np.float64]]:
    """Return a function that scores N responses to a prompt by a fetched reward model: [N].

    Args:
        fetched: manifest of `fetch`.
        policy: folder of the policy, for its tokenizer.
        prepare: how the policy's prompts are written, settled.
        device: where to put it.
    """
    values = read_manifest(fetched).content["config"]["reward"]
    source = RewardSource.parse(values, str(fetched), "config.reward")
    reward, _ = adopt(fetched.parent / "model", source, policy, prepare, _examples(policy, prepare), device)

    def label(prompt: Prompt, responses: Sequence[str]) -> NDArray[np.float64]:
        if not responses:
            return np.zeros(0)
        rows = reward.of_texts([prompt] * len(responses), responses)
        return score_all(reward.__call__, rows, BUDGET, device)[:, 0].astype(np.float64)

    return label


def _examples(policy: Path, prepare: Prepare) -> list[Comparison]:
    """Return comparisons in the policy's tokens, to prove a route before any response is sampled."""
    tokenizer = load_tokenizer(policy)
    prompts = encode_prompts(tokenizer, ["Why?", "What is the longest river, and where does it end?"], prepare)
    responses = encode_texts(tokenizer, [" No", " Yes, that is what it is."])
    arrays = [np.array(ids, dtype=np.int32) for ids in responses]
    return [Comparison(np.array(ids, dtype=np.int32), tuple(arrays)) for ids in prompts]


def load_any_reward(folder: Path, device: torch.device) -> RewardModel | FetchedReward:
    """Return the reward model that the stage `reward` left in a folder: trained, or fetched."""
    path = folder / SOURCE
    if not path.is_file():
        return load_reward_model(folder, device)
    adopted = Adopted.parse_json(path.read_text(encoding="utf-8"), str(path))
    reward = _load(folder / "model", folder / POLICY, adopted, device)
    if adopted.padded and reward.is_packed:
        _use_padded_rows(reward.model)
    return reward


def _load(folder: Path, policy: Path, adopted: Adopted, device: torch.device) -> FetchedReward:
    model, tokenizer = _load_model(folder, adopted.source, device), load_tokenizer(policy)
    of_scorer = tokenizer if adopted.template == "policy" else load_tokenizer(folder)
    longest = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if of_scorer.model_max_length < STATED and adopted.template != "policy":
        longest = min(longest or of_scorer.model_max_length, of_scorer.model_max_length)
    reader = DialogueReader(tokenizer, adopted.prepare)
    label = check_labels({"id2label": model.config.id2label}, adopted.source)
    return FetchedReward(model, of_scorer, tokenizer, reader, adopted.template, label, longest, adopted.source.source)


def _load_model(folder: Path, source: RewardSource, device: torch.device) -> PreTrainedModel:
    """Load the classifier with its head. Raises `UserError` if the folder has no head's weights."""
    options = {"dtype": torch.float32, "local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
    try:
        with torch.device("meta"):
            config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            is_decoder = has_linear_head(AutoModelForSequenceClassification.from_config(config))
        if is_decoder:
            return load_scorer(folder, device)
        model, report = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True, **options)
    except UserError as error:
        reason = str(error).removeprefix(f"{folder}: ")
        raise UserError(f"reward.source: {source.source}: {reason}") from None
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"reward.source: {source.source}: no sequence classifier can be loaded ({first})") from None
    # transformers initialises missing weights at random, and only warns.
    if lacking := sorted(report["missing_keys"]):
        raise UserError(f"reward.source: {source.source}: its weights lack {lacking[0]}; name a complete model")
    loaded: PreTrainedModel = model.to(device).eval()
    return loaded


def _template(
    source: RewardSource, folder: Path, policy: Path, prepare: Prepare
) -> Literal["policy", "chat", "plain", "pair"]:
    """Return how the reward model reads a dialogue. Raises `UserError` for a template that it cannot read."""
    of_scorer, theirs = load_tokenizer(folder), load_tokenizer(policy)
    is_same = of_scorer.get_vocab() == theirs.get_vocab()
    if source.template == "policy" and not is_same:
        raise UserError(f"reward.template: {source.source} has another vocabulary than the policy; say `chat`")
    if source.template == "chat" and not of_scorer.chat_template:
        raise UserError(f"reward.template: {source.source} has no chat template; say `plain` or `pair`")
    if source.template != "auto":
        return source.template
    is_chat = bool(of_scorer.chat_template)
    if is_same and of_scorer.chat_template == theirs.chat_template and is_chat == (prepare.template == "chat"):
        return "policy"
    return "chat" if is_chat else "plain"
