"""Implicit filters as functions of their parameters, and the cache of prepared filters for inference.

A filter depends only on the weights, and its first taps are the same at every length. For a convolution it is prepared
for a transform length, the length that rows are padded to. So an encoder prepares each filter once per transform length
and keeps it. Without this, generating the filters takes about a third of a layer's time at 32k tokens.

The cache belongs to the process and holds at most `M2BERT_FILTER_CACHE_BYTES` (3 GB unless set; 0: nothing). If room is
short, it drops the transform length that it took first, for all layers. On a CPU, a length for which the limit has no
room takes what is free, for the first layers of the model. It drops nothing, because a model reads its layers in order:
a cache that drops the first layers to make room for the last ones never holds the one that is needed.

A CUDA graph reads what it found in the cache when it was captured, at every replay. So the cache holds that until the
model goes, even where the parameters have changed since and the graph should be captured again.
"""

import functools
import itertools
import os
import threading
import weakref
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.checkpoint import checkpoint

from .m2bert_ops_product import product

DEFAULT_LIMIT_BYTES = 3_000_000_000
POSITIONS_PER_CHUNK = 4096  # of generate_taps
KEPT_POSITIONS = 4096  # of a filter whose sine arguments are kept for backward on a CPU (3 MB for 1024 positions)


class FilterParameters(NamedTuple):
    """What generates one bidirectional filter, or several if all fields have the same leading dimensions.

    E is the number of features, O the order, H the number of channels, P the number of positions. The dimension of 2 is
    the direction (0 forward, 1 reverse).
    """

    positional_features: Tensor  # (P, E)
    frequency: Tensor  # (O,)
    input_weight: Tensor  # (2, O, E)
    input_bias: Tensor  # (2, O)
    hidden_weight: Tensor  # (2 layers, 2, O, O)
    hidden_bias: Tensor  # (2 layers, 2, O)
    output_weight: Tensor  # (2, H, O)
    time: Tensor  # (P,)
    decay: Tensor  # (H,)


def implicit_filter(parameters: FilterParameters) -> Tensor:
    """Return the taps at all positions: MLP(z_t) * exp(-time_t * decay_c) with sines between the layers (paper
    section 3).

    Returns:
        (.., 2, H, P), float32 or float64: [0] lags 0, 1, ..; [1] lags -1, -2, ...
    """
    p, device = parameters, parameters.time.device.type
    with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # rounding would change the filter
        frequency = p.frequency[..., None, :, None]
        x = p.positional_features.mT[..., None, :, :]  # (.., 1, E, P)
        input_weight = p.input_weight.clone()  # aligned; else rounding depends on where the weight lies in a file
        x = torch.sin(frequency * (input_weight @ x + p.input_bias[..., None]))  # (.., 2, O, P)
        for weight, bias in zip(p.hidden_weight.unbind(-4), p.hidden_bias.unbind(-3), strict=True):
            x = torch.sin(frequency * (weight @ x + bias[..., None]))
        decay = torch.exp(-p.decay[..., None] * p.time[..., None, :])  # (.., H, P)
        return p.output_weight @ x * decay[..., None, :, :]


def implicit_filters(parameters: list[FilterParameters]) -> list[Tensor]:
    """Return the taps of several filters of the same shape; each is what implicit_filter returns.

    Backward generates long filters again. Keeping what lies between the sines would take 0.2 GB per layer at 32k
    tokens. On a CPU each filter is generated alone, and short ones (KEPT_POSITIONS) only once.
    """
    constants = [tensor for each in parameters for tensor in (each.time, each.decay)]
    on_cpu = all(tensor.device.type == "cpu" and not tensor.requires_grad for tensor in constants)
    if on_cpu and not torch.compiler.is_compiling():
        return [_Filter.apply(*each) for each in parameters]

    def generate(*tensors):
        filters = [tensors[i : i + num_fields] for i in range(0, len(tensors), num_fields)]
        if len(filters) == 1:
            return (implicit_filter(FilterParameters(*filters[0])),)
        stacked = FilterParameters(*(torch.stack(field) for field in zip(*filters, strict=True)))
        return implicit_filter(stacked).unbind(0)

    num_fields = len(FilterParameters._fields)
    flat = [tensor for each in parameters for tensor in each]
    if torch.compiler.is_exporting():  # a strict export cannot run what was checkpointed
        return list(generate(*flat))
    return list(checkpoint(generate, *flat, use_reentrant=False, preserve_rng_state=False))


