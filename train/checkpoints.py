"""Complete states of an unfinished run, each whole or not at all, in a folder beside the run's output.

    OUTPUT.run/step-00000100/   parameters, optimizer, random generators (accelerate's files), progress.json
    OUTPUT.run/best-00000080.safetensors   the best weights so far, where a run selects

A checkpoint is written under another name and renamed when it is complete and on the disk, so whatever kills the run,
every `step-*` folder is whole. Its progress.json holds the digests of all files that a resumed run reads (accelerate
itself goes on without a random state that it cannot read). A run goes on only as what it was: same configuration, data
and number of processes.
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
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from m2bert.files import sync
from m2bert.schema import Schema, checked

from .distributed import from_main, gather_lists
from .kept import Manifest, check_manifest, manifest, read_sealed, write_sealed
from .record import Progress

logger = logging.getLogger(__name__)

# Settings that a resumed run may change: none of them changes what is computed (precision counts as what it became).
FREE = ("output_dir", "overwrite", "resume", "log_every", "tracker", "checkpoint_every", "checkpoint_keep", "precision")
CACHES = ("token_cache", "teacher_cache")
PROGRESS = "progress.json"
STEP = re.compile(r"step-\d{8,}")
OURS = re.compile(r"\.?(step-\d{8,}|best-\d{8,}\.safetensors)")  # with a dot: not complete, or to be deleted


class Saved(Schema):
    """What progress.json of a checkpoint holds, beside its own sha256.

    Attributes:
        identity: what the run is.
        batches: where in the data each process is.
        generators: `generators_digest` of each process.
        progress: how far the run has come.
        files: digests of the checkpoint's other files. best: of the best weights, where there are some.
    """

    identity: dict[str, Any]
    batches: list[dict[str, Any]]
    generators: list[str]
    progress: Progress
    files: Manifest
    best: Manifest


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
        self.best: Manifest = {}

    def due(self, step: int) -> bool:
        return bool(self.every) and step % self.every == 0

    def complete(self) -> list[Path]:
        """Folders of complete checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if STEP.fullmatch(path.name))

    def load(self, batches) -> Progress | None:
        """Restore the newest checkpoint into everything prepared by the accelerator and into `batches`.

        Raises:
            ValueError: the checkpoint is damaged, or is of another configuration, of other data or of another number of
                processes. Raised on all processes.
        """
        found = from_main(self.newest)
        if found is None:
            return None
        newest, saved = found
        blind = [rank for rank, sees in enumerate(gather_lists([newest.is_dir()])) if not sees]
        if blind:
            raise ValueError(
                f"process {blind[0]} does not see {newest}, which the main process has; output_dir must lie where all "
                "machines see it"
            )
        self.accelerator.load_state(str(newest))
        rank = self.accelerator.process_index
        if not all(gather_lists([generators_digest() == saved.generators[rank]])):
            raise ValueError(
                f"the random generators of {newest} could not be restored here; go on where the run was begun, with "
                "the same devices and packages, or start anew with overwrite=true resume=false"
            )
        batches.restore(saved.batches[rank])
        self.best = saved.best
        logger.info("resumed after step %d from %s", saved.progress.step, newest)
        return saved.progress

    def newest(self) -> tuple[Path, Saved] | None:
        """The newest checkpoint, which is whole and of this run; None without one. Removes what a killed run left."""
        for leftover in ours(self.folder):
            if leftover.name.startswith("."):
                delete(leftover)
        if not self.resume or not self.complete():
            return None
        *older, newest = self.complete()
        try:
            saved = read_whole(newest)
        except ValueError as error:
            raise ValueError(f"{error}; {way_out(newest, older)}") from error
        changes = differences(saved.identity, self.identity)
        if changes:
            raise ValueError(
                f"{newest} belongs to another run ({'; '.join(changes)}); change that back, or start anew with "
                "overwrite=true resume=false"
            )
        return newest, saved

    def save(self, progress: Progress, batch_state: dict):
        """Write a checkpoint; called on all processes.

        Raises:
            OSError: it cannot be written. Earlier checkpoints are as they were.
        """
        name = f"step-{progress.step:08d}"
        temporary = self.folder / f".{name}"
        states = gather_lists([(batch_state, generators_digest())])
        with self.writing(temporary):
            self.accelerator.save_state(str(temporary))
            self.accelerator.wait_for_everyone()
            from_main(lambda: self.complete_it(temporary, progress, states))

    def complete_it(self, temporary: Path, progress: Progress, states: list[tuple[dict, str]]):
        """Write progress.json into a checkpoint whose other files are there, and give it its name."""
        for path in temporary.rglob("*"):
            sync(path)
        saved = Saved(
            identity=self.identity,
            batches=[batches for batches, _ in states],
            generators=[generators for _, generators in states],
            progress=progress,
            files=manifest(temporary),
            best=self.best,
        )
        write_sealed(temporary / PROGRESS, saved.model_dump())
        temporary.rename(self.folder / temporary.name[1:])
        sync(self.folder)
        self.prune()

    def prune(self):
        """Remove checkpoints beyond the newest `keep`, and best weights that none of these knows."""
        for path in self.complete()[: -self.keep]:
            delete(path)
        try:
            known = {name for path in self.complete() for name in read_saved(path).best} | self.best.keys()
        except ValueError as error:
            logger.warning("%s; best weights that only this checkpoint knows are kept", error)
            return
        for path in ours(self.folder):
            if path.name.startswith("best-") and path.name not in known:
                delete(path)

    def best_path(self, progress: Progress) -> Path:
        return self.folder / f"best-{progress.best['step']:08d}.safetensors"

    def keep_best(self, model, progress: Progress, score: float):
        """Keep the weights if the score is the best so far; called on all processes."""
        if progress.best and not score > progress.best["score"]:
            return
        weights = whole_weights(self.accelerator, model)
        progress.best = {"step": progress.step, "score": score}
        self.best = from_main(lambda: self.write_best(weights, self.best_path(progress)))

    def write_best(self, weights: dict[str, Tensor], path: Path) -> Manifest:
        """Write weights, whole or not at all; their digest."""
        temporary = path.with_name(f".{path.name}")
        with self.writing(temporary):
            save_file({name: tensor.contiguous().clone() for name, tensor in weights.items()}, temporary)
            sync(temporary)
            temporary.rename(path)
            sync(self.folder)
            return manifest(self.folder, [path])

    def load_best(self, model, progress: Progress):
        """Put the best weights into the model.

        Raises:
            ValueError: they are not as they were written.
        """
        from_main(lambda: check_manifest(self.folder, self.best))
        weights = load_file(self.best_path(progress))
        set_model_state_dict(model, weights, options=StateDictOptions(full_state_dict=True))
        logger.info("best weights: step %d, %.4f", progress.best["step"], progress.best["score"])

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


