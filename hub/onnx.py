"""Export models to ONNX in float32, under the names that its runtimes know, and compare them with the originals."""

import copy
import importlib
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir
import onnxruntime
import torch
from onnx_ir.passes import common as passes
from onnxscript.optimizer import fold_constants
from torch import Tensor, nn
from transformers import PreTrainedModel

from . import onnx_operators

ONNX_FILE = "onnx/model.onnx"  # where optimum, sentence-transformers and transformers.js look for it
INPUTS = "input_ids", "attention_mask"
OUTPUTS = {  # of the classes without logits
    "M2BertModel": ("last_hidden_state", "sentence_embedding"),
    "M2BertForQuestionAnswering": ("start_logits", "end_logits"),
}
OPSET = 20
ANY = 2**62
MOST_BYTES = 2**31 - 2**20  # of one file, with some room for the graph: a message of protobuf ends at 2 GiB
TESTED_LENGTHS = 1, 17, 513
TOLERANCE = 1e-5
TRANSLATED = "short_conv_gate", "cached_long_conv", "block_diagonal_glu", "add_layer_norm"


class Outputs(nn.Module):
    """A model with the outputs that runtimes look for by name."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model
        kind = type(model).__name__
        self.names = OUTPUTS.get(kind, ("logits",))
        self.choices = [1] if kind == "M2BertForMultipleChoice" else []  # sizes between those of texts and tokens

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        """Map two (B, L) int64, of choices (B, C, L), to logits, or to hidden states (B, L, H) and unit vectors."""
        outputs = self.model(input_ids, attention_mask)
        if "sentence_embedding" in self.names:
            return outputs.last_hidden_state, nn.functional.normalize(outputs.pooler_output)
        return tuple(outputs[name] for name in self.names)


def write_onnx(model: PreTrainedModel, folder: Path) -> None:
    """Write a model's `ONNX_FILE` into a folder. Weights of more than 2 GB go to a second file beside it.

    Raises ValueError if onnxruntime's outputs differ from the model's by more than `TOLERANCE`.
    """
    wrapped = Outputs(copy.deepcopy(model).float()).eval()
    file = folder / ONNX_FILE
    file.parent.mkdir()
    with silence(), torch.no_grad():
        graph = build_graph(wrapped)
        size = sum(tensor.const_value.nbytes for tensor in graph.graph.initializers.values())
        onnx_ir.save(graph, file, external_data=f"{file.name}_data" if size > MOST_BYTES else None)
        compare(wrapped, file)


def build_graph(wrapped: Outputs) -> onnx_ir.Model:
    """Return the model as a graph, for any number of texts of up to max_position_embeddings tokens."""
    longest = wrapped.model.config.max_position_embeddings
    names = ["batch_size", *("num_choices" for _ in wrapped.choices)]
    dims = {place: torch.export.Dim(name) for place, name in enumerate(names)}
    dims[len(names)] = torch.export.Dim("sequence_length", max=longest)
    ids, mask = torch.ones(2, *(2 for _ in names), min(longest, 40), dtype=torch.int64)
    package = type(wrapped.model).__module__.rpartition(".")[0]
    operators = importlib.import_module(f"{package}.m2bert_ops_registry").operators
    table = {getattr(operators, name).default: getattr(onnx_operators, name) for name in TRANSLATED}
    table[torch.ops.aten.searchsorted.Tensor] = onnx_operators.searchsorted
    exported = torch.onnx.export(
        wrapped, (ids, mask), dynamic_shapes=(dims, dims), input_names=INPUTS, output_names=wrapped.names, dynamo=True,
        opset_version=OPSET, custom_translation_table=table, optimize=False, verbose=False,
    )  # fmt: skip
    # The exporter's own optimizer takes minutes for 12 layers. What the last pass clears names files on this machine.
    graph = passes.InlinePass()(exported.model).model
    fold_constants(graph, onnx_shape_inference=False, input_size_limit=ANY, output_size_limit=ANY)
    tidy = onnx_ir.passes.Sequential(
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(), passes.CommonSubexpressionEliminationPass(),
        passes.RemoveUnusedNodesPass(), passes.ClearMetadataAndDocStringPass(),
    )  # fmt: skip
    return tidy(graph).model


@contextmanager
def silence() -> Iterator[None]:
    """Keep warnings of the exporter and of the model, which do not concern the user, off the terminal."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(logging.NOTSET)


def compare(wrapped: Outputs, file: Path) -> None:
    """Raise ValueError if outputs for random texts, one of them padded, differ by more than `TOLERANCE`.

    Of outputs that exceed 1, the relative difference counts.
    """
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    config, generator = wrapped.model.config, torch.Generator().manual_seed(0)
    for length in sorted({min(length, config.max_position_embeddings) for length in TESTED_LENGTHS}):
        ids = torch.randint(config.vocab_size, (2, length), generator=generator)
        mask = (torch.arange(length) < torch.tensor([[length], [(length + 1) // 2]])).long()
        ids, mask = (x.view(2, *wrapped.choices, length) for x in (ids, mask))
        expected = wrapped(ids, mask)
        found = session.run(wrapped.names, dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True)))
        for name, one, other in zip(wrapped.names, expected, map(torch.from_numpy, found), strict=True):
            difference = float((one - other).abs().max() / one.abs().max().clamp(min=1))
            if not difference <= TOLERANCE:
                raise ValueError(
                    f"{ONNX_FILE} was not written: for {length} tokens onnxruntime's {name} differs from torch's by "
                    f"{difference:.1e}, more than {TOLERANCE}; report the model's config.json and the versions of "
                    "torch, onnxscript and onnxruntime"
                )
