"""Implicit filters as functions of their parameters, and the cache of prepared filters for inference.

A filter depends on the weights alone, and its first taps are the same at every length. So an encoder prepares each
filter once per transform length and keeps it: at 32k tokens generating the filters costs about a third of a layer. The
cache belongs to the process and holds at most `M2BERT_FILTER_CACHE_BYTES` (3 GB unless set; 0: nothing). A transform
length is admitted for all layers of a model or for none, since a model reads its layers in order and a cache that
forgets the first while it learns the last never hits; where room is short, the length admitted longest ago goes.
"""

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

DEFAULT_LIMIT_BYTES = 3_000_000_000
POSITIONS_PER_CHUNK = 4096


class FilterParameters(NamedTuple):
    """What generates one bidirectional filter, or several with leading dimensions in front. E features, O order, H
    channels, P positions; the dimension of 2 is direction (0 forward, 1 reverse)."""

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
    """Return the taps at all positions given: MLP(z_t) * exp(-time_t * decay_c), sines between the layers (paper
    section 3).

    Returns:
        (.., 2, H, P), float32 or float64: [0] lags 0, 1, ..; [1] lags -1, -2, ...
    """
    p, device = parameters, parameters.time.device.type
    with torch.autocast("cpu" if device == "meta" else device, enabled=False):  # a rounded filter is another filter
        frequency = p.frequency[..., None, :, None]
        x = p.positional_features.mT[..., None, :, :]  # (.., 1, E, P)
        input_weight = p.input_weight.clone()  # aligned: narrow products round by where weights lie in a file
        x = torch.sin(frequency * (input_weight @ x + p.input_bias[..., None]))  # (.., 2, O, P)
        for weight, bias in zip(p.hidden_weight.unbind(-4), p.hidden_bias.unbind(-3), strict=True):
            x = torch.sin(frequency * (weight @ x + bias[..., None]))
        decay = torch.exp(-p.decay[..., None] * p.time[..., None, :])  # (.., H, P)
        return p.output_weight @ x * decay[..., None, :, :]


def implicit_filters(parameters: list[FilterParameters]) -> list[Tensor]:
    """Return the taps of several filters of one shape, generated together, each as by implicit_filter. For gradients
    they are generated again: what lies between the sines of one layer would take 0.7 GB at 32k tokens."""

    def generate(*tensors):
        each = [tensors[i : i + fields] for i in range(0, len(tensors), fields)]
        if len(each) == 1:
            return (implicit_filter(FilterParameters(*each[0])),)
        return implicit_filter(FilterParameters(*(torch.stack(same) for same in zip(*each, strict=True)))).unbind(0)

    fields = len(FilterParameters._fields)
    flat = [tensor for each in parameters for tensor in each]
    if torch.compiler.is_exporting():  # a strict export cannot run what was checkpointed
        return list(generate(*flat))
    return list(checkpoint(generate, *flat, use_reentrant=False, preserve_rng_state=False))


def generate_taps(parameters: FilterParameters, length: int) -> Tensor:
    """Return the first `length` taps (2, H, length) without gradients, piece by piece."""
    features, time = parameters.positional_features[:length], parameters.time[:length]
    taps = time.new_empty(2, len(parameters.decay), len(time))
    for start in range(0, len(time), POSITIONS_PER_CHUNK):
        piece = slice(start, start + POSITIONS_PER_CHUNK)
        taps[..., piece] = implicit_filter(parameters._replace(positional_features=features[piece], time=time[piece]))
    return taps


class _Group(NamedTuple):
    """Prepared filters of one model at one transform length, by the address of a weight of each layer: copies of the
    sources, their versions, what was prepared."""

    reserved_bytes: int
    layers: dict[int, tuple[list[Tensor], list[int], tuple]]


_groups: dict[tuple, _Group] = {}  # oldest first; the first element of a key is the handle of a FilterCache
_lock = threading.RLock()  # re-entrant: models may be collected, and forgotten, at any point
_handles = itertools.count(1)


class FilterCache:
    """One model's share of the cache. Copies of a model (deepcopy, pickle) get a share of their own; what a model
    cached goes when the model goes."""

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        self.handle = next(_handles)
        weakref.finalize(self, _forget, self.handle)

    def clear(self):
        _forget(self.handle)

    def __reduce__(self):
        return FilterCache, (self.num_layers,)


