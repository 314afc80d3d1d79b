"""Fine-tuning for retrieval (paper section 4.3).

    accelerate launch train/opl.py [--config FILE] [--dry-run] [key=value ...]

Without arguments it fine-tunes a small new model on pydocs, offline, in about two minutes; `model.path` names a
checkpoint of train/mlm.py to start from.
"""

import logging
import math
from functools import cache, partial, reduce
from pathlib import Path

from transformers import AutoModel

from m2bert_train.config import load_config, namespace
from m2bert_train.data_pairs import PairBatches
from m2bert_train.development import METRIC, Development
from m2bert_train.grad_cache import cached_step, full_step
from m2bert_train.init import frame_start_, idf_start_, inverse_document_frequency, token_energy
from m2bert_train.loop import run_loop
from m2bert_train.lora import add_lora
from m2bert_train.objective import check_loss, make_objective
from m2bert_train.optim import build_optimizer, check_optim
from m2bert_train.record import run_record
from m2bert_train.retrieval_data import RetrievalData, load_data
from m2bert_train.runs import (
    command_line,
    data_folder,
    finish,
    make_checkpoints,
    make_model,
    make_tokenizer,
    prepare,
    require,
    require_context,
)
from m2bert_train.teacher import MappedEncoder, teacher_hash, teacher_vectors
from m2bert_train.token_tasks import query_limit, report_tasks, tokenise, vocabulary_hash

logger = logging.getLogger(__name__)

OPTIONAL = {  # types of the keys whose default, null, shows none
    "epochs": (int, float),
    "model.path": (str,),
    "tokenizer.path": (str,),
    "data.path": (str,),
    "data.tasks": (list,),
    "data.development_tasks": (list,),
    "data.triples": (str,),
    "data.triples_config": (str,),
    "data.triples_limit": (int,),
    "data.negatives_path": (str,),
    "data.query_tokens": (int,),
    "data.chunk_tokens": (int,),
    "loss.teacher": (str,),
    "evaluation.document_tokens": (int,),
}


def read_data(accelerator, settings) -> RetrievalData:
    """The tasks of `data`: a folder, pydocs if nothing is named, or a Hub id."""
    with accelerator.main_process_first():
        is_pydocs = settings.path is None and settings.triples is None
        folder = data_folder(settings.path) if is_pydocs or is_local(settings.path) else None
        return load_data(settings, folder)


def is_local(path: str | None) -> bool:
    """Whether data.path is meant as a folder, and not as the Hub's ORGANISATION/NAME."""
    return path is not None and (path.count("/") != 1 or Path(path).exists() or Path(path).parent.is_dir())


def make_train_step(accelerator, objective, pad_id: int, chunk_tokens: int | None):
    """One step on a batch of PairBatches: with gradient caching if `chunk_tokens` is set.

    Its counts: texts encoded (caching encodes each twice, which is not counted), pairs compared, positives among them.
    """
    step = full_step if chunk_tokens is None else partial(cached_step, chunk_tokens=chunk_tokens)

    def train_step(model, batch):
        queries, documents, compared = batch["queries"], batch["documents"], batch["compared"]
        loss = step(accelerator, model, queries, documents, partial(objective, batch), pad_id)
        return loss, {
            "tokens": sum(map(len, queries + documents)),
            "query_forwards": len(queries),
            "document_forwards": len(documents),
            "pairs": compared.sum().item() / accelerator.num_processes,
            "positives": (compared & batch["relevant"]).sum().item() / accelerator.num_processes,
        }

    return train_step


def report_forwards(totals: dict[str, float]):
    """Log what a positive cost."""
    if totals.get("positives"):
        forwards = (totals["query_forwards"] + totals["document_forwards"]) / totals["positives"]
        logger.info("%.4g encoder forwards for each query and document that answers it", forwards)


def check(config):
    """Raise ValueError for settings that are of a wrong type, exclude each other or are out of range."""
    for name, types in OPTIONAL.items():
        value = reduce(getattr, name.split("."), config)
        if value is not None and type(value) not in types:
            raise ValueError(f"{name}={value!r} must be null or {' or '.join(kind.__name__ for kind in types)}")
    check_optim(config)
    check_loss(config)
    require(config, data__document_tokens=3, data__batch_size=1, data__negatives=0, evaluation__batch_tokens=1)
    require(config, data__passages_per_document=1)
    for key, least in (("data__query_tokens", 3), ("data__chunk_tokens", 3), ("data__triples_limit", 1),
                       ("evaluation__document_tokens", 3)):  # fmt: skip
        if reduce(getattr, key.split("__"), config) is not None:
            require(config, **{key: least})
    if config.epochs is not None and not 0 < config.epochs < math.inf:
        raise ValueError(f"epochs={config.epochs} must be more than 0, or null to train for `steps`")
    if not 0 <= config.data.passage_share <= 1:
        raise ValueError(f"data.passage_share={config.data.passage_share} must be between 0 and 1")
    tokens = config.data.passage_tokens
    if [type(value) for value in tokens] != [int, int] or not 1 <= tokens[0] <= tokens[1]:
        raise ValueError(f"data.passage_tokens={tokens} must be [shortest, longest], two numbers of tokens from 1")


