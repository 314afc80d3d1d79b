"""The arms of the comparison (our model in its forms, the original algorithm, attention encoders) and the gate: what is
timed must first be right.

An arm is written `name` or `name:dtype`. All of our arms of one dtype share one model, so that they share its filter
spectra; all of them, and the original, have the same weights.

Attention encoders have the shapes of published models and random weights; nothing is downloaded. Time and memory depend
on the shape alone. `granite-97m` is built from what is published about granite-embedding-97m-multilingual-r2
(ModernBERT, 12 layers, width 384, 180k tokens, SiLU, 32768 positions); its feed-forward width of 1536 and 12 heads are
inferred: with them the shape has 97M parameters.

The gate's reference is the original algorithm in float64. Errors are relative: of all hidden states together, and of
the worst token, which shows a single wrong tile that the whole would hide; in training also of gradients.
"""

import os
from collections.abc import Callable
from copy import deepcopy
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch
from harness import DTYPES, said, timed
from original import Original, taps
from torch import Tensor, nn
from transformers import AutoModel, BertConfig, MistralConfig, ModernBertConfig, PreTrainedConfig, Qwen3Config

from modeling_m2bert import M2BertConfig, M2BertModel

KERNELS = {"ours": "auto", "ours-torch": "torch", "ours-graph": "auto", "ours-compile": "torch"}
SCRATCH_MB = {"ours-scratch-48": 48, "ours-scratch-96": 96, "ours-scratch-all": 1 << 20}  # of the long convolution
KERNELS |= dict.fromkeys(SCRATCH_MB, "triton")
GPU_ONLY = {*KERNELS, "modernbert-base-flash", "mistral-7b"} - {"ours"}
VOCABULARY = 30_000  # ids that every arm knows
SEED = 0
LONG = {"max_position_embeddings": 32768}
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
MINILM = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536} | NO_DROPOUT
MODERNBERT = {"max_position_embeddings": 8192}
GRANITE = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536} | LONG
GRANITE |= {"vocab_size": 180_000, "hidden_activation": "silu"}
QWEN = {"hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16, "intermediate_size": 3072} | LONG
QWEN |= {"num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151_936, "use_cache": False}
MISTRAL = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "intermediate_size": 14336} | LONG
MISTRAL |= {"num_key_value_heads": 8, "sliding_window": None, "use_cache": False}
SHAPES: dict[str, tuple[type[PreTrainedConfig], dict]] = {
    "bert-base": (BertConfig, NO_DROPOUT),
    "minilm-l6": (BertConfig, MINILM),
    "minilm-l6-512": (BertConfig, MINILM),
    "modernbert-base": (ModernBertConfig, MODERNBERT),
    "modernbert-base-flash": (ModernBertConfig, MODERNBERT),
    "granite-97m": (ModernBertConfig, GRANITE),
    "qwen3-0.6b": (Qwen3Config, QWEN),
    "mistral-7b": (MistralConfig, MISTRAL),
}
CHUNKS = {"bert-base": 512, "minilm-l6": 256, "minilm-l6-512": 512}  # tokens that a shape takes at once; others: all
NAMES = [*KERNELS, "original", *SHAPES]


class Arm(NamedTuple):
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
        """True if its hidden states must equal the reference's."""
        return self.is_ours or self.name == "original"


def parse_arms(text: str, default_dtype: str, device: str, lengths: list[int]) -> list[Arm]:
    """Return arms from comma-separated `name[:dtype]`; raise ValueError for one that is unknown, given twice, or cannot
    run on `device` or on inputs of `lengths` tokens."""
    arms = []
    for part in text.split(","):
        name, _, dtype = part.strip().partition(":")
        arm = Arm(name, dtype or default_dtype)
        if name not in NAMES or arm.dtype not in DTYPES or arm in arms:
            raise ValueError(f"--arms: {arm} is given twice, or no name of {NAMES} with one of {[*DTYPES]}")
        if device == "cpu" and name in GPU_ONLY:
            raise ValueError(f"--arms: {arm} is for GPUs; drop it, or use ours or modernbert-base")
        chunk = CHUNKS.get(name, 1)
        if odd := [length for length in lengths if length > chunk and length % chunk]:
            raise ValueError(f"--arms: {arm} takes chunks of {chunk} tokens; --lengths={odd} are no multiples of it")
        arms.append(arm)
    return arms


def build_shape(name: str, dtype: torch.dtype, device: str, layers: int | None, longest: int) -> nn.Module:
    """Return an attention encoder with random weights for inputs of up to `longest` tokens."""
    config_class, settings = SHAPES[name]
    if layers is not None:
        settings = settings | {"num_hidden_layers": layers}
    if name not in CHUNKS:
        settings = settings | {"max_position_embeddings": max(longest, settings["max_position_embeddings"])}
    attention = "flash_attention_2" if name == "modernbert-base-flash" else "sdpa"
    with torch.device(device):
        return AutoModel.from_config(config_class(**settings), dtype=dtype, attn_implementation=attention).eval()


def base_model(longest: int, layers: int | None) -> M2BertModel:
    """Return the paper's 80M model in float32 for inputs of up to `longest` tokens, without pooling or dropout. Its
    weights are random, large enough for every gate and convolution to matter, and small enough not to amplify
    rounding."""
    torch.manual_seed(SEED)
    depth = {} if layers is None else {"num_hidden_layers": layers}
    config = M2BertConfig(max_position_embeddings=max(longest, 2048), hidden_dropout_prob=0.0, **depth)
    model = M2BertModel(config, add_pooling_layer=False).eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.in_proj.weight.mul_(1.5)
            for part in (layer.mixer.filter, layer.mixer.residual_filter):
                part.input_weight.mul_(30)  # filters that oscillate, as trained ones do
                part.output_weight.mul_(0.6 / gain(part)[:, :, None])
    return model


def gain(part: nn.Module) -> Tensor:
    """Return the largest magnitude of the spectra (2, H) of both directions: by how much a filter can amplify a signal,
    and its rounding, whatever the length. Estimated from at most 2048 taps."""
    step = -(-len(part.time) // 2048)
    return torch.stack([torch.fft.rfft(way).abs().amax(1) for way in taps(part, slice(None, None, step))]) * step


class Runner:
    """An arm with its model, which maps (B, L) ids to hidden states or to a transformers output that holds them.
    `prepare` is called with the ids before anything of their length is timed, and returns what replaces the model."""

    def __init__(self, arm: Arm, model: nn.Module, prepare: Callable[[nn.Module, Tensor], Callable] | None = None):
        self.arm, self.model, self.function = arm, model, model
        self.kernels = KERNELS.get(arm.name, "auto")
        self.chunk = CHUNKS.get(arm.name)
        self.rebuilds_cache = False  # True if other arms may have evicted this one's spectra from the filter cache
        self.takes_any_shape = prepare is None
        self._prepare = prepare
        self.layers = model.config.num_hidden_layers
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        tensors = [*model.parameters(), *model.buffers()]
        self.weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def prepare(self, ids: Tensor) -> None:
        """Compile or capture for inputs of this shape, where the arm does so."""
        if self._prepare is not None:
            self._choose_kernels()
            self.function = self._prepare(self.model, ids)

    def _choose_kernels(self) -> None:
        os.environ["M2BERT_KERNELS"] = self.kernels
        if self.arm.name in SCRATCH_MB or scratch_bytes.cache_info().currsize:
            stages, default = scratch_bytes()
            stages.SCRATCH_BYTES = SCRATCH_MB[self.arm.name] << 20 if self.arm.name in SCRATCH_MB else default

    def forward(self, ids: Tensor, **inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Map ids (B, L) to hidden states (B, L, H) and their mean over tokens (B, H); chunked arms return
        (B * chunks, chunk, H) and (B * chunks, H)."""
        self._choose_kernels()
        if self.chunk is not None and ids.shape[1] > self.chunk:
            ids = ids.reshape(-1, self.chunk)
        output = self.function(ids, **inputs)
        hidden = output if isinstance(output, Tensor) else output.last_hidden_state
        return hidden, hidden.mean(dim=1)

    def call(self, ids: Tensor, training: bool) -> tuple[Tensor, Tensor]:
        """Run the forward; in training also backward of a scalar made of the mean over tokens, whose gradients stay in
        the parameters."""
        with torch.set_grad_enabled(training):
            hidden, pooled = self.forward(ids)
            if training:
                direction = torch.ones(pooled.shape[-1], device=pooled.device)
                direction[::2] = -1  # a plain sum would vanish: LayerNorm makes it constant
                (pooled.float() @ direction).sum().mul(ids.shape[1]).backward()  # per token, far from underflow
        return hidden.detach(), pooled.detach()

    def gradients(self) -> list[Tensor]:
        """Return gradients that every operation contributes to: token embedding, and output layers of a filter."""
        return [self.model.embeddings.word_embeddings.weight.grad, self.model.layers[0].mixer.filter.output_weight.grad]


@cache
def scratch_bytes() -> tuple[ModuleType, int]:
    """Return the module whose SCRATCH_BYTES is the size of the long convolution's scratch, and its default."""
    stages = import_module("modeling_m2bert.m2bert_ops_triton_stages")
    return stages, stages.SCRATCH_BYTES


def build(arms: list[Arm], device: str, longest: int, layers: int | None) -> tuple[list[Runner], M2BertModel | None]:
    """Return runners of the arms in their order, and the float32 model on the CPU whose weights ours and the original
    share (None if there is none of them)."""
    base = base_model(longest, layers) if any(arm.is_compared for arm in arms) else None
    ours: dict[str, nn.Module] = {}
    runners = []
    for arm in arms:
        dtype = DTYPES[arm.dtype]
        if arm.is_ours:
            if arm.dtype not in ours:
                ours[arm.dtype] = deepcopy(base).to(device=device, dtype=dtype)
            prepare = {"ours-graph": capture, "ours-compile": compiled}.get(arm.name)
            runners.append(Runner(arm, ours[arm.dtype], prepare))
        elif arm.name == "original":
            runners.append(Runner(arm, Original(base).to(device=device, dtype=dtype)))
        else:
            runners.append(Runner(arm, build_shape(arm.name, dtype, device, layers, longest)))
    return runners, base


def token_ids(batch: int, length: int, device: str) -> Tensor:
    """Return (batch, length) random ids, the same in every run."""
    generator = torch.Generator().manual_seed(SEED)
    return torch.randint(1, VOCABULARY, (batch, length), generator=generator).to(device)


def compiled(model: nn.Module, ids: Tensor) -> Callable:
    torch._dynamo.reset()  # every length gets a graph of its own
    return torch.compile(model, dynamic=False)


def capture(model: nn.Module, ids: Tensor) -> Callable:
    """Capture the forward as a CUDA graph for inputs of the shape of `ids`; the next call overwrites its output."""
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


# Bounds on the worst token and on gradients: several times what a correct arm of that dtype shows.
BOUNDS = {"float32": 1e-4, "float16": 1e-2, "bfloat16": 5e-2}
NOT_COMPARED = dict.fromkeys(("error", "worst_error", "gradient_error"))


class Gate:
    """Compares arms with the reference, which has the weights of `base`, as all compared arms have."""

    def __init__(self, base, device: str, training: bool):
        model = Original(base).double().to(device)
        model.checkpointing = training  # float64 activations of all layers would not fit
        self.reference = Runner(Arm("original", "float64"), model)
        self.device, self.training = device, training

    def check(self, runners: list[Runner], ids: Tensor) -> dict[Arm, dict]:
        """Return what is seen of each arm on ids (B, L): `error` of all hidden states, `worst_error` of a token,
        `gradient_error` in training, `first_seconds`, the wall time of the first call, and `red`: what is wrong (an
        error above the bound of the arm's dtype, or a call that fails), or None. Arms that the device has no memory for
        are left out."""
        hidden, gradients = self._call(self.reference, ids)[1:]
        verdicts = {}
        for runner in runners:
            try:
                seconds, values, found = self._call(runner, ids)
            except torch.OutOfMemoryError:
                continue
            except Exception as error:
                verdicts[runner.arm] = NOT_COMPARED | {"first_seconds": None, "red": said(error)}
                continue
            finally:
                runner.model.zero_grad()
                runner.function = runner.model  # without what was captured for these ids
            errors = NOT_COMPARED | {
                "error": relative_error(values, hidden),
                "worst_error": relative_error(values, hidden, dim=-1),
            }
            if self.training:
                errors["gradient_error"] = max(map(relative_error, found, gradients))
            bound = BOUNDS[runner.arm.dtype]
            above = [
                f"{name} {value:.2e}" for name, value in errors.items() if value is not None and not value <= bound
            ]
            red = f"{', '.join(above)} above {bound:.0e}" if above else None
            verdicts[runner.arm] = errors | {"first_seconds": seconds, "red": red}
        return verdicts

    def _call(self, runner: Runner, ids: Tensor) -> tuple[float, Tensor, list[Tensor]]:
        """Return wall seconds of one call, hidden states, and gradients in training."""
        call = lambda: runner.prepare(ids) or runner.call(ids, self.training)  # noqa: E731
        seconds, (hidden, _) = timed(call, self.device, "perf_counter")
        gradients = runner.gradients() if self.training else []
        runner.model.zero_grad()
        return seconds, hidden, gradients


def relative_error(values: Tensor, reference: Tensor, dim: int | None = None) -> float:
    """Return the norm of the difference over the norm of the reference, with `dim` the largest over vectors along that
    dimension. It is a huge number where a value is not finite: NaN would be lost in a maximum."""
    difference = values.to(reference.dtype) - reference
    return (difference.norm(dim=dim) / reference.norm(dim=dim)).max().nan_to_num(torch.inf).item()