def clear_filter_cache():
    """Forget all prepared filters of all models, for changes that nothing announces (`parameter.data.mul_(2)`). A CUDA
    graph captured before reads the memory that is given back: capture it again."""
    with _lock:
        _groups.clear()


def filter_cache_bytes() -> int:
    """Return the bytes of all prepared filters that are kept now."""
    kept = [layer[2] for group in list(_groups.values()) for layer in list(group.layers.values())]
    return sum(tensor.nbytes for tensor in _tensors(kept))


def _forget_after(optimizer: torch.optim.Optimizer, *_):
    """Forget everything after a step of a fused optimizer, which raises no version."""
    if any(group.get("fused") for group in optimizer.param_groups):
        clear_filter_cache()


register_optimizer_step_post_hook(_forget_after)


def cached(key: tuple, num_layers: int, sources: list[Tensor], prepare: Callable[[], tuple]) -> tuple:
    """Return prepare(), or its earlier result for the same key if the sources have not changed since.

    Args:
        key: handle of a FilterCache, and whatever distinguishes what is prepared (transform length, dtype, device).
        num_layers: layers of the model; all are admitted together or not at all.
        sources: parameters that the result depends on, compared by memory, shape and version; on a CPU by values too,
            which sharding, fused optimizers and `.data` (merged adapters) change without a new version.

    Raises:
        RuntimeError: something would have to be prepared while a CUDA graph is being captured.
        ValueError: M2BERT_FILTER_CACHE_BYTES is not a number of bytes.
    """
    limit = os.environ.get("M2BERT_FILTER_CACHE_BYTES") or str(DEFAULT_LIMIT_BYTES)
    if not limit.isdecimal():
        raise ValueError(
            f"M2BERT_FILTER_CACHE_BYTES={limit!r} is not a number of bytes; write digits only, 0 for no cache"
        )
    on_cpu = sources[0].device.type == "cpu"
    if any(tensor.is_inference() for tensor in sources):  # these have no version
        return prepare()
    if not on_cpu and torch.distributed.is_available() and torch.distributed.is_initialized():
        return prepare()  # sharding fills the same memory anew and raises no version
    group, place = _groups.get(key), sources[-1].data_ptr()
    versions = [tensor._version for tensor in sources] + (_checksums(sources) if on_cpu else [])
    kept = group.layers.get(place) if group else None
    if kept and kept[1] == versions and all(map(Tensor.is_set_to, kept[0], sources)):
        return kept[2]
    if sources[0].is_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "the long filters of this length are not in the cache, and cannot be prepared while a CUDA graph is "
            "captured; run the model once at this length before capturing, or raise M2BERT_FILTER_CACHE_BYTES"
        )
    with torch.inference_mode(False), torch.no_grad():
        prepared = prepare()
        aliases = [tensor.detach() for tensor in sources]  # keep the memory, so that its address stays theirs
    with _lock:
        group, needed = _groups.get(key), num_layers * sum(part.nbytes for part in _tensors(prepared))
        if group is None and needed <= int(limit):
            while sum(each.reserved_bytes for each in list(_groups.values())) + needed > int(limit):
                _groups.pop(next(iter(_groups)), None)
            group = _groups[key] = _Group(needed, {})
        if group and place not in group.layers and len(group.layers) >= num_layers:
            group.layers.clear()  # filters of parameters that the model no longer has
        if group:
            group.layers[place] = (aliases, versions, prepared)
    return prepared


def _checksums(tensors: list[Tensor]) -> list[float]:
    """Return two sums of the values of each tensor: of the numbers, and of their bits as whole numbers, which overflow.
    A change that one of them misses (a small one; a doubling) the other one sees."""
    kinds = {2: torch.int16, 4: torch.int32, 8: torch.int64}
    found = []
    for x in (tensor.detach().contiguous() for tensor in tensors):
        bits = x.view(kinds[x.element_size()])
        found += [float(x.sum()), int(bits.sum(dtype=bits.dtype))]
    return found


def _forget(handle: int):
    with _lock:
        for key in [key for key in list(_groups) if key[0] == handle]:
            _groups.pop(key, None)


def _tensors(prepared) -> list[Tensor]:
    if isinstance(prepared, Tensor):
        return [prepared]
    return [tensor for part in prepared or () for tensor in _tensors(part)]