def make_encoder(config, tokenizer, documents, idf):
    """The model to train: new or a checkpoint, with token weights from document frequency, and adapters where asked.

    Args:
        documents: of each training task, the documents' token ids.
        idf: tokens -> (vocab_size,) inverse document frequency of them.
    """
    model, new_tensors = make_model(AutoModel, config.model, tokenizer)
    for key in ("data.document_tokens", "data.query_tokens", "evaluation.document_tokens"):
        require_context(model, key, reduce(getattr, key.split("."), config) or 0)
    if config.model.idf_start and "pooler.token_log_weights.weight" in new_tensors:
        weights = idf(model.config.vocab_size)
        idf_start_(model, weights, config.seed)
        if "embeddings.word_embeddings.weight" in new_tensors:
            frame_start_(model, token_energy(documents, weights, model.config.pooling_saturation))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return add_lora(model, config.lora.rank, config.lora.alpha, new_tensors) if config.lora.rank else model


def make_batches(accelerator, config, training, special: tuple[int, int], idf) -> tuple[PairBatches, int]:
    """Batches of this process, and how many steps the run takes."""
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = PairBatches(training, config.data, special, config.seed, rank, world, idf)
    steps = config.steps if config.epochs is None else batches.steps_of(config.epochs)
    logger.info("%d labelled items an epoch, %d steps", batches.units, steps)
    return batches, steps


def make_development(config, tasks, special: tuple[int, int], pad_id: int) -> Development:
    """Development scores at the length of training, or at `evaluation.document_tokens`."""
    tokens = config.evaluation.document_tokens or config.data.document_tokens
    return Development(tasks, tokens, query_limit(config.data), special, pad_id, config.evaluation.batch_tokens)


def with_teacher(accelerator, settings, model, tasks):
    """The model, with a map to the teacher's width where theirs differ, and the teacher's vectors; None without one."""
    if settings.name != "prototype":
        return model, None
    vectors = teacher_vectors(accelerator, settings.teacher, tasks, settings.teacher_cache)
    width, teacher_width = model.config.projection_dim, vectors[0].shape[1]
    if width == teacher_width:
        return model, vectors
    logger.info("vectors of width %d are mapped to the teacher's %d while training", width, teacher_width)
    return MappedEncoder(model, width, teacher_width), vectors


def identity(config, data: RetrievalData, tokenizer) -> dict[str, str]:
    """What a resumed run must find as it was, besides its configuration: texts, vocabulary, teacher."""
    teacher = {"teacher": teacher_hash(config.loss.teacher)} if config.loss.name == "prototype" else {}
    return data.describe() | {"vocabulary": vocabulary_hash(tokenizer)} | teacher


def main(argv: list[str]):
    config_dict = load_config("opl-small.yaml", argv)
    config = namespace(config_dict)
    check(config)
    with prepare(config, argv, "opl") as accelerator:
        train(accelerator, config, config_dict)


def train(accelerator, config, config_dict: dict):
    """Train, and write the model; `config` is the namespace of `config_dict`."""
    data = read_data(accelerator, config.data)
    texts = [text for task in data.training for text in task.documents.values()]
    tokenizer = make_tokenizer(config.tokenizer, config.model.path, texts)
    show = accelerator.is_main_process
    training = [tokenise(tokenizer, task, data.negatives.get(task.name), show) for task in data.training]
    development = [tokenise(tokenizer, task, show=show) for task in data.development]
    report_tasks(training, config.data)
    documents = [task.documents for task in training]
    idf = cache(partial(inverse_document_frequency, documents, special_ids=tokenizer.all_special_ids))
    encoder = make_encoder(config, tokenizer, documents, idf)
    special, pad_id = (tokenizer.cls_token_id, tokenizer.sep_token_id), tokenizer.pad_token_id
    dropout = idf(encoder.config.vocab_size) if config.data.query_dropout else None
    batches, steps = make_batches(accelerator, config, training, special, dropout)
    model, vectors = with_teacher(accelerator, config.loss, encoder, data.training)
    mapped = model is not encoder
    optimizer, schedule = build_optimizer(model, config.optim, steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    scores = make_development(config, development, special, pad_id)
    checkpoints = make_checkpoints(accelerator, config_dict, identity(config, data, tokenizer))
    progress = run_loop(
        accelerator,
        model,
        optimizer,
        schedule,
        steps=steps,
        batches=batches,
        train_step=make_train_step(accelerator, make_objective(config.loss, vectors), pad_id, config.data.chunk_tokens),
        clip_norm=config.optim.clip_norm,
        log_every=config.log_every,
        evaluate=partial(scores, accelerator),
        evaluate_every=config.evaluation.every,
        select=METRIC if config.evaluation.select else None,
        checkpoints=checkpoints,
        description="opl",
    )
    report_forwards(progress.totals)
    record = run_record(config_dict, data.fingerprint(), accelerator.num_processes, progress)
    finish(accelerator, encoder if mapped else model, tokenizer, config, record, checkpoints)


if __name__ == "__main__":
    command_line(main, "opl")
