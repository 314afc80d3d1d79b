"""The load matrix in the present environment: every way of loading a folder gives the same vectors, failures show."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from m2bert.hub.folder import write_folder
from modeling_m2bert import (
    M2BertForMaskedLM,
    M2BertForSequenceClassification,
    M2BertForTokenClassification,
    M2BertModel,
)

SCRIPT = Path(__file__).parents[2] / "experiments" / "speed" / "load_matrix.py"
pytestmark = pytest.mark.slow  # each way starts a process
ROUNDING = 2e-5  # of float32 in another order of operations; hidden states are of the size of 1


def matrix(*arguments, code=0) -> dict[tuple[str, str], str]:
    """{(class and padding, way): outcome} of the script's rows."""
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == code, done.stdout + done.stderr
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in done.stdout.splitlines()[2:]]
    return {(what, way): outcome for what, way, _, outcome in cells}


def numbers(outcome: str) -> list[float]:
    return [float(each) for each in re.findall(r"\b\d+(?:\.\d+)?(?:e[+-]\d+)?\b", outcome)]


@pytest.fixture
def folder(tiny_config, randomized, tokenizer, tmp_path):
    def make(cls, **options):
        model = randomized(cls(tiny_config(num_labels=3, **options)))
        return write_folder(model, tokenizer, tmp_path / f"{cls.__name__}-{model.config.padding}")

    return make


def test_a_folder_that_does_not_load_is_a_row_and_an_exit_code(folder):
    broken = folder(M2BertModel)
    (broken / "m2bert_layers.py").write_text("raise RuntimeError('broken')\n")
    assert matrix(broken, code=1) == {("M2BertModel, masked", "AutoModel"): "failed: RuntimeError: broken"}


@pytest.mark.parametrize(
    ("cls", "options"),
    [
        (M2BertModel, {"pooling": "weighted_mean", "num_pooling_heads": 2}),
        (M2BertForMaskedLM, {"padding": "visible", "pooling": "cls_tanh"}),
        (M2BertForSequenceClassification, {}),
        (M2BertForTokenClassification, {}),
    ],
)
def test_every_way_gives_the_vectors_of_auto_model(folder, cls, options):
    found = {way: outcome for (_, way), outcome in matrix(folder(cls, **options)).items()}
    assert len(found) == 16 + (cls is not M2BertModel)  # the others have a pipeline
    adapted, rounded = found.pop("peft: LoRA"), found.pop("bfloat16")
    if not adapted.startswith("absent"):
        added, moved, loaded, merged = numbers(adapted)
        assert max(added, loaded, merged) <= ROUNDING
        assert moved > 0.1
    assert 0.99 < float(rounded.removeprefix("cosine ")) < 1
    for way, outcome in found.items():
        assert outcome.startswith("absent") or numbers(outcome)[0] <= ROUNDING, way
    same_operations = ("AutoModel, without this package", "the saved class", "without triton", 'dtype="auto"')
    assert {found[way] for way in same_operations} == {"0"}


def test_a_difference_and_a_repository_on_the_hub_are_seen(folder, tmp_path, monkeypatch):
    """The Hub's copy, here in a cache, is another model."""
    here, other = folder(M2BertModel), folder(M2BertModel, padding="visible")
    commit = 40 * "a"
    repository = tmp_path / "hf" / "hub" / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    other.rename(repository / "snapshots" / commit)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = matrix(here, "--ways", "from the Hub", "--hub-id", f"org/name@{commit}")
    assert list(found) == [("M2BertModel, masked", "from the Hub")]
    assert numbers(found["M2BertModel, masked", "from the Hub"])[0] > 1e-3
