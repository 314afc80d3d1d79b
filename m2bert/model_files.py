"""Descriptions of the settings files in a model folder, which transformers, sentence-transformers and peft write.

Only what this package uses of them is described; other keys are theirs. FILES names the file of each schema.
"""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from .files import parse_json, read_json, read_text
from .schema import FOREIGN, Schema, checked

LINK_TARGET = re.compile(rb"(?:\.\./)+[\w/.-]+\.py\s*")
PROMPTS_OF_EVERY_MODEL = {"query", "document"}  # sentence-transformers adds them, empty


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _no_path(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f"{value!r} stands for a file, which is not read; write the vocabulary itself")
    return value


Length = Annotated[int, BeforeValidator(_whole), Field(ge=1)]  # in tokens; tokenizers without a limit say 1e30
Inline = Annotated[Any, BeforeValidator(_no_path)]  # tokenizers read a file that stands in its place, wherever it lies


class Foreign(Schema):
    model_config = FOREIGN


class ModelConfig(Foreign):
    model_type: str | None = None
    architectures: list[str] | None = None
    auto_map: dict[str, Any] | None = None


class TokenizerConfig(Foreign):
    tokenizer_class: str | None = None
    model_max_length: Length | None = None
    chat_template: str | list[dict[str, str]] | None = None


class TokenizerModel(Foreign):
    vocab: Inline = None
    merges: Inline = None


class TokenizerFile(Foreign):
    model: TokenizerModel


class Module(Foreign):
    name: str
    path: str
    type: str


class Modules(Schema):
    modules: list[Module] = Field(min_length=1)


class TransformerSettings(Foreign):
    max_seq_length: Length | None = None
    do_lower_case: bool | None = None
    module_output_name: str | None = None
    modality_config: dict[str, Any] | None = None
    processing_kwargs: dict[str, Any] | None = None


class SentenceConfig(Foreign):
    prompts: dict[str, str | None] = {}
    default_prompt_name: str | None = None
    similarity_fn_name: Literal["cosine", "dot", "euclidean", "manhattan"] | None = None

    @model_validator(mode="after")
    def _default_prompt_is_there(self):
        if self.default_prompt_name not in {None, *self.prompts, *PROMPTS_OF_EVERY_MODEL}:
            raise ValueError(f"default_prompt_name={self.default_prompt_name!r} is none of its prompts")
        return self


class AutoMapping(Foreign):
    base_model_class: str = "M2BertModel"


class AdapterConfig(Foreign):
    base_model_name_or_path: str | None = None
    auto_mapping: AutoMapping | None = None  # the class that was adapted


class WeightsIndex(Foreign):
    weight_map: dict[str, str]  # {tensor: file}


FILES: dict[str, type[Schema]] = {
    "config.json": ModelConfig,
    "tokenizer_config.json": TokenizerConfig,
    "tokenizer.json": TokenizerFile,
    "sentence_bert_config.json": TransformerSettings,
    "config_sentence_transformers.json": SentenceConfig,
    "adapter_config.json": AdapterConfig,
    "model.safetensors.index.json": WeightsIndex,
}


def read_modules(path: Path) -> list[Module]:
    """Read modules.json. Raises ValueError naming the file."""
    return checked(Modules, {"modules": parse_json(read_text(path), str(path))}, str(path)).modules


def check_model_files(folder: Path) -> None:
    """Raise ValueError unless every settings file that a model folder has is of its kind's form."""
    for name, schema in FILES.items():
        if (folder / name).is_file():
            checked(schema, read_json(folder / name), str(folder / name))
    if (folder / "modules.json").is_file():
        for module in read_modules(folder / "modules.json"):
            if module.path and (folder / module.path / "config.json").is_file():
                read_json(folder / module.path / "config.json")


def check_code_files(folder: Path) -> None:
    """Raise ValueError if a Python file of a model folder is a broken link.

    The code of models/m2bert-small are links into this repository. They dangle where the folder was copied alone, and
    on Windows git may write them as small text files that hold the link's target.
    """
    for path in sorted(folder.glob("*.py")):
        if not path.exists() or (path.stat().st_size < 200 and LINK_TARGET.fullmatch(path.read_bytes())):
            raise ValueError(
                f"{path} is a broken link to the model's code; write a folder with the code itself: m2bert export "
                f"--model {folder} --output ANOTHER_FOLDER"
            )
