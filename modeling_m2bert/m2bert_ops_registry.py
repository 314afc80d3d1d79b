"""The operations as torch.library operators: schemas, fake kernels for torch.compile, backward formulas.

Every copy of this code in a process (the package, and each exported folder that was loaded) registers operators of its
own.
"""

import itertools

import torch
from torch import Tensor
from torch._subclasses import FakeTensor
from torch.utils import _pytree as pytree

from .m2bert_ops_dispatch import choose_kernels, functions, run
from .m2bert_ops_filter import FilterParameters, cached, generate_taps

ROWS = "Tensor offsets, Tensor lengths, SymInt longest"
CONVOLUTION = "Tensor gated, Tensor gate, Tensor? residual, "
SKIPS = "Tensor skip, Tensor? residual_skip, "
TAPS = "Tensor taps, Tensor? residual_taps, "
SHORT = "Tensor projected, Tensor projection_bias, Tensor weight, Tensor bias, "
GLU = "Tensor x, Tensor up, Tensor down, Tensor bias, float dropout, Tensor? seed, str kernels"
NORM = "Tensor x, Tensor y, Tensor weight, Tensor bias, float eps, str kernels"


def _free_namespace() -> str:
    """Return a name for this copy of the code. A module that is imported again gets another one."""
    name = "m2bert__" + "".join(letter if letter.isascii() and letter.isalnum() else "_" for letter in __name__)
    names = itertools.chain([name], (f"{name}_{i}" for i in itertools.count(2)))
    return next(name for name in names if not hasattr(getattr(torch.ops, name), "long_conv"))


NAMESPACE = _free_namespace()
_library = torch.library.Library(NAMESPACE, "FRAGMENT")
operators = getattr(torch.ops, NAMESPACE)
operators.library = _library  # operators live as long as the process: whoever holds them may outlive this module


def _register(schema: str, body, fake):
    _library.define(schema)
    name = schema.partition("(")[0]
    _library.impl(name, body, "CompositeExplicitAutograd")

    def shapes_only(*arguments):
        _refuse_values(name, arguments)
        return fake(*arguments)

    torch.library.register_fake(f"{NAMESPACE}::{name}", shapes_only, lib=_library)


def _refuse_values(name: str, arguments):
    """Raise RuntimeError if a fake kernel was chosen for tensors with values: one meta tensor among them is enough, and
    the result would be memory that nothing has written."""
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor)]
    if any(not isinstance(tensor, FakeTensor) and tensor.device.type != "meta" for tensor in tensors):
        raise RuntimeError(
            f"{name} was called with tensors on {', '.join(sorted({str(tensor.device) for tensor in tensors}))}: a "
            "weight has no values (device meta); load it, or let what offloads it bring it back before the call"
        )


def _differentiate(name: str, setup_context, backward):
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_library)
    torch.library.register_autograd(f"{NAMESPACE}::{name}_backward", _refuse, lib=_library)


def _refuse(ctx, *gradients):
    raise NotImplementedError("m2bert's operations have no second derivatives; call backward without create_graph")


def _keep_tensors_and_rows(ctx, inputs, output):
    """Save what backward needs. The kernels are chosen in forward: backward must drop the same values."""
    *tensors, ctx.longest, kernels = inputs
    ctx.kernels = choose_kernels(kernels, tensors[0])
    ctx.save_for_backward(*tensors)


def _contiguous_like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


# long_conv


def _long_conv(gated, gate, residual, taps, residual_taps, skip, residual_skip, offsets, lengths, longest, kernels):
    prepare = functions(choose_kernels(kernels, gated))["prepare_filter"]

    def filters(size):
        prepared = prepare(taps, size, gated.dtype)
        return prepared, None if residual is None else prepare(residual_taps, size, gated.dtype)

    return run("long_conv", gated, gate, residual, filters, skip, residual_skip, offsets, lengths, longest, kernels)


def _long_conv_backward(dy, *arguments):
    """Return the gradients of those of gated, gate, residual, taps, residual_taps, skip, residual_skip that are
    present."""
    return [gradient for gradient in run("long_conv_backward", dy.contiguous(), *arguments) if gradient is not None]


def _long_conv_gradients(ctx, dy):
    tensors = ctx.saved_tensors
    gradients = iter(operators.long_conv_backward(dy, *tensors, ctx.longest, ctx.kernels))
    return *(None if tensor is None else next(gradients) for tensor in tensors[:7]), None, None, None, None


def _fake_long_conv_backward(dy, gated, gate, residual, taps, residual_taps, skip, residual_skip, *rest):
    inputs = (gated, gate, residual, taps, residual_taps, skip, residual_skip)
    return [_contiguous_like(tensor) for tensor in inputs if tensor is not None]


_register(
    f"long_conv({CONVOLUTION}{TAPS}{SKIPS}{ROWS}, str kernels) -> Tensor",
    _long_conv,
    lambda gated, *rest: _contiguous_like(gated),
)
_register(
    f"long_conv_backward(Tensor dy, {CONVOLUTION}{TAPS}{SKIPS}{ROWS}, str kernels) -> Tensor[]",
    _long_conv_backward,
    _fake_long_conv_backward,
)
_differentiate("long_conv", _keep_tensors_and_rows, _long_conv_gradients)


# cached_long_conv


