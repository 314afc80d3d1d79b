"""Checkpoints of an unfinished run. They lie in a folder next to the run's output.

    OUTPUT.run/step-00000100/   parameters, optimizer, random generators (accelerate's files), progress.json
    OUTPUT.run/best-00000080.safetensors   the best weights so far, if the run selects by a metric

A checkpoint is written under a name with a leading dot. It is renamed when it is complete and on the disk. So every
`step-*` folder is complete, whatever kills the run. Its progress.json holds the digests of all files that a resumed run
reads. A run resumes only with the same settings, data and number of processes.
"""

import hashlib
import json
import logging
import random
import re
import shutil
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import ConfigDict
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from m2bert.files import sync
from m2bert.schema import Schema, checked

from .distributed import from_main, gather_lists
from .verified_files import Manifest, check_manifest, manifest, read_sealed, write_sealed

logger = logging.getLogger(__name__)

# Settings that a resumed run may change, since they change no result. `precision` is among them because `run_identity`
# holds the precision that it leads to.
MAY_CHANGE = {
    "output_dir", "overwrite", "resume", "log_every", "tracker", "checkpoint_every", "checkpoint_keep", "precision",
    "token_cache", "teacher_cache",
}  # fmt: skip
PROGRESS = "progress.json"
# Names of checkpoints and best weights. With a leading dot they are not complete, or half deleted.
SAVED_NAME = re.compile(r"\.?(step-\d{8,}|best-\d{8,}\.safetensors)")
Number = int | float


class Progress(Schema):
    """Progress of a run. Every checkpoint holds it as JSON."""

    model_config = ConfigDict(frozen=False)

    step: int = 0
    history: list[dict[str, Number]] = []  # the records of `Log.write`
    totals: dict[str, Number] = {}  # sums of the counts of all steps and processes
    losses: list[Number] = []  # since the last record
    norms: list[Number] = []  # since the last record; without infinite ones, which lower the loss scale of float16
    seconds: Number = 0.0  # of training so far, over all starts of the run
    best: dict[str, Number] | None = None  # {"step": .., "score": ..} of the best weights so far
    schedule: dict[str, Any] = {}  # state of the learning rate's schedule; accelerate would save it as a pickle


class SavedState(Schema):
    """Content of progress.json, besides its own sha256."""

    identity: dict[str, Any]  # `run_identity` and what identifies the data
    batches: list[dict[str, Any]]  # for each process, its position in the data
    generators: list[str]  # for each process, its `generators_digest`
    progress: Progress
    files: Manifest  # of the checkpoint's other files
    best: Manifest  # of the file of the best weights; empty if the run has none


