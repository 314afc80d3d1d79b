"""Fine-tuning for retrieval (paper section 4.3): what train/opl.py runs once its arguments are checked."""

import importlib.util
import logging
from functools import cache, partial

from accelerate import Accelerator
from transformers import AutoModel

from .cli import ready
from .grad_cache import cached_step, full_step
from .initialization import (
    frame_start_,
    idf_start_,
    inverse_document_frequency,
    make_model,
    make_tokenizer,
    token_energy,
)
from .lora import add_lora
from .losses import make_objective
from .pairs.batches import PairBatches, query_limit, report_tasks
from .pairs.development import METRIC, Development
from .pairs.tokens import RetrievalTokens, read_tokens, tokenize, vocabulary_hash, write_tokens
from .settings import METRIC_PACKAGES, is_local
from .teacher import MappedEncoder, teacher_hash, teacher_vectors
from .trainer import data_folder, fit, run

logger = logging.getLogger(__name__)


def read_data(accelerator, config, tokenizer) -> RetrievalTokens:
    """Return the texts of `data` as tokens: of a folder, pydocs if nothing is named, a Hub id, or prepared ones.
    Without a tokenizer one is trained on the texts."""
    if config.data.prepared is not None:
        return read_tokens(config)
    from .pairs.data import load_data  # needs pyarrow

    settings = config.data
    with accelerator.main_process_first():
        is_pydocs = settings.path is None and settings.triples is None
        folder = data_folder(settings.path) if is_pydocs or is_local(settings.path) else None
        data = load_data(settings, folder)
    texts = (text for task in data.training for text in task.documents.values())
    tokenizer = tokenizer or make_tokenizer(config.tokenizer, None, list(texts))
    teacher, identity = None, data.describe() | {"vocabulary": vocabulary_hash(tokenizer)}
    if config.loss.name == "prototype":
        teacher = teacher_vectors(accelerator, config.loss.teacher, data.training, config.loss.teacher_cache)
        identity["teacher"] = teacher_hash(config.loss.teacher)
    show = accelerator.is_main_process
    return RetrievalTokens(
        tokenizer=tokenizer,
        training=[tokenize(tokenizer, task, data.negatives.get(task.name), show) for task in data.training],
        development=[tokenize(tokenizer, task, show=show) for task in data.development],
        teacher=teacher,
        identity=identity,
        fingerprint=data.fingerprint(),
    )


def make_train_step(accelerator, objective, pad_id: int, chunk_tokens: int | None):
    """Return one step on a batch of PairBatches: with gradient caching if `chunk_tokens` is set.

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


def finish_encoder(config, model, new_tensors: set[str], documents, idf):
    """Return the model to train: new token weights and embeddings, also of a lexical vector, started from the `idf` of
    the documents, and adapters where asked."""
    for pooler, words, saturation in (
        ("pooler", "embeddings", model.config.pooling_saturation),
        ("pooler.lexical", "pooler.lexical", model.config.lexical_saturation),
    ):
        if config.model.idf_start and f"{pooler}.token_log_weights.weight" in new_tensors:
            weights = model.get_parameter(f"{pooler}.token_log_weights.weight")
            frequency = idf(model.config.vocab_size)
            idf_start_(weights, frequency, config.seed)
            if f"{words}.word_embeddings.weight" in new_tensors:
                embeddings = model.get_parameter(f"{words}.word_embeddings.weight")
                frame_start_(embeddings, weights, token_energy(documents, frequency, saturation))
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return add_lora(model, config.lora.rank, config.lora.alpha, new_tensors) if config.lora.rank else model


def make_development(config, tasks, special: tuple[int, int], pad_id: int) -> Development | None:
    """Return the development scores at the length of training, or at `evaluation.document_tokens`; None, with a
    warning, where the packages of the metric are not installed."""
    missing = [name for name in METRIC_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        logger.warning("no development scores: %s not installed; pip install 'm2bert[eval]'", ", ".join(missing))
        return None
    tokens = config.evaluation.document_tokens or config.data.document_tokens
    return Development(tasks, tokens, query_limit(config.data), special, pad_id, config.evaluation.batch_tokens)


def main(argv: list[str], settings=None):
    """Train with these arguments, or write what is to be trained on if `prepare` names a folder. `settings` are of
    `ready`, if the arguments were checked before."""
    run("opl", argv, settings or ready("opl", argv), train, write_data)


def write_data(config):
    """Write the tokens of all tasks and the tokenizer into the folder `prepare`, which `data.prepared` reads."""
    path = config.tokenizer.path or config.model.path
    tokenizer = make_tokenizer(config.tokenizer, config.model.path, ()) if path else None
    write_tokens(read_data(Accelerator(cpu=True), config, tokenizer), config)


def train(accelerator, config):
    """Train with the settings `config` and write the model, where no other run writes."""
    tokenizer = model = None
    if config.data.prepared is None and (config.tokenizer.path or config.model.path):  # a bad one before the data
        tokenizer = make_tokenizer(config.tokenizer, config.model.path, ())
        model, new_tensors = make_model(AutoModel, config.model, tokenizer)
    data = read_data(accelerator, config, tokenizer)
    if model is None:
        model, new_tensors = make_model(AutoModel, config.model, data.tokenizer)
    tokenizer, training, teacher = data.tokenizer, data.training, data.teacher
    report_tasks(training, config.data)
    documents = [task.documents for task in training]
    idf = cache(partial(inverse_document_frequency, documents, special_ids=tokenizer.all_special_ids))
    model = finish_encoder(config, model, new_tensors, documents, idf)
    special, pad_id = (tokenizer.cls_token_id, tokenizer.sep_token_id), tokenizer.pad_token_id
    dropout = idf(model.config.vocab_size) if config.data.query_dropout else None
    rank, world = accelerator.process_index, accelerator.num_processes
    batches = PairBatches(training, config.data, special, config.seed, rank, world, dropout)
    steps = config.steps if config.epochs is None else batches.steps_of(config.epochs)
    logger.info("%d labeled items an epoch, %d steps", batches.units, steps)
    width, teacher_width = model.config.projection_dim, None if teacher is None else teacher[0].shape[1]
    if teacher_width not in (None, width):
        logger.info("vectors of width %d are mapped to the teacher's %d while training", width, teacher_width)
        model = MappedEncoder(model, width, teacher_width)
    scores = make_development(config, data.development, special, pad_id)

    def summarize(progress):
        totals = progress.totals
        if totals.get("positives"):
            forwards = (totals["query_forwards"] + totals["document_forwards"]) / totals["positives"]
            logger.info("%.4g encoder forwards for each query and document that answers it", forwards)
        return {"data_fingerprint": data.fingerprint}

    fit(
        accelerator,
        config,
        model,
        tokenizer,
        steps=steps,
        data=data.identity,
        summarize=summarize,
        batches=batches,
        train_step=make_train_step(accelerator, make_objective(config.loss, teacher), pad_id, config.data.chunk_tokens),
        evaluate=None if scores is None else partial(scores, accelerator),
        select=METRIC if config.evaluation.select else None,
    )
