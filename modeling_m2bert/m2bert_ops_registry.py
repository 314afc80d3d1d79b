"""Register the operations as torch.library operators: schemas, fake kernels for torch.compile, backward formulas.

Several copies of this code may be loaded in one process: the package, and any number of exported folders. Each copy
registers operators of its own, under a namespace of its own.
"""

import itertools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

from .m2bert_ops_dispatch import choose_kernels, load_kernels, run
from .m2bert_ops_filter import FilterParameters, cached, generate_taps

# Parts of schemas.
ROWS = "Tensor offsets, Tensor lengths, SymInt longest, "
CONVOLUTION = "Tensor gated, Tensor gate, Tensor? residual, "
SKIPS = "Tensor skip, Tensor? residual_skip, "

_base = "m2bert__" + "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in __name__)
_candidates = itertools.chain([_base], (f"{_base}_{i}" for i in itertools.count(2)))  # numbered if imported again
NAMESPACE = next(name for name in _candidates if not hasattr(getattr(torch.ops, name), "long_conv"))
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
operators = getattr(torch.ops, NAMESPACE)
operators.library = _library  # keeps the operators until the process ends: models may live longer than this module


def _register(schema: str, body: Callable, fake: Callable):
    """Register an operator whose fake kernel refuses real tensors.

    torch chooses the fake kernel as soon as one argument is a meta tensor. With real tensors among the arguments, the
    result would be memory that nothing has written.
    """
    _library.define(schema)
    name = schema.partition("(")[0]
    _library.impl(name, body, "CompositeExplicitAutograd")

    def shapes_only(*arguments):
        tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
        if any(not isinstance(tensor, FakeTensor) and tensor.device.type != "meta" for tensor in tensors):
            raise RuntimeError(
                f"{name} was called with tensors on {', '.join(sorted({str(tensor.device) for tensor in tensors}))}: "
                "a weight has no values (device meta); load it, or let what offloads it bring it back before the call"
            )
        return fake(*arguments)

    torch.library.register_fake(f"{NAMESPACE}::{name}", shapes_only, lib=_library)


def _register_differentiable(
    name: str,
    inputs: str,
    outputs: str,
    upstream: str,
    forward: Callable,
    fake: Callable,
    backward: Callable,
    gradient_of: Sequence[int],
):
    """Register an operator and its backward operator, `<name>_backward(upstream, inputs) -> Tensor[]`.

    Args:
        inputs, outputs, upstream: schemas; upstream are the gradients of the outputs.
        forward: maps the inputs to the outputs.
        fake: maps the inputs to empty outputs.
        backward: maps upstream and inputs to the gradients of the inputs that gradient_of names; None for an absent
            input.
        gradient_of: for each differentiable input, the place of an input that has the same gradient: its own place,
            or that of an earlier input.
    """
    places = list(dict.fromkeys(gradient_of))
    num_inputs = inputs.count(",") + 1

    def fake_backward(*arguments):
        values = arguments[-num_inputs:]
        return [_contiguous_like(values[place]) for place in places if values[place] is not None]

    def keep_inputs(ctx, inputs, output):
        *others, kernels = inputs
        others.append(choose_kernels(kernels, inputs[0]))  # backward takes the same kernels, which drop the same values
        ctx.save_for_backward(*(each if isinstance(each, Tensor) else None for each in others))
        ctx.others = [None if isinstance(each, Tensor) else each for each in others]

    def gradients(ctx, *upstream):
        pairs = zip(ctx.saved_tensors, ctx.others, strict=True)
        values = [other if tensor is None else tensor for tensor, other in pairs]
        found = iter(getattr(operators, f"{name}_backward")(*upstream, *values))
        by_place = {place: next(found) for place in places if values[place] is not None}
        return *(by_place.get(place) for place in gradient_of), *[None] * (len(values) - len(gradient_of))

    def refuse(ctx, *gradients):
        raise NotImplementedError("m2bert's operations have no second derivatives; call backward without create_graph")

    _register(f"{name}({inputs}) -> {outputs}", forward, fake)
    _register(
        f"{name}_backward({upstream}, {inputs}) -> Tensor[]",
        lambda *arguments: [gradient for gradient in backward(*arguments) if gradient is not None],
        fake_backward,
    )
    torch.library.register_autograd(f"{NAMESPACE}::{name}", gradients, setup_context=keep_inputs, lib=_library)
    torch.library.register_autograd(f"{NAMESPACE}::{name}_backward", refuse, lib=_library)


def _contiguous_like(x: Tensor, *rest) -> Tensor:
    return x.new_empty(x.shape)