def ours(folder: Path) -> list[Path]:
    """What checkpoints wrote into a folder; what else is in it (a tracker's files) is not theirs."""
    return [path for path in folder.glob("*") if OURS.fullmatch(path.name)]


def remove_all(folder: Path):
    """Remove the checkpoints and best weights in a folder."""
    for path in ours(folder):
        delete(path)


def read_saved(checkpoint: Path) -> Saved:
    """progress.json of a checkpoint. Raises ValueError naming the file if it is not as it was written."""
    path = checkpoint / PROGRESS
    return checked(Saved, read_sealed(path), str(path))


def read_whole(checkpoint: Path) -> Saved:
    """progress.json of a checkpoint of which every file is as it was written, and the best weights too.

    Raises:
        ValueError: names the file that is not.
    """
    saved = read_saved(checkpoint)
    check_manifest(checkpoint, saved.files)
    check_manifest(checkpoint.parent, saved.best)
    return saved


def way_out(damaged: Path, older: list[Path]) -> str:
    """How to go on without a damaged checkpoint: from the newest of the older ones that is whole."""
    for path in reversed(older):
        try:
            read_whole(path)
        except ValueError:
            continue
        later = [str(each) for each in (*older[older.index(path) + 1 :], damaged)]
        return f"{path} is whole: to go on from there, remove {' and '.join(later)}"
    return "no older checkpoint is whole: start anew with overwrite=true resume=false"


def generators_digest() -> str:
    """sha256 of the states of the random generators of this process, on its CPU and its GPU."""
    kind, keys, *place = np.random.get_state()
    states = [random.getstate(), kind, keys.tolist(), place, torch.get_rng_state().tolist()]
    if torch.cuda.is_available():
        states.append(torch.cuda.get_rng_state().tolist())
    return hashlib.sha256(repr(states).encode()).hexdigest()


def delete(path: Path):
    """Remove a file or a folder. A folder gets a name with a dot first, so that what is left of it when the process is
    killed is known as such."""
    if not path.is_dir():
        path.unlink(missing_ok=True)
        return
    if not path.name.startswith("."):
        hidden = path.with_name(f".{path.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        path = path.rename(hidden)
    shutil.rmtree(path, ignore_errors=True)


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
