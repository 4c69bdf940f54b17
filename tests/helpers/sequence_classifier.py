"""A RoBERTa-shaped sequence classifier of random weights, with a tokenizer of whole words."""

from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaForSequenceClassification

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}


def tiny_roberta(folder: Path, words: Sequence[str], labels: Sequence[str] = ("NEGATIVE", "POSITIVE")) -> Path:
    """Write one of these labels that reads 512 tokens, with weights large enough that texts differ."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing("<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=512, padding_side="right", **SPECIAL)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = RobertaConfig(
        vocab_size=len(vocabulary), max_position_embeddings=514, pad_token_id=1, initializer_range=0.5, **shape,
        id2label=dict(enumerate(labels)), label2id={label: number for number, label in enumerate(labels)},
    )  # fmt: skip
    RobertaForSequenceClassification(config).save_pretrained(folder)
    return folder
