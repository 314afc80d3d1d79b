"""What masked-LM and retrieval training share around the loop: processes, output folder, optimizer, export."""

import json
import logging
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, TorchDynamoPlugin, set_seed

from m2bert.files import claimed, read_json
from m2bert.hub.folder import check_output, write_folder
from m2bert.records import installed_versions
from m2bert.schema import FOREIGN, Schema, checked
from m2bert.terminal import Ended, log_to_terminal
from modeling_m2bert import fast_dtype

from .alignment import StretchEncoder
from .checkpoints import Checkpoints, Progress, differences, remove_all, run_folder, run_identity, whole_weights
from .distributed import from_main
from .dry_run import is_dry_run
from .loop import run_loop
from .lora import write_adapter
from .settings import PYDOCS, RunSettings
from .teacher import MappedEncoder

logger = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(hours=12)  # how long processes wait for one that tokenizes or encodes with a teacher
RECORD = "training.json"  # the record of a finished run, next to its weights
PACKAGES = ("torch", "transformers", "accelerate", "tokenizers", "safetensors", "numpy")
# What the research code means to train its filters with: (learning rate, weight decay).
RESEARCH_FEATURES = (1e-5, 0.0)
RESEARCH_FILTER_NETWORK = (1e-3, 0.1)


class Finished(Ended):
    """The run in `output_dir` is already finished."""


class Record(Schema):
    """The part of a finished run's training.json that is read again: its `run_identity`."""

    model_config = FOREIGN
    identity: dict[str, Any]


def run(
    name: str,
    argv: list[str],
    settings: RunSettings,
    train: Callable[[Accelerator, RunSettings], None],
    prepare: Callable[[RunSettings], None],
) -> None:
    """Call `train`, and keep other runs from writing to its output. If `settings.prepare` is set, only call `prepare`.

    Args:
        name: of the entry point, as in configs/NAME-small.yaml.
        argv: the command line that gave the settings, for the log.
    """
    log_to_terminal(logging.INFO, "%(message)s")
    if settings.prepare is not None:
        prepare(settings)
        return
    accelerator = make_accelerator(settings)
    if not accelerator.is_main_process:
        log_to_terminal(logging.WARNING, "%(message)s")
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it reports every file of a checkpoint
    transformers.utils.logging.disable_progress_bar()
    default = f"without arguments: the small offline default (pydocs, configs/{name}-small.yaml)"
    logger.info("%s: %s", name, " ".join(argv) or default)
    with claimed_output(settings, accelerator):
        if settings.tracker is not None:
            if not accelerator.log_with:
                raise ValueError(f"tracker={settings.tracker} is not installed; install it, or choose another")
            accelerator.init_trackers("m2bert")
        set_seed(settings.seed)
        train(accelerator, settings)


def make_accelerator(settings: RunSettings) -> Accelerator:
    """Return the accelerator of a run. Raise ValueError if the started processes would not train together."""
    accelerator = Accelerator(
        mixed_precision=settings.precision,
        dynamo_plugin=TorchDynamoPlugin(backend="inductor", dynamic=True) if settings.compile else None,
        log_with=settings.tracker,
        project_dir=run_folder(settings),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    if accelerator.is_fsdp2:
        # FSDP's own policy would round the parameters of the filters, too. Autocast is what computes in half precision.
        accelerator.state.fsdp_plugin.mixed_precision_policy = None
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started and {accelerator.num_processes} would train together; on a CPU set "
            "ACCELERATE_USE_CPU=true"
        )
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(accelerator.mixed_precision)
    if half and fast_dtype(half, accelerator.device) != half and accelerator.is_main_process:
        logger.warning(
            "this processor has no instructions for precision=%s; precision=no is faster", accelerator.mixed_precision
        )
    return accelerator


@contextmanager
def claimed_output(settings: RunSettings, accelerator: Accelerator) -> Iterator[None]:
    """Check that the run may write its output, and keep other runs from writing there until the block ends.

    Errors are raised on all processes.
    """
    folder = run_folder(settings)

    def remove_if_empty():
        if not any(folder.iterdir()):
            folder.rmdir()

    with ExitStack() as stack:

        def claim():
            stack.enter_context(claimed(folder))
            stack.callback(remove_if_empty)
            check_place(settings, accelerator)

        from_main(claim)
        yield


def check_place(settings: RunSettings, accelerator: Accelerator) -> None:
    """Check that the run may begin or resume in its output folder.

    Raises:
        ValueError: the folder holds another run or other files; or an unfinished run, and neither `resume` nor
            `overwrite` is set.
        Finished: `resume` is set, and this run is already finished. Its checkpoints are removed.
    """
    output, folder = Path(settings.output_dir), run_folder(settings)
    unfinished, problem = sorted(folder.glob("step-*")), None
    if settings.resume and (output / RECORD).is_file():
        finished = checked(Record, read_json(output / RECORD), str(output / RECORD)).identity
        changes = differences(finished, run_identity(settings, accelerator))
        if not changes:
            remove_all(folder)
            raise Finished(f"{output} is finished; nothing to do")
        if not (unfinished and settings.overwrite):
            problem = (
                f"is finished, and of another run ({'; '.join(changes)}); change that back, or name another output_dir"
            )
    if problem is None:
        check_output(output, settings.overwrite)
        if unfinished and not (settings.resume or settings.overwrite):
            problem = (
                f"has an unfinished run ({unfinished[-1]}); resume it with resume=true, or start anew with "
                "overwrite=true"
            )
    if problem:
        raise ValueError(f"output_dir={output} {problem}")


