"""What the keys of a run take: one schema for each entry point, and what its keys ask of one another.

Everything here is known without torch, so a mistake costs no time. Meanings of the keys are in configs/*-small.yaml.
"""

from typing import Annotated, Any, Literal

from pydantic import Field

from m2bert.schema import Schema

from .text.sources import names_split, refuse_test

SHORTEST_TOKENS = 10  # of a variable-length pretraining example, [CLS] and [SEP] included

AtLeast0 = Annotated[int, Field(ge=0)]
AtLeast1 = Annotated[int, Field(ge=1)]
AtLeast3 = Annotated[int, Field(ge=3)]
Rate = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Names = Annotated[list[str], Field(min_length=1)]


class ModelSettings(Schema):
    """The section `model`; its free-form sections hold fields of M2BertConfig (`model_settings`)."""

    path: str | None
    start: Literal["standard", "identity"]
    architecture: dict[str, Any]
    new_model: dict[str, Any]


class TokenizerSettings(Schema):
    path: str | None
    vocab_size: AtLeast1


class OptimSettings(Schema):
    lr: Rate
    layer_lr: Rate | None
    pooler_lr: Rate | None
    filter_lr: Rate | None
    research_groups: bool
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    eps: Rate
    weight_decay: Rate
    warmup_share: Share
    clip_norm: Annotated[float, Field(gt=0)]


class RunSettings(Schema):
    """What both entry points have."""

    output_dir: Annotated[str, Field(min_length=1)]
    overwrite: bool
    resume: bool
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    steps: AtLeast0
    log_every: AtLeast1
    checkpoint_every: AtLeast0
    checkpoint_keep: AtLeast1
    precision: Literal["no", "bf16", "fp16", "fp8"] | None
    compile: bool
    gradient_checkpointing: bool
    tracker: str | None
    tokenizer: TokenizerSettings
    optim: OptimSettings


class MlmData(Schema):
    sources: Annotated[list[Any], Field(min_length=1)]  # `sources.Source`
    max_tokens: Annotated[int, Field(ge=SHORTEST_TOKENS)]
    batch_tokens: AtLeast1
    accumulate: AtLeast1
    mask_probability: Annotated[float, Field(gt=0, lt=1)]
    token_cache: str
    prepared: str | None


class MlmEvaluation(Schema):
    every: AtLeast0
    examples: AtLeast1


class MlmSettings(RunSettings):
    """Every key of train/mlm.py."""

    prepare: str | None
    model: ModelSettings
    data: MlmData
    evaluation: MlmEvaluation


class OplModelSettings(ModelSettings):
    idf_start: bool


class Lora(Schema):
    rank: AtLeast0
    alpha: AtLeast1


class OplData(Schema):
    path: str | None
    tasks: Names | None
    triples: str | None
    triples_config: str | None
    triples_limit: AtLeast1 | None
    development_split: str | None
    development_tasks: Names | None
    development_share: Annotated[float, Field(gt=0, lt=1)]
    development_documents: AtLeast0
    form: Literal["pairs", "grouped", "all"]
    batch_size: AtLeast1
    negatives: AtLeast0
    negatives_path: str | None
    document_tokens: AtLeast3
    document_window: Literal["random", "first"]
    query_tokens: AtLeast3 | None
    query_dropout: bool
    passage_share: Share
    passages_per_document: AtLeast1
    passage_tokens: Annotated[list[AtLeast1], Field(min_length=2, max_length=2)]
    chunk_tokens: AtLeast3 | None


class Loss(Schema):
    name: Literal["opl", "mnrl", "prototype"]
    positive_weight: Rate
    temperature: Annotated[float, Field(gt=0)]
    teacher: str | None
    teacher_cache: str


class OplEvaluation(Schema):
    every: AtLeast0
    batch_tokens: AtLeast1
    document_tokens: AtLeast3 | None
    select: bool


class OplSettings(RunSettings):
    """Every key of train/opl.py."""

    epochs: Annotated[float, Field(gt=0)] | None
    model: OplModelSettings
    lora: Lora
    data: OplData
    loss: Loss
    evaluation: OplEvaluation


def check_together(settings: RunSettings):
    """Raise ValueError for settings that exclude one another."""
    optim = settings.optim
    if optim.research_groups and optim.filter_lr is not None:
        raise ValueError(
            f"optim.filter_lr={optim.filter_lr} and optim.research_groups=true both set the filters' learning rate; "
            "set filter_lr to null, or research_groups to false"
        )
    if isinstance(settings, MlmSettings):
        if settings.data.batch_tokens < settings.data.max_tokens:
            raise ValueError(
                f"data.batch_tokens={settings.data.batch_tokens} holds no example of data.max_tokens="
                f"{settings.data.max_tokens}; raise it (it is the budget of one forward, padding included)"
            )
        return
    shortest, longest = settings.data.passage_tokens
    if shortest > longest:
        raise ValueError(f"data.passage_tokens=[{shortest}, {longest}] must be [shortest, longest]")
    if settings.epochs is not None and settings.data.passage_share >= 1:
        raise ValueError(
            f"epochs={settings.epochs} counts labelled queries, and data.passage_share=1 leaves none; set steps"
        )
    check_splits(settings.data)
    check_loss(settings.loss, settings.data)


def check_splits(data):
    """Raise ValueError if the section `data` would train or select on the test split, or select on what is trained on.

    Args:
        data: the section of a retrieval run.
    """
    for key in ("development_split", "triples", "negatives_path"):
        refuse_test(f"data.{key}", getattr(data, key))
    split = data.development_split
    if split is not None and names_split(split, "train"):
        raise ValueError(
            f"data.development_split={split} is what is trained on; name another, or null to carve a part out of it"
        )
    if data.development_tasks is not None and split is None:
        raise ValueError(
            f"data.development_tasks={data.development_tasks} needs data.development_split; name it, or leave the "
            "tasks out and have a part of those trained on set aside"
        )


def check_loss(loss: Loss, data: OplData):
    """Raise ValueError for a loss that does not go with the form of the batches."""
    if loss.name == "mnrl" and data.form == "pairs":
        raise ValueError("loss.name=mnrl compares documents of one query; set data.form=all or grouped")
    if loss.name != "prototype":
        return
    if loss.teacher is None:
        raise ValueError("loss.name=prototype needs loss.teacher, a sentence-transformers model")
    if data.document_window != "first" or data.passage_share or data.query_dropout:
        raise ValueError(
            "loss.name=prototype imitates vectors of whole texts; set data.document_window=first, data.passage_share=0 "
            "and data.query_dropout=false"
        )
