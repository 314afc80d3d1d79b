"""Masked-language-model pretraining (paper section 4.2): what train/mlm.py runs once its arguments are checked."""

import hashlib
import json
import logging
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
from accelerate.utils import send_to_device
from transformers import AutoModelForMaskedLM

from .distributed import sum_over_processes
from .loop import run_loop
from .optim import build_optimizer
from .record import run_record
from .setup import data_folder, finish, make_checkpoints, run
from .starts import make_model, unigram_start_
from .text.data_mlm import MixtureBatches, observed_shares
from .text.held_out import HeldOut, held_out_examples
from .text.masking import IGNORE, Masking
from .text.source_data import SourceData, open_source
from .text.text_sources import Source, parse_sources
from .text.token_store import carve_limit, text_hash
from .tokenizer import cached_wordpiece, load_tokenizer

logger = logging.getLogger(__name__)


class TrainingTexts:
    """The training texts of local sources, read from disk each time they are iterated; not those that
    `TokenStore.carve` holds out."""

    def __init__(self, sources: list[Source]):
        self.sources = sources

    def __iter__(self) -> Iterator[str]:
        for source in self.sources:
            texts, limit = source.files(source.split), 0
            if source.validation_split is None:
                limit = carve_limit(text_hash(text) for text in texts if text.strip())
            yield from (text for text in texts if not limit or text_hash(text) >= limit)

    def identity(self) -> list:
        """What changes when the texts may have changed."""
        return [[source.files(source.split).identity(), source.validation_split is None] for source in self.sources]


def make_vocabulary(config, sources: list[Source]):
    """Return the tokenizer of `tokenizer.path`, else of the checkpoint, else one trained on the sources, once."""
    if config.tokenizer.path is None and config.model.path is None:
        return cached_wordpiece(TrainingTexts(sources), config.tokenizer.vocab_size, config.data.token_cache)
    return load_tokenizer(config.tokenizer.path or config.model.path)


def token_counts(data: list[SourceData], vocab_size: int) -> np.ndarray:
    """How often each token occurs in the mixture: sources weighted by their shares; (vocab_size,). Of a streamed
    source the texts read first are counted."""
    counts = [one.train.token_counts(vocab_size) for one in data]
    total = sum(count.sum() for count in counts)
    shares = [sum(one.source.shares.values()) for one in data]
    return sum(share * total / max(count.sum(), 1) * count for share, count in zip(shares, counts, strict=True))


def train_step(accelerator, model, batch: list[dict]):
    """Forward and backward over the step's micro-batches. The loss is the mean over all masked tokens of the step, of
    all micro-batches and processes, however they are spread.

    Returns:
        The loss, and counts of this process: tokens, masked_tokens, and those of the sources and kinds.
    """
    masked = sum(int((micro["labels"] != IGNORE).sum()) for micro in batch)
    masked_of_all = sum_over_processes([float(masked)])[0]
    counts, loss = {"masked_tokens": masked}, 0.0
    for number, micro in enumerate(batch):
        tensors = {name: value for name, value in micro.items() if name != "counts"}
        with nullcontext() if number == len(batch) - 1 else accelerator.no_sync(model):
            inputs = send_to_device(tensors, accelerator.device)
            part = model(**inputs, num_items_in_batch=masked_of_all).loss
            accelerator.backward(part * accelerator.num_processes)  # gradients are averaged over processes
        loss = loss + part.detach()
        for name, value in (micro["counts"] | {"tokens": int(micro["attention_mask"].sum())}).items():
            counts[name] = counts.get(name, 0) + value
    return accelerator.reduce(loss, "sum"), counts


def main(argv: list[str], settings=None):
    """Train with these arguments; `settings` are those of `inputs.ready`, where they were read before."""
    run("mlm", train, argv, settings)


def train(accelerator, config):
    """Train with the settings `config` and write the model, where no other run writes."""
    rank, world = accelerator.process_index, accelerator.num_processes
    with accelerator.local_main_process_first():
        sources = parse_sources(config.data.sources, data_folder)
        for source in sources:
            source.check_columns()
        tokenizer = make_vocabulary(config, sources)
        model, _ = make_model(AutoModelForMaskedLM, config.model, tokenizer)  # a bad one before the text is tokenised
        data = [open_source(s, config.data, tokenizer, seed=config.seed, rank=rank, world=world) for s in sources]
    masking = Masking(tokenizer)
    held_out = HeldOut(held_out_examples(data, config.evaluation.examples), config.data.batch_tokens, masking)
    if config.model.path is None and config.model.start == "identity":
        unigram_start_(model, token_counts(data, model.config.vocab_size))
    model.config.sparse_prediction = True
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer, schedule = build_optimizer(model, config.optim, config.steps)
    model, optimizer = accelerator.prepare(model, optimizer)
    description = {one.source.name: one.description for one in data}
    checkpoints = make_checkpoints(accelerator, config, description)
    progress = run_loop(
        accelerator,
        model,
        optimizer,
        schedule,
        steps=config.steps,
        batches=MixtureBatches(data, config.data, masking, seed=config.seed, rank=rank),
        train_step=lambda model, batch: train_step(accelerator, model, batch),
        clip_norm=config.optim.clip_norm,
        log_every=config.log_every,
        evaluate=lambda model: held_out.evaluate(model, accelerator),
        evaluate_every=config.evaluation.every,
        checkpoints=checkpoints,
        description="mlm",
    )
    accelerator.unwrap_model(model).config.sparse_prediction = False
    shares = observed_shares(data, progress.totals)
    for name, share in shares.items():
        logger.info("%s: %s", name, ", ".join(f"{what} {value:.4f}" for what, value in share.items()))
    fingerprint = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    record = run_record(config.model_dump(), fingerprint, world, progress) | {"data": description, "mixture": shares}
    finish(accelerator, model, tokenizer, config, record, checkpoints)
