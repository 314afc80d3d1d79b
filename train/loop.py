"""The one training loop: step, clip, log, evaluate. No policy: data, loss and schedule come from the entry points."""

import logging
import math
import platform
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version

import torch
from accelerate import Accelerator
from tqdm import tqdm

logger = logging.getLogger(__name__)

PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")


def run_loop(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule,
    *,
    steps: int,
    get_batch: Callable[[int], dict],
    compute_loss: Callable[[torch.nn.Module, dict], tuple[torch.Tensor, int]],
    clip_norm: float,
    log_every: int,
    evaluate: Callable[[torch.nn.Module], dict[str, float]] | None = None,
    evaluate_every: int = 0,
    description: str = "train",
) -> list[dict[str, float]]:
    """Train for `steps` steps.

    Args:
        get_batch: step -> batch on the right device; a function of the step alone, so that runs repeat.
        compute_loss: (model, batch) -> (loss, number of tokens encoded).
        evaluate: metrics of the model, every `evaluate_every` steps (0: only after the last) and after the last.

    Returns:
        One record per `log_every` steps and per evaluation: step, loss (mean since the last record), learning rate,
        tokens_per_second, seconds since the start, and the metrics where they were computed.

    Raises:
        ValueError: log_every is less than 1.
        FloatingPointError: the loss or the gradient is not finite. The step is not taken and nothing is saved.
    """
    if log_every < 1:
        raise ValueError(f"log_every={log_every} must be at least 1")
    history, losses, tokens = [], [], 0
    start = tick = time.perf_counter()
    model.train()
    progress = tqdm(range(1, steps + 1), desc=description, unit="step", disable=not accelerator.is_main_process)
    for step in progress:
        loss, batch_tokens = compute_loss(model, get_batch(step))
        accelerator.backward(loss)
        norm = accelerator.clip_grad_norm_(model.parameters(), clip_norm)
        losses.append(loss.item())
        scaled = accelerator.scaler is not None  # float16: an infinite gradient only lowers the scale
        if not (math.isfinite(losses[-1]) and (scaled or math.isfinite(float(norm)))):
            raise FloatingPointError(
                f"step {step}: loss {losses[-1]}, gradient norm {float(norm)}; stopped before the update and without "
                "saving. Lower optim.lr, or look at the data of this step"
            )
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += batch_tokens * accelerator.num_processes
        due = step == steps or (evaluate_every and step % evaluate_every == 0)
        if due or step % log_every == 0:
            now = time.perf_counter()
            record = {
                "step": step,
                "loss": sum(losses) / len(losses),
                "learning_rate": schedule.get_last_lr()[-1],
                "tokens_per_second": round(tokens / (now - tick)),
                "seconds": round(now - start, 2),
            }
            if evaluate is not None and due:
                model.eval()
                record |= evaluate(model)
                model.train()
            history.append(record)
            progress.set_postfix(loss=f"{record['loss']:.4f}", tokens_s=record["tokens_per_second"])
            losses, tokens, tick = [], 0, time.perf_counter()
    return history


def run_record(config: dict, data_fingerprint: str, history: list[dict]) -> dict:
    """What a run writes about itself: configuration, data, versions, learning curve."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return {"config": config, "data_fingerprint": data_fingerprint, "versions": versions, "history": history}
