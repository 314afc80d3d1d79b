"""Held-out loss, perplexity and accuracy of a masked-language model, per source and per length."""

import logging

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import send_to_device
from torch.nn.utils.rnn import pad_sequence

from ..distributed import sum_over_processes
from .examples import random_generator
from .mixture import IGNORE, Example, Masking, SourceData, cut_by_length

logger = logging.getLogger(__name__)

MASK_PROBABILITY = 0.15  # paper section A.3
SMALLEST_BUCKET_TOKENS = 128
LARGEST_LOSS = 700.0  # whose exponential is a number


def held_out_examples(data: list[SourceData], count: int) -> list[Example]:
    """Return `count` validation examples of every source and kind in the mixture, always the same."""
    examples = []
    for one in data:
        for kind in (kind for kind, share in one.source.shares.items() if share):
            try:
                taken = one.validation.take(kind, count)
            except ValueError as error:
                logger.warning("no held-out %s examples of %s; %s", kind, one.source.name, error)
                continue
            examples += [Example(ids, one.source.name, kind) for ids in taken]
    if not examples:
        raise ValueError("no source has enough validation text for a single held-out example; add some")
    return examples


class HeldOut:
    """Evaluate on the same examples, masked the same way, every time.

    Args:
        batch_tokens: padded tokens of one forward.
    """

    def __init__(self, examples: list[Example], batch_tokens: int, masking: Masking):
        self.groups = sorted({group for example in examples for group in groups_of(example)})
        masked = {}
        for number, example in enumerate(examples):  # one by one: the masks do not depend on the batches
            generator = random_generator("held-out", number)
            masked[id(example)] = masking.batch([example.ids], MASK_PROBABILITY, generator)
        fill = {"input_ids": masking.pad_id, "attention_mask": 0, "labels": IGNORE}
        self.batches = []
        for rows in cut_by_length(examples, batch_tokens):
            tensors = {name: [masked[id(row)][name][0] for row in rows] for name in fill}
            batch = {name: pad_sequence(tensors[name], batch_first=True, padding_value=fill[name]) for name in fill}
            self.batches.append((rows, batch))

    @torch.no_grad()
    def evaluate(self, model, accelerator: Accelerator) -> dict[str, float]:
        """Return the mean loss of the masked tokens, its exponential, and the fraction predicted right.

        Over all examples, as NAME/SOURCE, and as NAME/tokens_N for examples of at most N tokens and more than a quarter
        of N. The metrics are the same on all processes.
        """
        sums = np.zeros((len(self.groups), 3))  # loss, right ones, tokens
        world, last = accelerator.num_processes, len(self.batches) - 1
        for index in range(accelerator.process_index, -(-len(self.batches) // world) * world, world):
            # all processes run equally many forwards, since a sharded model needs them all
            rows, batch = self.batches[min(index, last)]
            found = token_sums(model, send_to_device(batch, accelerator.device))
            for row, row_sums in zip(rows, found, strict=True) if index <= last else ():
                for group in groups_of(row):
                    sums[self.groups.index(group)] += row_sums
        sums = np.reshape(sum_over_processes(sums.ravel().tolist()), sums.shape)
        metrics = {}
        for group, (loss, right, tokens) in zip(self.groups, sums.tolist(), strict=True):
            metrics[f"held_out_loss{group}"] = loss / tokens
            metrics[f"held_out_perplexity{group}"] = float(np.exp(min(loss / tokens, LARGEST_LOSS)))
            metrics[f"held_out_accuracy{group}"] = right / tokens
        return metrics


def groups_of(example: Example) -> tuple[str, str, str]:
    """Return the suffixes of the metrics that an example counts in."""
    bucket = SMALLEST_BUCKET_TOKENS
    while bucket < len(example.ids):
        bucket *= 4
    return "", f"/{example.source}", f"/tokens_{bucket}"


def token_sums(model, batch: dict) -> np.ndarray:
    """Return of every row its summed loss, right predictions and number of masked tokens; (B, 3)."""
    logits = model(**batch).logits.float()  # (masked tokens, V)
    masked = batch["labels"] != IGNORE
    labels = batch["labels"][masked]
    losses = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    right = (logits.argmax(-1) == labels).float()
    values = torch.stack([losses, right, torch.ones_like(losses)], dim=1).double().cpu()
    return torch.zeros(len(masked), 3, dtype=torch.float64).index_add_(0, masked.nonzero()[:, 0].cpu(), values).numpy()
