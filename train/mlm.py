"""Masked-language-model pretraining (paper section 4.2).

    accelerate launch train/mlm.py [--config FILE] [key=value ...]

Without arguments it trains a small model on pydocs, offline, in about a minute.
"""

import logging

import numpy as np
import torch
from accelerate.utils import send_to_device
from transformers import AutoModelForMaskedLM

from m2bert_train.config import load_config, namespace
from m2bert_train.data_mlm import MaskedLmData, pack_rows
from m2bert_train.init import unigram_start_
from m2bert_train.loop import run_loop, run_record
from m2bert_train.optim import build_optimizer
from m2bert_train.runs import (
    command_line,
    data_folder,
    fingerprint,
    finish,
    make_model,
    make_tokenizer,
    prepare,
    read_texts,
    require,
    require_context,
)
from m2bert_train.tokenizer import encode_all

logger = logging.getLogger(__name__)

HELD_OUT_MASK_PROBABILITY = 0.15


def masked_lm_data(tokenizer, texts: list[str], row_tokens: int, seed: int) -> MaskedLmData:
    """Texts, tokenised and packed."""
    documents = encode_all(tokenizer, texts)
    rows = pack_rows(documents, row_tokens, tokenizer.cls_token_id, tokenizer.sep_token_id, seed)
    logger.info("%d texts, %d tokens, %d rows of %d", len(texts), sum(map(len, documents)), len(rows), row_tokens)
    return MaskedLmData(rows, len(tokenizer), tokenizer.mask_token_id, tokenizer.all_special_ids)


@torch.no_grad()
def held_out(model, data: MaskedLmData, rows: int, batch_rows: int, device) -> dict[str, float]:
    """Loss per masked token, perplexity and accuracy on the first rows, 15 % masked, always the same way."""
    loss, correct, count = 0.0, 0, 0
    for first in range(0, min(rows, len(data.rows)), batch_rows):
        generator = np.random.default_rng([0, first])
        batch = data.mask(data.rows[first : min(first + batch_rows, rows)], HELD_OUT_MASK_PROBABILITY, generator)
        batch = send_to_device(batch, device)
        outputs = model(**batch)  # logits of the masked positions only
        labels = batch["labels"][batch["labels"] != -100]
        loss += outputs.loss.item() * len(labels)
        correct += (outputs.logits.argmax(-1) == labels).sum().item()
        count += len(labels)
    mean = loss / count
    return {"held_out_loss": mean, "held_out_perplexity": float(np.exp(mean)), "held_out_accuracy": correct / count}


def main(argv: list[str]):
    config_dict = load_config("mlm-small.yaml", argv)
    config = namespace(config_dict)
    require(config, data__row_tokens=3, data__batch_rows=1, evaluation__rows=1)
    accelerator = prepare(config, argv, "mlm")
    with accelerator.main_process_first():
        folder = data_folder(config.data.path)
    texts = read_texts(folder, "train")
    tokenizer = make_tokenizer(config.tokenizer, config.model.path, texts)
    data = masked_lm_data(tokenizer, texts, config.data.row_tokens, config.seed)
    validation = masked_lm_data(tokenizer, read_texts(folder, "validation"), config.data.row_tokens, config.seed)
    model, _ = make_model(AutoModelForMaskedLM, config.model, tokenizer)
    if config.model.path is None and config.model.start == "identity":
        unigram_start_(model, data.rows)
    require_context(model, "data.row_tokens", config.data.row_tokens)
    model.config.sparse_prediction = True
    optimizer, schedule = build_optimizer(model, config.optim, config.steps)
    model, optimizer = accelerator.prepare(model, optimizer)

    def get_batch(step: int) -> dict:
        batch = data.batch(
            step,
            batch_rows=config.data.batch_rows,
            mask_probability=config.data.mask_probability,
            seed=config.seed,
            rank=accelerator.process_index,
            world=accelerator.num_processes,
        )
        return send_to_device(batch, accelerator.device)

    def compute_loss(model, batch):
        return model(**batch).loss, batch["input_ids"].numel()

    def evaluate(model):
        return held_out(model, validation, config.evaluation.rows, config.data.batch_rows, accelerator.device)

    history = run_loop(
        accelerator,
        model,
        optimizer,
        schedule,
        steps=config.steps,
        get_batch=get_batch,
        compute_loss=compute_loss,
        clip_norm=config.optim.clip_norm,
        log_every=config.log_every,
        evaluate=evaluate,
        evaluate_every=config.evaluation.every,
        description="mlm",
    )
    accelerator.unwrap_model(model).config.sparse_prediction = False
    finish(accelerator, model, tokenizer, config, run_record(config_dict, fingerprint(texts), history))


if __name__ == "__main__":
    command_line(main, "mlm")