class Checkpoints:
    """Write, read and remove the checkpoints of one run.

    With `settings.resume` the run continues from the newest checkpoint. Without it, `load` removes what is there.

    Args:
        settings: of the run.
        data: what identifies the data of the run; it must fit into JSON.
    """

    def __init__(self, accelerator: Accelerator, settings, data: dict):
        self.accelerator, self.folder = accelerator, run_folder(settings)
        self.every, self.keep, self.resume = settings.checkpoint_every, settings.checkpoint_keep, settings.resume
        self.identity = run_identity(settings, accelerator) | {"data": json.loads(json.dumps(data))}
        self.best: Manifest = {}

    def complete(self) -> list[Path]:
        """Return the folders of complete checkpoints, oldest first."""
        return sorted(self.folder.glob("step-[0-9]*"))

    def load(self, batches) -> Progress | None:
        """Restore the newest checkpoint into everything prepared by the accelerator and into `batches`. Errors are
        raised on all processes."""
        found = from_main(self.newest)
        if found is None:
            return None
        newest, saved = found
        self.accelerator.load_state(str(newest))
        rank = self.accelerator.process_index
        if not all(gather_lists([generators_digest() == saved.generators[rank]])):  # accelerate skips a bad state
            raise ValueError(
                f"the random generators of {newest} could not be restored here; resume with the devices and packages "
                "that the run began with, or start anew with overwrite=true resume=false"
            )
        batches.restore(saved.batches[rank])
        self.best = saved.best
        logger.info("resumed after step %d from %s", saved.progress.step, newest)
        return saved.progress

    def newest(self) -> tuple[Path, SavedState] | None:
        """Return the newest checkpoint and its state; None if there is none, or without `resume`.

        Remove what a killed run left half-written, and without `resume` everything.

        Raises:
            ValueError: the newest checkpoint is damaged or belongs to another run.
        """
        for path in saved_paths(self.folder):
            if not self.resume or path.name.startswith("."):
                delete(path)
        damaged: dict[Path, ValueError] = {}
        newest = None
        for checkpoint in reversed(self.complete()):
            try:
                saved = read_saved(checkpoint)
                check_manifest(checkpoint, saved.files)
                check_manifest(self.folder, saved.best)
            except ValueError as error:
                damaged[checkpoint] = error
            else:
                newest = checkpoint
                break
        if damaged:
            advice = "no older checkpoint is whole: start anew with overwrite=true resume=false"
            if newest:
                names = " and ".join(map(str, reversed(damaged)))
                advice = f"{newest} is whole: to resume from there, remove {names}"
            error = next(iter(damaged.values()))
            raise ValueError(f"{error}; {advice}") from error
        if newest is None:
            return None
        changes = differences(saved.identity, self.identity)
        if changes:
            raise ValueError(
                f"{newest} belongs to another run ({'; '.join(changes)}); change that back, or start anew with "
                "overwrite=true resume=false"
            )
        return newest, saved

    def save(self, progress: Progress, batch_state: dict) -> None:
        """Write a checkpoint; called on all processes. Raise OSError if it cannot be written; earlier ones stay."""
        final = self.folder / f"step-{progress.step:08d}"
        states = gather_lists([(batch_state, generators_digest())])

        def seal():
            for path in temporary.rglob("*"):
                sync(path)
            batches, generators = map(list, zip(*states, strict=True))
            saved = SavedState(identity=self.identity, batches=batches, generators=generators, progress=progress,
                               files=manifest(temporary), best=self.best)  # fmt: skip
            write_sealed(temporary / PROGRESS, saved.model_dump())
            temporary.rename(final)
            sync(self.folder)
            self.prune()

        with self.temporary_name(final) as temporary:
            self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            from_main(seal)

    def prune(self) -> None:
        """Keep the newest `keep` checkpoints and the best weights that these refer to; remove the others."""
        for path in self.complete()[: -self.keep]:
            delete(path)
        try:
            needed = {name for path in self.complete() for name in read_saved(path).best}
        except ValueError as error:
            logger.warning("%s; so no best weights are removed, as this checkpoint may need them", error)
            return
        for path in saved_paths(self.folder):
            if path.name.startswith("best-") and path.name not in needed:
                delete(path)

    def keep_best(self, model, progress: Progress, score: float) -> None:
        """Keep the weights if the score is the best so far; called on all processes."""
        if progress.best and not score > progress.best["score"]:
            return
        weights = whole_weights(self.accelerator, model)
        progress.best = {"step": progress.step, "score": score}
        final = self.folder / f"best-{progress.step:08d}.safetensors"

        def write() -> Manifest:
            save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, temporary)
            sync(temporary)
            temporary.rename(final)
            sync(self.folder)
            return manifest(self.folder, [final])

        with self.temporary_name(final) as temporary:
            self.best = from_main(write)

    def load_best(self, model, progress: Progress) -> None:
        """Put the best weights into the model."""
        from_main(lambda: check_manifest(self.folder, self.best))
        (name,) = self.best
        set_model_state_dict(model, load_file(self.folder / name), options=StateDictOptions(full_state_dict=True))
        logger.info("best weights: step %d, %.4f", progress.best["step"], progress.best["score"])

    @contextmanager
    def temporary_name(self, final: Path):
        """Yield the name under which the block writes `final`. If writing fails, remove what was written.

        The libraries report errors of a disk in several ways; all of them become an OSError.
        """
        temporary = final.with_name(f".{final.name}")
        try:
            yield temporary
        except (OSError, RuntimeError, SafetensorError) as error:
            delete(temporary)
            earlier = self.complete()
            last = f"the last complete one is {earlier[-1]}" if earlier else "there is no earlier one"
            raise OSError(
                f"checkpoint {final} could not be written ({error}); {last}. Make room if that was missing, then "
                "resume with resume=true"
            ) from error


def whole_weights(accelerator: Accelerator, model) -> dict[str, Tensor]:
    """Return all weights of a model; called on all processes. A sharded model is gathered. Weights of a compiled model
    get back the names of the model itself."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in accelerator.get_state_dict(model).items()}


def run_folder(settings) -> Path:
    """Return the folder of the checkpoints and of a tracker's files. It lies next to the output."""
    return Path(f"{Path(settings.output_dir)}.run")


def run_identity(settings, accelerator: Accelerator) -> dict:
    """Return what a resumed run must have in common with its start, besides the data.

    That is the settings that change results, the number and kind of processes, and the precision.
    """

    def fixed(settings: dict) -> dict:
        return {
            key: fixed(value) if isinstance(value, dict) else value
            for key, value in settings.items()
            if key not in MAY_CHANGE
        }

    devices = {"processes": accelerator.num_processes, "precision": accelerator.mixed_precision,
               "distributed": accelerator.distributed_type.value}  # fmt: skip
    return json.loads(json.dumps({"config": fixed(settings.model_dump()), **devices}))


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Describe the values that differ: "dotted.name: old there, new here"."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        was, now = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(now, dict):
            found += differences(was, now, f"{prefix}{key}.")
        elif was != now:
            found.append(f"{prefix}{key}: {was!r} there, {now!r} here")
    return found


def saved_paths(folder: Path) -> list[Path]:
    """Return the checkpoints and best weights in a folder, complete or not, but no tracker's files."""
    return [path for path in folder.glob("*") if SAVED_NAME.fullmatch(path.name)]


def remove_all(folder: Path) -> None:
    """Remove the checkpoints and best weights in a folder."""
    for path in saved_paths(folder):
        delete(path)


def read_saved(checkpoint: Path) -> SavedState:
    """Return the content of a checkpoint's progress.json."""
    path = checkpoint / PROGRESS
    return checked(SavedState, read_sealed(path), str(path))


def generators_digest() -> str:
    """Return the sha256 of the states of this process's random generators: Python's, numpy's and torch's (CPU, GPU)."""
    kind, keys, *position = np.random.get_state()
    states = [random.getstate(), kind, keys.tolist(), position, torch.get_rng_state().tolist()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state().tolist())
    return hashlib.sha256(repr(states).encode()).hexdigest()


def delete(path: Path) -> None:
    """Remove a file or a folder. A folder first gets a leading dot, so that a half-deleted one is no checkpoint."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith("."):
        hidden = path.with_name(f".{path.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        path = path.rename(hidden)
    shutil.rmtree(path, ignore_errors=True)
