"""What both entry points do before and after training: data, tokenizer, model, and the folder that is left."""

import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs, TorchDynamoPlugin, set_seed
from transformers import AutoConfig, PreTrainedModel

from m2bert.files import claimed, read_json
from m2bert.hub.checkpoint import load_strictly, read_config
from m2bert.hub.folder import check_output, check_tokenizer, write_folder
from m2bert.schema import FOREIGN, Schema, checked
from m2bert.terminal import Ended, log_to_terminal, run_command

from .checkpoints import Checkpoints, differences, remove_all, run_identity, whole_weights
from .config import to_dict
from .distributed import from_main
from .dry_run import is_dry_run
from .init import identity_layer_, identity_start_
from .inputs import PYDOCS
from .lora import write_adapter
from .model_settings import check_fields
from .tokenizer import load_tokenizer, train_wordpiece

logger = logging.getLogger(__name__)

LONGEST_WAIT = timedelta(hours=12)  # of processes, while one of them tokenises or encodes with a teacher
RECORD = "training.json"  # of a finished run, beside its weights


class Finished(Ended):
    """There is nothing left to do."""


def command_line(main, name: str):
    """Run a command of this package with the arguments of the process; see `run_command`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(sys.modules["__main__"].__doc__)
        return
    run_command(name, lambda: main(sys.argv[1:]))


@contextmanager
def prepare(config: SimpleNamespace, argv: list[str], name: str) -> Iterator[Accelerator]:
    """Set up logging, seed, output folder and tracker. The first log line says what runs. Until the block ends no other
    run may write to the same output.

    Raises:
        ValueError: the output is there, or an unfinished run is, and neither `resume` nor `overwrite` is said; or a
            precision or tracker that accelerate does not know.
    """
    dynamo = TorchDynamoPlugin(backend="inductor", dynamic=True) if config.compile else None
    accelerator = Accelerator(
        mixed_precision=config.precision,
        dynamo_plugin=dynamo,
        log_with=config.tracker,
        project_dir=run_folder(config.output_dir),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=LONGEST_WAIT)],
    )
    if accelerator.is_fsdp2:
        accelerator.state.fsdp_plugin.mixed_precision_policy = None  # autocast computes in half precision; FSDP would
        # round the parameters of the filters as well
    log_to_terminal(logging.INFO if accelerator.is_main_process else logging.WARNING, "%(message)s")
    logging.getLogger("accelerate").setLevel(logging.ERROR)  # it tells of every file of a checkpoint
    transformers.utils.logging.disable_progress_bar()
    if argv:
        logger.info("%s: %s", name, " ".join(argv))
    else:
        logger.info("%s without arguments: the small offline default (pydocs, configs/%s-small.yaml)", name, name)
    check_processes(accelerator)
    with claimed_place(config, accelerator):
        if config.tracker is not None:
            if not accelerator.log_with:
                raise ValueError(f"tracker={config.tracker} is not installed; install it, or choose another")
            accelerator.init_trackers("m2bert")
        set_seed(config.seed)
        yield accelerator


def check_processes(accelerator: Accelerator):
    """Raise ValueError where several processes were started of which each would train alone."""
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise ValueError(
            f"{started} processes were started and {accelerator.num_processes} would train together; on a CPU set "
            "ACCELERATE_USE_CPU=true"
        )


@contextmanager
def claimed_place(config: SimpleNamespace, accelerator: Accelerator) -> Iterator[None]:
    """Check where the output is to be, and keep other runs out of there until the block ends.

    Raises:
        Finished, ValueError: see `check_place`; or another run writes there. Raised on all processes.
    """
    with ExitStack() as stack:
        from_main(lambda: claim_place(stack, config, accelerator))
        yield


def claim_place(stack: ExitStack, config: SimpleNamespace, accelerator: Accelerator):
    """Claim the run's folder until the stack closes, and check the place; on the main process alone."""
    folder = run_folder(config.output_dir)
    try:
        stack.enter_context(claimed(folder))
    except OSError as error:
        place = config.output_dir
        raise ValueError(f"output_dir={place} cannot be written ({error}); name a folder that can") from error
    stack.callback(lambda: any(folder.iterdir()) or folder.rmdir())
    check_place(config, accelerator)


class Record(Schema):
    """What is read again of a finished run's training.json: `run_identity` of the run."""

    model_config = FOREIGN
    identity: dict[str, Any]


