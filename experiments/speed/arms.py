"""The arms of the comparison: our model in its forms, the original algorithm, and attention encoders.

An arm is written `name` or `name:dtype`. All of our arms of one dtype share one model, so that they share its filter
spectra; all of them, and the original, have the same weights.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

import shapes
import torch
from command import DTYPES, BadArgument
from original import Filter, Original
from torch import Tensor, nn

from modeling_m2bert import M2BertConfig, M2BertModel

KERNELS = {"ours": "auto", "ours-torch": "torch", "ours-graph": "auto", "ours-compile": "torch"}
GPU_ONLY = {
    "ours-torch": "is the same as ours on a CPU; use ours",
    "ours-graph": "captures a CUDA graph and needs a GPU; use ours",
    "ours-compile": "is measured on a GPU only; use ours",
}
NAMES = [*KERNELS, "original", *shapes.SHAPES]
VOCABULARY = 30_000  # ids that every arm knows
SEED = 0


@dataclass(frozen=True)
class Arm:
    """One column of the comparison."""

    name: str
    dtype: str

    def __str__(self):
        return f"{self.name}:{self.dtype}"

    @property
    def is_ours(self) -> bool:
        return self.name in KERNELS

    @property
    def is_compared(self) -> bool:
        """Whether its hidden states must equal the reference's."""
        return self.is_ours or self.name == "original"

    @property
    def is_quadratic(self) -> bool:
        """Whether it attends over whole inputs."""
        return self.name in shapes.SHAPES and shapes.SHAPES[self.name].chunk is None


def parse_arms(text: str, default_dtype: str, device: str, lengths: list[int], mode: str = "forward") -> list[Arm]:
    """Arms from comma-separated `name[:dtype]`.

    Raises:
        BadArgument: an unknown name or dtype, an arm twice, or one that cannot run on `device`, on inputs of `lengths`
            tokens or in `mode`.
    """
    arms = []
    for part in text.split(","):
        name, _, dtype = part.strip().partition(":")
        arm = Arm(name, dtype or default_dtype)
        if name not in NAMES:
            raise BadArgument(f"--arms: arm {name!r} is unknown; choose from {', '.join(NAMES)}")
        if arm.dtype not in DTYPES:
            raise BadArgument(f"--arms: dtype {arm.dtype!r} of {name} is unknown; choose from {', '.join(DTYPES)}")
        if arm in arms:
            raise BadArgument(f"--arms: {arm} is given twice; drop one")
        problem = GPU_ONLY.get(name) if device == "cpu" else None
        if name in shapes.SHAPES:
            problem = shapes.why_not(name, arm.dtype, device, lengths)
        if name == "ours-graph" and mode == "training":
            problem = "captures forwards only; use ours"
        if problem:
            raise BadArgument(f"--arms: {arm} {problem}")
        arms.append(arm)
    return arms


def base_model(longest: int, layers: int | None) -> M2BertModel:
    """The paper's 80M model in float32 for inputs of up to `longest` tokens, without pooling or dropout. Its weights
    are random, large enough for every gate and convolution to matter, and tame enough not to amplify rounding."""
    torch.manual_seed(SEED)
    depth = {} if layers is None else {"num_hidden_layers": layers}
    config = M2BertConfig(max_position_embeddings=max(longest, 2048), hidden_dropout_prob=0.0, **depth)
    model = M2BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.in_proj.weight.mul_(1.5)
            for part in (layer.mixer.filter, layer.mixer.residual_filter):
                part.input_weight.mul_(30)  # filters that oscillate, as trained ones do
                part.output_weight.mul_(0.6 / _gain(part)[:, :, None])
    return model


