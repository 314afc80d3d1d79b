"""Checkpoints of an unfinished run, each whole or not at all, in a folder next to the run's output.

    OUTPUT.run/step-00000100/   parameters, optimizer, random generators (accelerate's files), progress.json
    OUTPUT.run/best-00000080.safetensors   the best weights so far, where a run selects

A checkpoint is written under a name with a dot and renamed when it is complete and on the disk, so every `step-*`
folder is whole, whatever kills the run. Its progress.json holds the digests of all files that a resumed run reads.
A run resumes only with the same settings, data and number of processes.
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

FREE = {  # settings that a resumed run may change, as they change no result; of precision, what it became is compared
    "output_dir", "overwrite", "resume", "log_every", "tracker", "checkpoint_every", "checkpoint_keep", "precision",
    "token_cache", "teacher_cache",
}  # fmt: skip
PROGRESS = "progress.json"
OURS = re.compile(r"\.?(step-\d{8,}|best-\d{8,}\.safetensors)")  # with a dot: not complete, or half deleted
Number = int | float


class Progress(Schema):
    """Progress of a run. Goes through JSON, into every checkpoint."""

    model_config = ConfigDict(frozen=False)

    step: int = 0
    history: list[dict[str, Number]] = []  # the records of `Log.write`
    totals: dict[str, Number] = {}  # sums of the counts of all steps and processes
    losses: list[Number] = []  # since the last record
    norms: list[Number] = []  # since the last record, without the infinite ones that lower the scale of float16
    seconds: Number = 0.0  # of training so far, over all starts of the run
    best: dict[str, Number] | None = None  # {"step": .., "score": ..} of the best weights so far
    schedule: dict[str, Any] = {}  # of the learning rate; among accelerate's files it would be a pickle


class Saved(Schema):
    """Content of progress.json, besides its own sha256."""

    identity: dict[str, Any]  # `run_identity` and what identifies the data
    batches: list[dict[str, Any]]  # position of each process in the data
    generators: list[str]  # `generators_digest` of each process
    progress: Progress
    files: Manifest  # of the checkpoint's other files
    best: Manifest  # of the best weights, where there are some


class Checkpoints:
    """The checkpoints of the run of some settings, whose `data` go through JSON. Those that are there are resumed from
    if the settings say so; else they are removed."""

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

    def newest(self) -> tuple[Path, Saved] | None:
        """Return the newest checkpoint, checked to be whole and of this run; None without one or without `resume`.

        Removes what a killed run left half-written, and without `resume` everything.
        """
        for path in ours(self.folder):
            if not self.resume or path.name.startswith("."):
                delete(path)
        damaged: dict[Path, ValueError] = {}
        for newest in reversed(self.complete()):
            try:
                saved = read_saved(newest)
                check_manifest(newest, saved.files)
                check_manifest(self.folder, saved.best)
                break
            except ValueError as error:
                damaged[newest] = error
        else:
            newest = None
        if damaged:
            way_out = "no older checkpoint is whole: start anew with overwrite=true resume=false"
            if newest:
                names = " and ".join(map(str, reversed(damaged)))
                way_out = f"{newest} is whole: to resume from there, remove {names}"
            error = next(iter(damaged.values()))
            raise ValueError(f"{error}; {way_out}") from error
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
        """Write a checkpoint, on all processes. Raises OSError if it cannot be written; earlier ones are as they
        were."""
        final = self.folder / f"step-{progress.step:08d}"
        states = gather_lists([(batch_state, generators_digest())])

        def complete():
            for path in temporary.rglob("*"):
                sync(path)
            batches, generators = map(list, zip(*states, strict=True))
            saved = Saved(identity=self.identity, batches=batches, generators=generators, progress=progress,
                          files=manifest(temporary), best=self.best)  # fmt: skip
            write_sealed(temporary / PROGRESS, saved.model_dump())
            temporary.rename(final)
            sync(self.folder)
            self.prune()

        with self.writing(final) as temporary:
            self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            from_main(complete)

    def prune(self) -> None:
        """Remove checkpoints beyond the newest `keep`, and best weights that none of these refers to."""
        for path in self.complete()[: -self.keep]:
            delete(path)
        try:
            known = {name for path in self.complete() for name in read_saved(path).best}
        except ValueError as error:
            logger.warning("%s; best weights that only this checkpoint knows are kept", error)
            return
        for path in ours(self.folder):
            if path.name.startswith("best-") and path.name not in known:
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

        with self.writing(final) as temporary:
            self.best = from_main(write)

    def load_best(self, model, progress: Progress) -> None:
        """Put the best weights into the model."""
        from_main(lambda: check_manifest(self.folder, self.best))
        (name,) = self.best
        set_model_state_dict(model, load_file(self.folder / name), options=StateDictOptions(full_state_dict=True))
        logger.info("best weights: step %d, %.4f", progress.best["step"], progress.best["score"])

    @contextmanager
    def writing(self, final: Path):
        """Yield the temporary name of `final`. If the block fails, remove what was half-written, and raise OSError in
        place of the errors of a disk, however the libraries report them."""
        temporary = final.with_name(f".{final.name}")
        try:
            yield temporary
        except (OSError, RuntimeError, SafetensorError) as error:
            delete(temporary)
            kept = self.complete()
            last = f"the last complete one is {kept[-1]}" if kept else "there is no earlier one"
            raise OSError(
                f"checkpoint {final} could not be written ({error}); {last}. Make room if that was missing, then "
                "resume with resume=true"
            ) from error


def whole_weights(accelerator: Accelerator, model) -> dict[str, Tensor]:
    """Return all weights of a model, gathered if it is sharded and by their own names if it is compiled; called on all
    processes."""
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in accelerator.get_state_dict(model).items()}


def run_folder(settings) -> Path:
    """Return the folder of checkpoints, and of what trackers write, next to the output."""
    return Path(f"{Path(settings.output_dir)}.run")


def run_identity(settings, accelerator: Accelerator) -> dict:
    """Return what a resumed run must match, but for its data: settings that change results, processes, precision."""

    def without_free(settings: dict) -> dict:
        return {
            key: without_free(value) if isinstance(value, dict) else value
            for key, value in settings.items()
            if key not in FREE
        }

    how = {"processes": accelerator.num_processes, "precision": accelerator.mixed_precision,
           "distributed": accelerator.distributed_type.value}  # fmt: skip
    return json.loads(json.dumps({"config": without_free(settings.model_dump()), **how}))


def differences(old: dict, new: dict, prefix: str = "") -> list[str]:
    """Return the values that differ, by dotted name."""
    found = []
    for key in sorted(old.keys() | new.keys()):
        a, b = old.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            found += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            found.append(f"{prefix}{key}: {a!r} there, {b!r} here")
    return found


def ours(folder: Path) -> list[Path]:
    """Return the checkpoints and best weights in a folder; a tracker's files there are left out."""
    return [path for path in folder.glob("*") if OURS.fullmatch(path.name)]


def remove_all(folder: Path) -> None:
    """Remove the checkpoints and best weights in a folder."""
    for path in ours(folder):
        delete(path)


def read_saved(checkpoint: Path) -> Saved:
    """Return progress.json of a checkpoint."""
    path = checkpoint / PROGRESS
    return checked(Saved, read_sealed(path), str(path))


def generators_digest() -> str:
    """Return the sha256 of the states of the random generators of this process, on its CPU and its GPU."""
    kind, keys, *place = np.random.get_state()
    states = [random.getstate(), kind, keys.tolist(), place, torch.get_rng_state().tolist()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state().tolist())
    return hashlib.sha256(repr(states).encode()).hexdigest()


def delete(path: Path) -> None:
    """Remove a file or a folder. A folder first gets a name with a dot: half deleted, it is not taken for a
    checkpoint."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith("."):
        hidden = path.with_name(f".{path.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        path = path.rename(hidden)
    shutil.rmtree(path, ignore_errors=True)