class _Filter(torch.autograd.Function):
    """implicit_filter of one filter, in few and large steps. Time and decay are constants."""

    @staticmethod
    def forward(ctx, *fields):
        p = FilterParameters(*fields)
        with torch.autocast("cpu", enabled=False):
            sines = _sine_arguments(p)
            last = [torch.sin(p.frequency[:, None] * arguments[-1]) for arguments in sines]
            taps = torch.stack([product(weight, x.T) for weight, x in zip(p.output_weight, last, strict=True)])
            taps *= torch.exp(-p.decay[:, None] * p.time)
        ctx.save_for_backward(*fields)
        ctx.sines = sines if len(p.time) <= KEPT_POSITIONS else None
        return taps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, d_taps):
        p = FilterParameters(*ctx.saved_tensors)
        with torch.autocast("cpu", enabled=False):
            sines = _sine_arguments(p) if ctx.sines is None else ctx.sines
            gradients = FilterParameters(*map(torch.zeros_like, p[:-2]), None, None)
            d_taps = d_taps * torch.exp(-p.decay[:, None] * p.time)
            frequency = p.frequency[:, None]
            for i, (arguments, d_y) in enumerate(zip(sines, d_taps, strict=True)):
                weight, d_weight = p.output_weight[i], gradients.output_weight[i]
                for layer in reversed(range(len(arguments))):
                    z = arguments[layer]
                    d_weight.copy_(product(d_y, torch.sin(frequency * z)))
                    d_sine = product(weight.T, d_y.T).mul_(torch.cos(frequency * z))
                    gradients.frequency.add_((d_sine * z).sum(1))
                    d_y = d_sine.mul_(frequency)
                    if layer:
                        weight, d_weight = p.hidden_weight[layer - 1, i], gradients.hidden_weight[layer - 1, i]
                        d_bias = gradients.hidden_bias[layer - 1, i]
                    else:
                        d_bias = gradients.input_bias[i]
                    d_bias.copy_(d_y.sum(1))
                gradients.input_weight[i].copy_(product(d_y, p.positional_features.T))
                gradients.positional_features.add_(product(d_y.T, p.input_weight[i].T))
        return tuple(gradients)


def _sine_arguments(p: FilterParameters) -> list[list[Tensor]]:
    """Return for each direction what the sines are taken of, without the frequency: (O, P), one for each sine."""
    found = []
    for i in range(2):
        layers = [(p.input_weight[i], p.input_bias[i]), *zip(p.hidden_weight[:, i], p.hidden_bias[:, i], strict=True)]
        x, arguments = p.positional_features.T, []
        for weight, bias in layers:
            arguments.append(product(weight, x.T).add_(bias[:, None]))
            x = torch.sin(p.frequency[:, None] * arguments[-1])
        found.append(arguments)
    return found


def generate_taps(parameters: FilterParameters, length: int) -> Tensor:
    """Return the first `length` taps (2, H, length), without gradients. They are generated in chunks of positions."""
    features, time = parameters.positional_features[:length], parameters.time[:length]
    taps = time.new_empty(2, len(parameters.decay), len(time))
    for start in range(0, len(time), POSITIONS_PER_CHUNK):
        piece = slice(start, start + POSITIONS_PER_CHUNK)
        taps[..., piece] = implicit_filter(parameters._replace(positional_features=features[piece], time=time[piece]))
    return taps


class _Layer(NamedTuple):
    """The prepared filters of one layer, and the parameters that they were prepared from."""

    sources: list[Tensor]  # aliases of the parameters
    versions: list[int]  # of the sources, when the filters were prepared
    prepared: tuple