def _cached_long_conv(gated, gate, residual, parameters, residual_parameters, skip, residual_skip, *rows_and_rest):
    *rows, (handle, num_layers), kernels = rows_and_rest
    path = choose_kernels(kernels, gated)
    prepare_filter = functions(path)["prepare_filter"]
    sources = [FilterParameters(*part) for part in (parameters, residual_parameters) if part]

    def filters(size):
        def prepare():
            prepared = tuple(prepare_filter(generate_taps(source, size), size, gated.dtype) for source in sources)
            return prepared if len(prepared) == 2 else (*prepared, None)

        key = (handle, size, path, gated.dtype, gated.device)
        return cached(key, num_layers, [*parameters, *residual_parameters], prepare)

    return run("long_conv", gated, gate, residual, filters, skip, residual_skip, *rows, kernels)


_register(
    f"cached_long_conv({CONVOLUTION}Tensor[] parameters, Tensor[] residual_parameters, {SKIPS}{ROWS}, int[] cache, "
    "str kernels) -> Tensor",
    _cached_long_conv,
    lambda gated, *rest: _contiguous_like(gated),
)


# short_conv_gate


def _fake_short_conv_gate(projected, *rest):
    shape = (projected.shape[0] // 3, projected.shape[1])
    return projected.new_empty(shape), projected.new_empty(shape)


def _short_conv_gate_backward(d_gated, d_gate, *tensors_and_rows):
    gradients = run("short_conv_gate_backward", d_gated.contiguous(), d_gate.contiguous(), *tensors_and_rows)
    return tuple(gradient.to(tensor.dtype) for gradient, tensor in zip(gradients, tensors_and_rows, strict=False))


def _short_conv_gate_gradients(ctx, d_gated, d_gate):
    gradients = operators.short_conv_gate_backward(d_gated, d_gate, *ctx.saved_tensors, ctx.longest, ctx.kernels)
    return *gradients, None, None, None, None


_register(
    f"short_conv_gate({SHORT}{ROWS}, str kernels) -> (Tensor, Tensor)",
    lambda *arguments: run("short_conv_gate", *arguments),
    _fake_short_conv_gate,
)
_register(
    f"short_conv_gate_backward(Tensor d_gated, Tensor d_gate, {SHORT}{ROWS}, str kernels) -> "
    "(Tensor, Tensor, Tensor, Tensor)",
    _short_conv_gate_backward,
    lambda d_gated, d_gate, *tensors_and_rows: tuple(_contiguous_like(tensor) for tensor in tensors_and_rows[:4]),
)
_differentiate("short_conv_gate", _keep_tensors_and_rows, _short_conv_gate_gradients)


# block_diagonal_glu


def _glu_backward(dy, x, up, down, bias, dropout, seed, kernels):
    gradients = run("block_diagonal_glu_backward", dy.contiguous(), x, up, down, dropout, seed, kernels)
    return tuple(gradient.to(x.dtype) for gradient in gradients)


def _glu_setup(ctx, inputs, output):
    x, up, down, bias, ctx.dropout, seed, kernels = inputs
    ctx.kernels = choose_kernels(kernels, x)
    ctx.save_for_backward(x, up, down, bias, seed)


def _glu_gradients(ctx, dy):
    x, up, down, bias, seed = ctx.saved_tensors
    gradients = operators.block_diagonal_glu_backward(dy, x, up, down, bias, ctx.dropout, seed, ctx.kernels)
    return *gradients, None, None, None


_register(
    f"block_diagonal_glu({GLU}) -> Tensor",
    lambda *arguments: run("block_diagonal_glu", *arguments),
    lambda x, *rest: _contiguous_like(x),
)
_register(
    f"block_diagonal_glu_backward(Tensor dy, {GLU}) -> (Tensor, Tensor, Tensor, Tensor)",
    _glu_backward,
    lambda dy, *tensors_and_rest: tuple(_contiguous_like(tensor) for tensor in tensors_and_rest[:4]),
)
_differentiate("block_diagonal_glu", _glu_setup, _glu_gradients)


# add_layer_norm, as (H, T)


def _norm_backward(dz, x, y, weight, bias, eps, kernels):
    dx, d_weight, d_bias = run("add_layer_norm_backward", dz.contiguous().T, x, y, weight, eps, kernels)
    return dx, d_weight.to(weight.dtype), d_bias.to(bias.dtype)


def _norm_setup(ctx, inputs, output):
    *tensors, ctx.eps, kernels = inputs
    ctx.kernels = choose_kernels(kernels, tensors[0])
    ctx.save_for_backward(*tensors)


def _norm_gradients(ctx, dz):
    dx, d_weight, d_bias = operators.add_layer_norm_backward(dz, *ctx.saved_tensors, ctx.eps, ctx.kernels)
    return dx, dx, d_weight, d_bias, None, None


_register(
    f"add_layer_norm({NORM}) -> Tensor",
    lambda *arguments: run("add_layer_norm", *arguments).T,
    lambda x, *rest: x.new_empty(x.shape[1], x.shape[0]),
)
_register(
    f"add_layer_norm_backward(Tensor dz, {NORM}) -> (Tensor, Tensor, Tensor)",
    _norm_backward,
    lambda dz, x, y, weight, bias, *rest: (_contiguous_like(x), _contiguous_like(weight), _contiguous_like(bias)),
)
_differentiate("add_layer_norm", _norm_setup, _norm_gradients)
