"""Fine-tuning for retrieval (paper section 4.3).

    accelerate launch train/opl.py [--config FILE] [key=value ...]

Without arguments it fine-tunes a small new model on pydocs, offline, in about two minutes; `model.path` names a
checkpoint of train/mlm.py to start from.
"""

import logging

import torch
from accelerate.utils import send_to_device
from transformers import AutoModel

from m2bert_eval.locov1 import load_task
from m2bert_train.config import load_config, namespace
from m2bert_train.data_pairs import PairData
from m2bert_train.init import idf_start_, inverse_document_frequency
from m2bert_train.loop import run_loop, run_record
from m2bert_train.losses import cosine_matrix, multiple_negatives_ranking_loss, orthogonal_projection_loss
from m2bert_train.optim import build_optimizer
from m2bert_train.runs import (
    command_line,
    data_folder,
    finish,
    make_model,
    make_tokenizer,
    prepare,
    require,
    require_context,
)
from m2bert_train.tokenizer import encode_all

logger = logging.getLogger(__name__)


def pair_data(tokenizer, task) -> PairData:
    """The documents and labelled queries of a retrieval task, tokenised."""
    index = {pid: i for i, pid in enumerate(task.documents)}
    query_ids = encode_all(tokenizer, list(task.queries.values()))
    answers = [[index[pid] for pid in task.qrels[qid]] for qid in task.queries]
    documents = encode_all(tokenizer, list(task.documents.values()))
    logger.info("%d documents, %d tokens, %d queries", len(documents), sum(map(len, documents)), len(query_ids))
    special = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id
    return PairData(documents, list(zip(query_ids, answers, strict=True)), *special)


def make_loss(settings):
    """cosine (Q, D), relevant (Q, D) -> loss."""
    if settings.name == "opl":
        return lambda cosine, relevant: orthogonal_projection_loss(cosine, relevant, settings.positive_weight)
    if settings.name == "mnrl":
        return lambda cosine, relevant: multiple_negatives_ranking_loss(cosine, relevant, settings.temperature)
    raise ValueError(f"loss.name={settings.name!r} is unknown; choose opl or mnrl")


@torch.no_grad()
def held_out(model, data: PairData, settings, loss, steps: int, device) -> dict[str, float]:
    """Loss, and share of queries whose answer is the nearest document of its group, on fixed groups."""
    total, hits, count = 0.0, 0, 0
    for step in range(1, steps + 1):
        batch = send_to_device(data.batch(step, settings, seed=0), device)
        cosine = cosine_matrix(model(**batch["queries"]).pooler_output, model(**batch["documents"]).pooler_output)
        total += loss(cosine, batch["relevant"]).item()
        hits += batch["relevant"][torch.arange(len(cosine)), cosine.argmax(1)].sum().item()
        count += len(cosine)
    return {"held_out_loss": total / steps, "held_out_accuracy": hits / count}


def main(argv: list[str]):
    config_dict = load_config("opl-small.yaml", argv)
    config = namespace(config_dict)
    loss = make_loss(config.loss)
    require(config, data__document_tokens=3, data__documents_per_batch=1, evaluation__steps=1)
    accelerator = prepare(config, argv, "opl")
    with accelerator.main_process_first():
        folder = data_folder(config.data.path)
    task = load_task(folder, config.data.task, "train")
    tokenizer = make_tokenizer(config.tokenizer, config.model.path, list(task.documents.values()))
    data = pair_data(tokenizer, task)
    validation = pair_data(tokenizer, load_task(folder, config.data.task, "validation"))
    model, new_tensors = make_model(AutoModel, config.model, tokenizer)
    require_context(model, "data.document_tokens", config.data.document_tokens)
    long_queries = sum(len(query) + 2 > config.data.document_tokens for query, _ in data.queries)
    if long_queries:
        logger.warning("%d queries are cut to data.document_tokens=%d", long_queries, config.data.document_tokens)
    idf = inverse_document_frequency(data.documents, model.config.vocab_size, tokenizer.all_special_ids)
    if config.data.query_dropout:
        data.idf = idf
    if config.model.idf_start and "pooler.token_log_weights.weight" in new_tensors:
        idf_start_(model, idf, config.seed)
    optimizer, schedule = build_optimizer(model, config.optim, config.steps)
    model, optimizer = accelerator.prepare(model, optimizer)

    def get_batch(step: int) -> dict:
        batch = data.batch(step, config.data, seed=config.seed, rank=accelerator.process_index)
        return send_to_device(batch, accelerator.device)

    def compute_loss(model, batch):
        cosine = cosine_matrix(model(**batch["queries"]).pooler_output, model(**batch["documents"]).pooler_output)
        tokens = sum(int(batch[side]["attention_mask"].sum()) for side in ("queries", "documents"))
        return loss(cosine, batch["relevant"]), tokens

    def evaluate(model):
        return held_out(model, validation, config.data, loss, config.evaluation.steps, accelerator.device)

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
        description="opl",
    )
    finish(accelerator, model, tokenizer, config, run_record(config_dict, task.fingerprint, history))


if __name__ == "__main__":
    command_line(main, "opl")