def _gain(part: nn.Module) -> Tensor:
    """Largest magnitude of the spectra (2, H) of both directions: by how much a filter can amplify a signal, and its
    rounding, whatever the length. Estimated from at most 2048 taps."""
    filters = Filter(part)
    step = -(-len(filters.time) // 2048)
    filters.features, filters.time = nn.Parameter(filters.features[::step]), filters.time[::step]
    return torch.stack([torch.fft.rfft(taps).abs().amax(1) for taps in filters(len(filters.time))]) * step


class Runner:
    """An arm with its model, ready to run.

    Args:
        arm: which one.
        model: maps (B, L) ids to hidden states, or to a transformers output that holds them.
        prepare: called with the ids before anything of their length is timed; may return what replaces the model.
    """

    def __init__(self, arm: Arm, model: nn.Module, prepare: Callable[[nn.Module, Tensor], Callable] | None = None):
        self.arm = arm
        self.model = model
        self.call = model
        self.kernels = KERNELS.get(arm.name)
        self.rebuilds_cache = False  # whether other arms may have driven this one's spectra out of the filter cache
        self._prepare = prepare
        self.chunk = shapes.SHAPES[arm.name].chunk if arm.name in shapes.SHAPES else None
        self.weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(model))
        self.layers = len(model.layers) if isinstance(model, Original) else model.config.num_hidden_layers
        self.parameters = sum(parameter.numel() for parameter in model.parameters())

    @property
    def takes_any_shape(self) -> bool:
        """Whether it runs without being prepared for a shape."""
        return self._prepare is None

    def prepare(self, ids: Tensor) -> None:
        """Compile or capture for inputs of this shape, where the arm does so."""
        if self._prepare is not None:
            self._choose_kernels()
            self.call = self._prepare(self.model, ids)

    def release(self) -> None:
        """Free what prepare made."""
        self.call = self.model

    def forward(self, ids: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Ids (B, L), and other inputs of the model, to hidden states (B, L, H) and their mean over tokens (B, H);
        chunked arms give (B * chunks, chunk, H) and (B * chunks, H)."""
        self._choose_kernels()
        if self.chunk is not None and ids.shape[1] > self.chunk:
            ids = ids.reshape(-1, self.chunk)
        output = self.call(ids, **inputs)
        hidden = output if isinstance(output, Tensor) else output.last_hidden_state
        return hidden, hidden.mean(dim=1)

    def step(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Forward and backward of a scalar made of the mean over tokens; gradients stay in the parameters."""
        hidden, pooled = self.forward(ids)
        direction = torch.ones(pooled.shape[-1], device=pooled.device)
        direction[::2] = -1  # a plain sum would vanish: LayerNorm makes it constant
        (pooled.float() @ direction).sum().mul(ids.shape[1]).backward()  # per token, far from underflow
        return hidden.detach(), pooled.detach()

    def clear_gradients(self) -> None:
        self.model.zero_grad(set_to_none=True)

    def gradients(self) -> list[Tensor]:
        """Gradients that every operation takes part in: token embedding, and both output layers of the first filter."""
        if isinstance(self.model, Original):
            networks = self.model.layers[0].mixer.filter.networks
            filters = torch.stack([network[-1].weight.grad for network in networks])
            return [self.model.word_embeddings.weight.grad, filters]
        return [self.model.embeddings.word_embeddings.weight.grad, self.model.layers[0].mixer.filter.output_weight.grad]

    def _choose_kernels(self) -> None:
        if self.kernels is not None:
            os.environ["M2BERT_KERNELS"] = self.kernels


def build(arms: list[Arm], device: str, longest: int, layers: int | None) -> tuple[list[Runner], M2BertModel | None]:
    """Runners of the arms in their order, and the float32 model on the CPU whose weights ours and the original share
    (None where none of them is asked for)."""
    base = None
    if any(arm.is_compared for arm in arms):
        base = base_model(longest, layers)
    ours: dict[str, nn.Module] = {}
    runners = []
    for arm in arms:
        dtype = DTYPES[arm.dtype]
        if arm.is_ours:
            if arm.dtype not in ours:
                ours[arm.dtype] = copy_of(base).to(device=device, dtype=dtype)
            prepare = {"ours-graph": _capture, "ours-compile": _compile}.get(arm.name)
            runners.append(Runner(arm, ours[arm.dtype], prepare))
        elif arm.name == "original":
            runners.append(Runner(arm, Original(base).cast(dtype).to(device)))
        else:
            runners.append(Runner(arm, shapes.SHAPES[arm.name].build(dtype, device, layers, longest)))
    return runners, base


def copy_of(model: M2BertModel) -> M2BertModel:
    copy = M2BertModel(model.config, add_pooling_layer=False).eval()
    copy.load_state_dict(model.state_dict())
    return copy


def token_ids(batch: int, length: int, device: str) -> Tensor:
    """(batch, length) random ids, the same in every run."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator).to(device)


def _tensors(model: nn.Module):
    yield from model.parameters()
    yield from model.buffers()


def _compile(model: nn.Module, ids: Tensor) -> Callable:
    torch._dynamo.reset()  # every length gets a graph of its own
    return torch.compile(model, dynamic=False)


def _capture(model: nn.Module, ids: Tensor) -> Callable:
    """The forward as a CUDA graph for inputs of the shape of `ids`; its output is overwritten by the next call."""
    held = ids.clone()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream), torch.no_grad():
        for _ in range(3):  # kernels compiled and filter spectra cached before the capture
            model(held)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph), torch.no_grad():
        output = model(held).last_hidden_state

    def replay(new_ids: Tensor) -> Tensor:
        held.copy_(new_ids)
        graph.replay()
        return output

    return replay