def _long_conv(gated, gate, residual, taps, residual_taps, skip, residual_skip, offsets, lengths, longest, kernels):
    prepare = load_kernels(choose_kernels(kernels, gated))["prepare_filter"]

    def filters(size):
        prepared = prepare(taps, size, gated.dtype)
        return prepared, None if residual is None else prepare(residual_taps, size, gated.dtype)

    return run("long_conv", gated, gate, residual, filters, skip, residual_skip, offsets, lengths, longest, kernels)


def _cached_long_conv(gated, gate, residual, parameters, residual_parameters, skip, residual_skip, *rows_and_rest):
    *rows, (handle, num_layers), kernels = rows_and_rest
    chosen = choose_kernels(kernels, gated)
    prepare_filter = load_kernels(chosen)["prepare_filter"]
    sources = [FilterParameters(*part) for part in (parameters, residual_parameters) if part]

    def filters(size):
        def prepare():
            prepared = tuple(prepare_filter(generate_taps(source, size), size, gated.dtype) for source in sources)
            return prepared if len(prepared) == 2 else (*prepared, None)

        key = (handle, size, chosen, gated.dtype, gated.device)
        return cached(key, num_layers, [*parameters, *residual_parameters], prepare)

    return run("long_conv", gated, gate, residual, filters, skip, residual_skip, *rows, kernels)


def _fake_short_conv_gate(projected, *rest):
    shape = (projected.shape[0] // 3, projected.shape[1])
    return projected.new_empty(shape), projected.new_empty(shape)


def _short_conv_gate_backward(d_gated, d_gate, *inputs):
    gradients = run("short_conv_gate_backward", d_gated.contiguous(), d_gate.contiguous(), *inputs)
    return [gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, inputs[:4], strict=True)]


def _fake_glu(x, *rest):
    """Return empty memory in the layout of the kernels: torch's give columns, as the next operation reads them."""
    columns = choose_kernels(rest[-1], x) == "torch"
    return x.new_empty(x.shape[1], x.shape[0]).T if columns else _contiguous_like(x)


def _glu_backward(dy, x, up, down, bias, dropout, seed, kernels):
    gradients = run("block_diagonal_glu_backward", dy.contiguous(), x, up, down, dropout, seed, kernels)
    return [gradient.to(x.dtype) for gradient in gradients]


def _norm_backward(dz, x, y, weight, bias, eps, kernels):
    dx, d_weight, d_bias = run("add_layer_norm_backward", dz.contiguous().T, x, y, weight, eps, kernels)
    return dx, d_weight.to(weight.dtype), d_bias.to(bias.dtype)


_register_differentiable(
    "long_conv",
    f"{CONVOLUTION}Tensor taps, Tensor? residual_taps, {SKIPS}{ROWS}str kernels",
    "Tensor",
    "Tensor dy",
    forward=_long_conv,
    fake=_contiguous_like,
    backward=lambda dy, *inputs: run("long_conv_backward", dy.contiguous(), *inputs),
    gradient_of=range(7),
)
_register(
    f"cached_long_conv({CONVOLUTION}Tensor[] parameters, Tensor[] residual_parameters, {SKIPS}{ROWS}int[] cache, "
    "str kernels) -> Tensor",
    _cached_long_conv,
    _contiguous_like,
)
_register_differentiable(
    "short_conv_gate",
    f"Tensor projected, Tensor projection_bias, Tensor weight, Tensor bias, {ROWS}str kernels",
    "(Tensor, Tensor)",
    "Tensor d_gated, Tensor d_gate",
    forward=lambda *inputs: run("short_conv_gate", *inputs),
    fake=_fake_short_conv_gate,
    backward=_short_conv_gate_backward,
    gradient_of=range(4),
)
_register_differentiable(
    "block_diagonal_glu",
    "Tensor x, Tensor up, Tensor down, Tensor bias, float dropout, Tensor? seed, str kernels",
    "Tensor",
    "Tensor dy",
    forward=lambda *inputs: run("block_diagonal_glu", *inputs),
    fake=_fake_glu,
    backward=_glu_backward,
    gradient_of=range(4),
)
_register_differentiable(  # its output is (H, T); x and y have the same gradient
    "add_layer_norm",
    "Tensor x, Tensor y, Tensor weight, Tensor bias, float eps, str kernels",
    "Tensor",
    "Tensor dz",
    forward=lambda *inputs: run("add_layer_norm", *inputs).T,
    fake=lambda x, *rest: x.new_empty(x.shape[1], x.shape[0]),
    backward=_norm_backward,
    gradient_of=(0, 0, 2, 3),
)