def check_place(config: SimpleNamespace, accelerator: Accelerator):
    """Whether the run may begin, or go on, where its output is to be.

    Raises:
        Finished: with `resume`, and the output is of this very configuration. Its checkpoints are removed.
        ValueError: the output is there, or an unfinished run is, and neither `resume` nor `overwrite` says what to do.
    """
    output, folder = Path(config.output_dir), run_folder(config.output_dir)
    unfinished = sorted(folder.glob("step-*"))
    if config.resume and (output / RECORD).is_file():
        there = checked(Record, read_json(output / RECORD), str(output / RECORD)).identity
        changes = differences(there, run_identity(to_dict(config), accelerator))
        if not changes:
            remove_all(folder)
            raise Finished(f"{output} is finished; nothing to do")
        if not (unfinished and config.overwrite):
            raise ValueError(
                f"{output} is finished, and of another run ({'; '.join(changes)}); change that back, or name another "
                "output_dir"
            )
    check_output(output, config.overwrite)
    if unfinished and not (config.resume or config.overwrite):
        raise ValueError(
            f"output_dir={output} has an unfinished run ({unfinished[-1]}); go on with resume=true, "
            "or start anew with overwrite=true"
        )


def run_folder(output_dir: str) -> Path:
    """Where a run keeps what it needs until it is finished, and where trackers write."""
    return Path(f"{Path(output_dir)}.run")


def make_checkpoints(accelerator: Accelerator, config_dict: dict, data: dict) -> Checkpoints:
    """The checkpoints of a run; those of an earlier one are removed unless it is to go on.

    Args:
        data: what identifies the data.

    Raises:
        ValueError: settings that are out of range.
    """
    checkpoints = Checkpoints(
        accelerator,
        run_folder(config_dict["output_dir"]),
        config=config_dict,
        data=data,
        every=config_dict["checkpoint_every"],
        keep=config_dict["checkpoint_keep"],
        resume=config_dict["resume"],
    )
    if accelerator.is_main_process and not checkpoints.resume:
        remove_all(checkpoints.folder)
    accelerator.wait_for_everyone()
    return checkpoints


def data_folder(path: str | None) -> Path:
    """Return the folder of the data; without a path pydocs, built from the installed packages' documentation."""
    if path is not None:
        return Path(path)
    from m2bert.eval.tasks.pydocs import build_pydocs

    build_pydocs(PYDOCS)
    return PYDOCS


def make_tokenizer(settings, model_path: str | None, texts: Iterable[str]):
    """Return the tokenizer of `tokenizer.path`, else of the checkpoint, else one trained on the texts."""
    path = settings.path or model_path
    if path is not None:
        return load_tokenizer(path)
    logger.info("training a WordPiece tokenizer of %d tokens", settings.vocab_size)
    return train_wordpiece(texts, settings.vocab_size)


def make_model(auto_class, settings, tokenizer) -> tuple[PreTrainedModel, set[str]]:
    """Return a checkpoint (`model.path`) or a new model, each with the changes of `model.architecture`.

    Returns:
        The model, and the names of its tensors that are new: all of them, or a pooler or layers that the checkpoint
        lacked.

    Raises:
        ValueError: an unknown field, a checkpoint with missing or unexpected tensors.
    """
    check_fields(settings.architecture, "model.architecture")
    check_fields(settings.new_model, "model.new_model")
    if settings.path is not None:
        old = read_config(Path(settings.path)).get("num_hidden_layers", 0)
        added = range(old, settings.architecture.get("num_hidden_layers", old))
        may_miss = ("pooler.", *(f"{prefix}layers.{number}." for prefix in ("", "model.") for number in added))
        model, missing = load_strictly(auto_class, settings.path, may_miss=may_miss, **settings.architecture)
        check_tokenizer(tokenizer, model.config.vocab_size)
        if settings.start == "identity":
            for number in added:
                identity_layer_(model.base_model.layers[number])
            if model.base_model.pooler is not None and "pooler.context_log_weights.weight" in missing:
                torch.nn.init.zeros_(model.base_model.pooler.context_log_weights.weight)
        return model, missing
    size = max(tokenizer.get_vocab().values()) + 1
    fields = {"vocab_size": -(-size // 8) * 8, "pad_token_id": tokenizer.pad_token_id}
    fields |= settings.new_model | settings.architecture
    model = auto_class.from_config(AutoConfig.for_model("m2bert", **fields))
    check_tokenizer(tokenizer, model.config.vocab_size)
    if settings.start == "identity":
        identity_start_(model)
    return model, set(model.state_dict())


def finish(accelerator: Accelerator, model, tokenizer, config, record: dict, checkpoints: Checkpoints):
    """Write the trained model as a complete Hub folder, with `training.json` beside the weights; then the checkpoints
    go. Of a model with adapters (peft) the folder holds these alone."""
    weights = whole_weights(accelerator, model)
    if accelerator.is_main_process:
        record = {"identity": run_identity(record["config"], accelerator), **record}
        extra = {RECORD: json.dumps(record, indent=2, allow_nan=False) + "\n"}
        model = accelerator.unwrap_model(model, keep_torch_compile=False)
        write = write_adapter if hasattr(model, "peft_config") else write_folder
        output = write(
            model, tokenizer, config.output_dir, overwrite=config.overwrite, extra_files=extra, state_dict=weights
        )
        remove_all(checkpoints.folder)
        if is_dry_run(config):
            logger.info("dry run: all was done once on stand-in data, nothing is kept; your paths were not looked at")
        else:
            logger.info("wrote %s", output)
    accelerator.end_training()
