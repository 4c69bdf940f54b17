"""Write a small model with its tokenizer in the Hugging Face layout, as a user has one."""

from pathlib import Path

from prefdag.config.model import Architectural
from prefdag.models.loading import build
from preparing import byte_tokenizer

CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_model_folder(folder: Path, template: str | None = CHAT, context: int = 512) -> Path:
    """Write a Llama of 16 dimensions with a tokenizer of bytes; `template` is its chat template, if it has one."""
    tokenizer = byte_tokenizer("<|im_start|>", "<|im_end|>")
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    shape = Architectural(architecture="llama", hidden_size=16, layers=1, heads=2, context=context)
    build(shape, len(tokenizer), 0, 1, seed=0).save_pretrained(folder)
    return folder