class _Group(NamedTuple):
    """The prepared filters of one model at one transform length."""

    reserved_bytes: int  # for its layers, prepared or not
    num_layers: int  # how many it has room for
    layers: dict[int, _Layer]  # by the address of one of the layer's parameters
    captured: dict[int, tuple]  # prepared filters that CUDA graphs read, by id


_groups: dict[tuple, _Group] = {}  # oldest first; the first element of a key is the handle of a FilterCache
_lock = threading.RLock()  # re-entrant, since garbage collection may call _forget while the lock is held
_handles = itertools.count(1)
_limit = DEFAULT_LIMIT_BYTES  # for which the groups were made


class FilterCache:
    """One model's share of the cache. Copies of a model (deepcopy, pickle) get a share of their own.

    When the model is garbage-collected, its share is removed from the cache.
    """

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        self.handle = next(_handles)
        weakref.finalize(self, _forget, self.handle)

    def clear(self):
        _forget(self.handle, captured=False)

    def __reduce__(self):
        return FilterCache, (self.num_layers,)


def clear_filter_cache():
    """Forget all prepared filters of all models.

    Call it after a change of parameters that the cache cannot notice, such as `parameter.data.mul_(2)` on a GPU. A CUDA
    graph that was captured before must be captured again, since it reads memory that this call frees.
    """
    _forget()


def filter_cache_bytes() -> int:
    """Return how many bytes of prepared filters the cache holds."""
    kept = {}
    for group in list(_groups.values()):
        kept |= {id(layer.prepared): layer.prepared for layer in list(group.layers.values())} | group.captured
    return sum(tensor.nbytes for tensor in _tensors(list(kept.values())))


def _forget_after(optimizer: torch.optim.Optimizer, *_):
    """Forget everything after a step of a fused optimizer, which changes parameters without raising their version."""
    if any(group.get("fused") for group in optimizer.param_groups):
        _forget(captured=False)


register_optimizer_step_post_hook(_forget_after)


