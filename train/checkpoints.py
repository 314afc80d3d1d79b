"""Complete states of an unfinished run, each whole or not at all, in a folder beside the run's output.

    OUTPUT.run/step-00000100/   parameters, optimizer, random generators (accelerate's files), progress.json
    OUTPUT.run/best-00000080.safetensors   the best weights so far, where a run selects

A checkpoint is written under another name and renamed when complete, so whatever kills the run, the newest `step-*`
folder is whole. A run goes on only as what it was: same configuration, data and number of processes.
"""

import dataclasses
import json
import logging
import shutil
from contextlib import contextmanager
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from .distributed import gather_lists
from .record import Progress

logger = logging.getLogger(__name__)

# Settings that a resumed run may change: none of them changes what is computed (precision counts as what it became).
FREE = ("output_dir", "overwrite", "resume", "log_every", "tracker", "checkpoint_every", "checkpoint_keep", "precision")
CACHES = ("token_cache", "teacher_cache")
PROGRESS = "progress.json"


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they are.
        config: the run's configuration, plain dictionaries.
        data: what identifies the run's data; goes through JSON.
        every: steps between checkpoints; 0 writes none but on demand.
        keep: how many of the newest stay.
        resume: go on from the newest, if there is one.
    """

    def __init__(
        self, accelerator: Accelerator, folder: Path, *, config: dict, data: dict, every: int, keep: int, resume: bool
    ):
        if every < 0 or keep < 1:
            raise ValueError(f"checkpoint_every={every} must be 0 or more, checkpoint_keep={keep} at least 1")
        self.accelerator, self.folder, self.every, self.keep, self.resume = accelerator, folder, every, keep, resume
        self.identity = run_identity(config, accelerator) | {"data": json.loads(json.dumps(data))}

    def due(self, step: int) -> bool:
        return bool(self.every) and step % self.every == 0

    def complete(self) -> list[Path]:
        """Folders of complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if (path / PROGRESS).is_file())

    def load(self, batches) -> Progress | None:
        """Restore the newest checkpoint into everything prepared by the accelerator and into `batches`.

        Raises:
            ValueError: the checkpoint is of another configuration, of other data or of another number of processes.
        """
        if self.accelerator.is_main_process:
            for leftover in self.folder.glob(".*"):  # of a save that something killed
                delete(leftover)
        self.accelerator.wait_for_everyone()
        newest = gather_lists([self.complete()[-1] if self.resume and self.complete() else None])[0]
        if newest is None:
            return None
        if not (newest / PROGRESS).is_file():
            raise ValueError(
                f"process {self.accelerator.process_index} does not see {newest}, which the main process has; "
                "output_dir must lie where all machines see it"
            )
        saved = json.loads((newest / PROGRESS).read_text())
        changes = differences(saved["identity"], self.identity)
        if changes:
            raise ValueError(
                f"{newest} belongs to another run ({'; '.join(changes)}); change that back, or start anew with "
                "overwrite=true resume=false"
            )
        self.accelerator.load_state(str(newest))
        batches.restore(saved["batches"][self.accelerator.process_index])
        progress = Progress(**saved["progress"])
        logger.info("resumed after step %d from %s", progress.step, newest)
        return progress

    def save(self, progress: Progress, batch_state: dict):
        """Write a checkpoint; called on all processes.

        Raises:
            OSError: it cannot be written. Earlier checkpoints are as they were.
        """
        name = f"step-{progress.step:08d}"
        temporary = self.folder / f".{name}"
        states = gather_lists([batch_state])
        with self.writing(temporary):
            self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            if self.accelerator.is_main_process:
                saved = {
                    "identity": self.identity,
                    "batches": states,
                    "progress": dataclasses.asdict(progress),
                }
                (temporary / PROGRESS).write_text(json.dumps(saved))
                delete(self.folder / name)
                temporary.rename(self.folder / name)
                self.prune(progress)
        self.accelerator.wait_for_everyone()

    def prune(self, progress: Progress):
        """Remove checkpoints beyond the newest `keep`, and best weights that none of these knows."""
        for path in self.complete()[: -self.keep]:
            delete(path)
        known = [Progress(**json.loads((path / PROGRESS).read_text())["progress"]) for path in self.complete()]
        best = {self.best_path(each) for each in (*known, progress) if each.best}
        for path in self.folder.glob("best-*"):
            if path not in best:
                delete(path)

    def best_path(self, progress: Progress) -> Path:
        return self.folder / f"best-{progress.best['step']:08d}.safetensors"

    def keep_best(self, model, progress: Progress, score: float):
        """Keep the weights if the score is the best so far; called on all processes."""
        if progress.best and not score > progress.best["score"]:
            return
        weights = whole_weights(self.accelerator, model)
        progress.best = {"step": progress.step, "score": score}
        if self.accelerator.is_main_process:
            temporary = self.folder / f".{self.best_path(progress).name}"
            with self.writing(temporary):
                save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, temporary)
                temporary.rename(self.best_path(progress))

    def load_best(self, model, progress: Progress):
        """Put the best weights into the model."""
        weights = load_file(self.best_path(progress))
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
        logger.info("best weights: step %d, %.4f", progress.best["step"], progress.best["score"])

    def remove(self):
        """Remove everything of this class; what else is in the folder (a tracker's files) stays."""
        for path in [*self.folder.glob("step-*"), *self.folder.glob("best-*")]:
            delete(path)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()

    @contextmanager
    def writing(self, temporary: Path):
        """Remove what was half written, and say what is left."""
        try:
            yield
        except (OSError, RuntimeError, SafetensorError) as error:
            delete(temporary)
            kept = self.complete()
            last = f"the last complete one is {kept[-1]}" if kept else "there is no earlier one"
            raise OSError(
                f"checkpoint {temporary.with_name(temporary.name[1:])} could not be written ({error}); {last}. "
                "Make room if that was missing, then go on with resume=true"
            ) from error


def whole_weights(accelerator: Accelerator, model) -> dict[str, Tensor]:
    """All weights of a model, gathered if it is sharded and by their own names if it is compiled; called on all
    processes."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in accelerator.get_state_dict(model).items()}


def run_identity(config: dict, accelerator: Accelerator) -> dict:
    """What a run is, but for its data: settings that change what is computed, and how it is computed."""
    settings = {key: value for key, value in config.items() if key not in FREE}
    for section in ("data", "loss"):
        if section in settings:
            settings[section] = {key: value for key, value in settings[section].items() if key not in CACHES}
    how = {"processes": accelerator.num_processes, "precision": accelerator.mixed_precision,
           "distributed": accelerator.distributed_type.value}  # fmt: skip
    return json.loads(json.dumps({"config": settings, **how}))


def delete(path: Path):
    """Remove a file or a folder, if it is there."""
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Which values differ, by dotted name."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} there, {b!r} here")
    return found