def data_folder(path: str | None) -> Path:
    """Return the folder of the data. Without a path it is pydocs, built from the installed packages' documentation."""
    if path is not None:
        return Path(path)
    from m2bert.eval.tasks.pydocs import build_pydocs

    build_pydocs(PYDOCS)
    return PYDOCS


def build_optimizer(model: torch.nn.Module, optim, steps: int, scaled: bool = False):
    """Return AdamW and its schedule: linear warmup over `warmup_share` of the steps, then linear decay.

    With a gradient scaler (`scaled`) AdamW is not fused: a fused one hides from accelerate which steps were skipped.
    """
    groups = parameter_groups(model, optim)
    trained = [each for group in groups for each in group["params"]]
    fused = not scaled and all(each.device.type in ("cpu", "cuda") and each.is_contiguous() for each in trained)
    optimizer = torch.optim.AdamW(groups, betas=tuple(optim.betas), eps=optim.eps, fused=fused or None)
    return optimizer, transformers.get_linear_schedule_with_warmup(optimizer, round(optim.warmup_share * steps), steps)


def parameter_groups(model: torch.nn.Module, optim) -> list[dict]:
    """Group trained parameters by learning rate and weight decay; parts with the same two share a group.

    The parts and the fields of `optim` that hold their learning rates:

        filters     filter_lr   parameters that generate taps; skip terms belong to the layers
        layers      layer_lr    everything else in a layer
        pooler      pooler_lr
        the others  lr          embeddings and the masked-LM head

    A rate that is None is `lr`. The group of `lr` comes last.

    With `optim.research_groups` the filters have the settings that the research code means to give them: positional
    features a rate of 1e-5 without weight decay, the sine network with its frequency a rate of 1e-3 and a decay of 0.1.
    The research code itself loses these settings when it copies layers, so that it trained with one group. It means
    them for the network of the forward direction only. Here both directions lie in one tensor, so both have them.
    """

    def settings_of(name: str) -> tuple[float, float]:
        in_filter = "filter." in name and not name.endswith(".skip")
        if in_filter and optim.research_groups:
            return RESEARCH_FEATURES if name.endswith("positional_features") else RESEARCH_FILTER_NETWORK
        rate = None
        if in_filter:
            rate = optim.filter_lr
        elif "layers." in name:
            rate = optim.layer_lr
        elif "pooler." in name:
            rate = optim.pooler_lr
        return (optim.lr if rate is None else rate), optim.weight_decay

    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(settings_of(name), []).append(parameter)
    main = (optim.lr, optim.weight_decay)
    ordered = sorted(groups, key=lambda settings: settings == main)  # stable: only `main` moves, to the end
    return [{"params": groups[settings], "lr": settings[0], "weight_decay": settings[1]} for settings in ordered]


def fit(
    accelerator: Accelerator,
    settings: RunSettings,
    model: torch.nn.Module,
    tokenizer,
    steps: int,
    data: dict,
    summarize: Callable[[Progress], dict],
    **parts,
) -> None:
    """Train a model and write it with the record of its run, training.json.

    Args:
        data: what identifies the data. A run resumes only if it is the same.
        summarize: returns what the record says about the data, `data_fingerprint` included. It is called with the
            progress at the end.
        parts: batches, train_step, evaluate and select, for `run_loop`.
    """
    optimizer, schedule = build_optimizer(model, settings.optim, steps, accelerator.scaler is not None)
    prepared, optimizer = accelerator.prepare(model, optimizer)
    checkpoints = Checkpoints(accelerator, settings, data)
    progress = run_loop(accelerator, prepared, optimizer, schedule, settings, steps, checkpoints, **parts)
    record = {
        "identity": run_identity(settings, accelerator),
        "config": settings.model_dump(),
        "processes": accelerator.num_processes,
        "versions": {"python": platform.python_version()} | installed_versions(PACKAGES),
        "history": progress.history,
        "totals": progress.totals,
        "best": progress.best,
        **summarize(progress),
    }
    trained = model.encoder if isinstance(model, MappedEncoder | StretchEncoder) else prepared
    finish(accelerator, trained, tokenizer, settings, record)


def finish(accelerator: Accelerator, model, tokenizer, settings: RunSettings, record: dict) -> None:
    """Write the trained model as a complete Hub folder with `training.json`, then remove the checkpoints.

    If the model has adapters (peft), the folder holds only these.
    """
    weights = whole_weights(accelerator, model)
    if accelerator.is_main_process:
        extra = {RECORD: json.dumps(record, indent=2, allow_nan=False) + "\n"}
        model = accelerator.unwrap_model(model, keep_torch_compile=False)
        write = write_adapter if hasattr(model, "peft_config") else write_folder
        output = write(
            model, tokenizer, settings.output_dir, overwrite=settings.overwrite, extra_files=extra, state_dict=weights
        )
        remove_all(run_folder(settings))
        if is_dry_run(settings):
            logger.info("dry run: every part ran once on stand-in data; nothing is kept, your paths were not read")
        else:
            logger.info("wrote %s", output)
    accelerator.end_training()
