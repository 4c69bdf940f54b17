"""Choose how a model decodes by proving it, as `prefdag.models.proof` chooses how it computes log-probs."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefdag.errors import UserError
from prefdag.models.decoding import DECODERS, Decoder
from prefdag.models.proof import TOLERANCE, proof_path, relative_error, write_proof
from prefdag.models.route import implementation, route_of, set_route
from prefdag.models.shrinking import build_shrunken, first_line

PROMPTS = ([5, 9, 4, 7, 12, 3], [6, 8, 11, 10, 3, 7], [13, 4])
TOKENS = (7, 4, 9, 3, 14, 6, 5)


def chosen_decoder(model: PreTrainedModel) -> type[Decoder]:
    """Return the fastest decoder whose logits equal those of whole rows, on a shrunken copy of the model."""
    path = proof_path(model.config, "decoding")
    if path.is_file():
        return DECODERS[path.read_text()]
    name = _prove(model)
    write_proof(path, name)
    return DECODERS[name]


def _prove(model: PreTrainedModel) -> str:
    try:
        copy = build_shrunken(model.config, str(model.config.name_or_path or model.config.model_type))
    except UserError:
        return "prefix"
    set_route(copy, route_of(model))
    for name, decoder in DECODERS.items():
        try:
            if _error(copy, decoder) <= TOLERANCE:
                return name
        except Exception as error:  # transformers' caches fail in ways of their own
            first_line(error)
    return "prefix"


@torch.no_grad()
def _error(model: PreTrainedModel, decoder: type[Decoder]) -> float:
    """Decode fixed tokens, repeat and drop rows on the way, and return the largest error of the logits."""
    rows = [list(prompt) for prompt in PROMPTS if not decoder.equal_lengths or len(prompt) == len(PROMPTS[0])]
    errors = []
    with decoder.attention(model):
        state = decoder(model, rows)
        for step, token in enumerate(TOKENS):
            errors.append(_distance(model, state.logits, rows))
            if step == 1:
                order = [0, 0, 1]
            elif step == 4:
                order = [2, 0]
            else:
                order = list(range(len(rows)))
            if step in (1, 4):
                state.select(order)
            rows = [[*rows[index], token + place] for place, index in enumerate(order)]
            state.append(torch.tensor([row[-1] for row in rows]))
        errors.append(_distance(model, state.logits, rows))
    return max(errors)


def _distance(model: PreTrainedModel, logits: Tensor, rows: list[list[int]]) -> float:
    """Compare logits with those of each whole row, by plain attention."""
    with implementation(model, "eager"):
        truth = torch.cat([model(input_ids=torch.tensor([row]), use_cache=False).logits[:, -1] for row in rows])
    return relative_error(logits, truth)