def is_capturing(device: torch.device) -> bool:
    """Return whether a CUDA graph is being captured from the device's current stream."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def prepare_to_keep(device: torch.device, prepare: Callable):
    """Return prepare(), tensors on a device. When this returns, they are complete, so that any stream may read them.

    Raises:
        RuntimeError: a CUDA graph is being captured, so that nothing would be computed now.
    """
    if is_capturing(device):
        raise RuntimeError(
            "what the long convolution needs for this length is not in the cache, and cannot be prepared while a CUDA "
            "graph is captured; run the model once at this length before capturing, or raise M2BERT_FILTER_CACHE_BYTES"
        )
    prepared = prepare()
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()
    return prepared


def cached(key: tuple, num_layers: int, sources: list[Tensor], prepare: Callable[[], tuple]) -> tuple:
    """Return prepare(), or its earlier result for the same key and sources if the sources have not changed since.

    Args:
        key: handle of a FilterCache, and what else distinguishes results (transform length, dtype, device).
        num_layers: number of layers of the model, for which room is reserved together.
        sources: parameters of one layer, on which the result depends. A change is noticed by their memory, shape or
            version. On a CPU it is also noticed by their values, since sharding, fused optimizers and `.data` (merged
            adapters) change values without raising a version.

    Raises:
        RuntimeError: the result would have to be prepared while a CUDA graph is being captured.
        ValueError: M2BERT_FILTER_CACHE_BYTES is not a number of bytes.
    """
    limit = os.environ.get("M2BERT_FILTER_CACHE_BYTES") or str(DEFAULT_LIMIT_BYTES)
    if not limit.isdecimal():
        raise ValueError(
            f"M2BERT_FILTER_CACHE_BYTES={limit!r} is not a number of bytes; write digits only, 0 for no cache"
        )
    _follow_limit(int(limit))
    device = sources[0].device
    on_cpu = device.type == "cpu"
    if any(tensor.is_inference() for tensor in sources):  # inference tensors have no version
        return prepare()
    if not on_cpu and torch.distributed.is_available() and torch.distributed.is_initialized():
        return prepare()  # sharding writes new values into the same memory and raises no version
    group, address = _groups.get(key), sources[-1].data_ptr()
    versions = [tensor._version for tensor in sources] + (_checksums(sources) if on_cpu else [])
    kept = group.layers.get(address) if group else None
    if kept and kept.versions == versions and all(map(Tensor.is_set_to, kept.sources, sources)):
        if is_capturing(device):
            with _lock:  # another thread may have dropped the group
                _groups.setdefault(key, group).captured[id(kept.prepared)] = kept.prepared
        elif device.type == "cuda":
            for tensor in _tensors(kept.prepared):  # if dropped now, the memory waits for what this stream will read
                tensor.record_stream(torch.cuda.current_stream(device))
        return kept.prepared
    with torch.inference_mode(False), torch.no_grad():
        prepared = prepare_to_keep(device, prepare)
        aliases = [tensor.detach() for tensor in sources]  # hold the memory, so that no other tensor gets its address
    with _lock:
        group, per_layer = _groups.get(key), sum(part.nbytes for part in _tensors(prepared))
        if group is None:
            captured = sum(each.reserved_bytes for each in list(_groups.values()) if each.captured)
            if captured + num_layers * per_layer <= _limit:
                while _reserved_bytes() + num_layers * per_layer > _limit:
                    _groups.pop(next((old for old, each in list(_groups.items()) if not each.captured), None), None)
                room = num_layers
            else:  # a captured graph needs all layers
                room = max(_limit - _reserved_bytes(), 0) // per_layer if on_cpu else 0
            if room:
                group = _groups[key] = _Group(room * per_layer, room, {}, {})
        if group and address not in group.layers and len(group.layers) >= num_layers:
            group.layers.clear()  # they were prepared from parameters that the model no longer has
        if group and (address in group.layers or len(group.layers) < group.num_layers):
            group.layers[address] = _Layer(aliases, versions, prepared)
    return prepared


def _follow_limit(limit: int):
    """Forget what no CUDA graph reads if the limit is another one than before: that may be too much, or parts only."""
    global _limit
    if limit != _limit:
        with _lock:
            for key, group in list(_groups.items()):
                if not group.captured:
                    del _groups[key]
            _limit = limit


def _reserved_bytes() -> int:
    return sum(each.reserved_bytes for each in list(_groups.values()))


def _checksums(tensors: list[Tensor]) -> list[float]:
    """Return two sums for each tensor: that of its values, each times a factor of its place, and that of the values'
    bits read as integers, which may overflow.

    The first one misses changes that are small, but the second one notices them. The second one misses an exchange of
    values and may miss a doubling, but the first one notices them.
    """
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    found = []
    for x in (tensor.detach().contiguous() for tensor in tensors):
        bits = x.view(kinds[x.element_size()])
        found += [float(x.flatten().dot(_factors(x.numel(), x.dtype))), int(bits.sum(dtype=bits.dtype))]
    return found


@functools.cache
def _factors(size: int, dtype: torch.dtype) -> Tensor:
    """Return random numbers between 0.5 and 1.5, the same in every call."""
    with torch.inference_mode(False):
        generator = torch.Generator().manual_seed(0)
        return torch.rand(size, generator=generator, dtype=torch.float32, device="cpu").add_(0.5).to(dtype)


def _forget(handle: int | None = None, captured: bool = True):
    """Remove what is prepared for one model, or for all; what CUDA graphs read only if `captured`."""
    with _lock:
        for key, group in list(_groups.items()):
            if handle in (None, key[0]):
                group.layers.clear()
                if captured or not group.captured:
                    _groups.pop(key, None)


def _tensors(prepared) -> list[Tensor]:
    if isinstance(prepared, Tensor):
        return [prepared]
    return [tensor for part in prepared or () for tensor in _tensors(part)]
