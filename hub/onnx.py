"""Export of a model to ONNX: what each of its operators is as a graph of standard ONNX operators.

Nothing in the graph depends on the batch or the length that it was exported with. The long convolution is computed by
matrix products (a DFT in two steps, as on a GPU): the DFT of onnxruntime is slow, and loses digits at lengths that are
no power of two.
"""

import math

import numpy as np
from onnxscript import opset20 as op

Value = object  # of the graph
INT, FLOAT = 7, 1  # ONNX's numbers of int64 and float32


def integers(*values: int):
    """Return a constant of int64."""
    return op.Constant(value_ints=list(values))


def _constant(array: np.ndarray):
    from onnxscript import ir

    return op.Constant(value=ir.tensor(array))


def short_conv_gate(projected, projection_bias, weight, bias, offsets, lengths, longest, kernels):
    """Translate m2bert_ops.short_conv_gate."""
    real = _real(lengths, longest)  # (B, L)
    rows = op.Reshape(op.Add(projected, op.Unsqueeze(projection_bias, integers(1))), _by_row(longest))  # (3H, B, L)
    padded = op.Pad(rows, integers(0, 0, 2, 0, 0, 0))
    taps = op.Split(op.Unsqueeze(weight, integers(1)), axis=2, num_outputs=3)  # (3H, 1, 1)
    total = op.Unsqueeze(bias, integers(1, 2))
    for number, tap in enumerate(taps):
        end = op.Add(op.Reshape(longest, integers(1)), integers(number))
        total = op.Add(total, op.Mul(tap, op.Slice(padded, integers(number), end, integers(2))))
    x1, x2, v = op.Split(op.Mul(total, real), axis=0, num_outputs=3)
    return _flat(op.Mul(v, x1)), _flat(x2)


def cached_long_conv(
    gated, gate, residual, parameters, residual_parameters, skip, residual_skip, offsets, lengths, longest, cache, kernels
):  # fmt: skip
    """Translate m2bert_ops.cached_long_conv."""
    sources, skips, signals = [parameters], [skip], [op.Reshape(gated, _by_row(longest))]
    if residual is not None:
        sources.append(residual_parameters)
        skips.append(residual_skip)
        signals.append(op.Mul(op.Reshape(residual, _by_row(longest)), _real(lengths, longest)))
    length = op.Reshape(longest, integers(1))
    plan = _plan(length)
    signal = op.Concat(*signals, axis=0) if residual is not None else signals[0]  # (C, B, L), C = H or 2H
    filters = [_taps(source, length, plan) for source in sources]
    filters = op.Concat(*filters, axis=0) if residual is not None else filters[0]  # (C, N1, N2)
    mixed = _convolve(signal, filters, plan, length)
    skip = op.Concat(*skips, axis=0) if residual is not None else skips[0]
    mixed = op.Add(mixed, op.Mul(signal, op.Unsqueeze(skip, integers(1, 2))))
    if residual is None:
        return op.Mul(_flat(mixed), gate)
    main, second = op.Split(mixed, axis=0, num_outputs=2)
    return op.Add(op.Mul(_flat(main), gate), op.Mul(_flat(second), op.Reshape(_mask(lengths, longest), integers(-1))))


class _plan:
    """A transform of N = N1 N2 samples, at least twice the length, and its matrices.

    Sample n = N2 n1 + n2 goes to frequency k = k1 + N1 k2. Of real signals only k1 <= N1 / 2 are computed: K of them.
    """

    def __init__(self, length):
        candidates = np.array([2**e for e in range(1, 21)])  # 2 M
        fits = op.GreaterOrEqual(_constant(candidates), op.Mul(length, integers(2)))
        index = op.ArgMax(op.Cast(fits, to=INT), axis=0, keepdims=1)
        first = np.array([2 ** ((e + 3) // 2) if e > 2 else 2 for e in range(1, 21)])
        self.n = op.Gather(_constant(candidates), index)
        self.n1 = op.Gather(_constant(first), index)
        self.n2 = op.Div(self.n, self.n1)
        self.half1 = op.Div(self.n1, integers(2))
        self.k = op.Add(self.half1, integers(1))
        k1, n1, n2 = _range(self.k), _range(self.n1), _range(self.n2)
        # first step: (K, N1)
        cos, sin = self._angles(op.Mul(op.Unsqueeze(k1, integers(1)), n1), self.n1)
        self.first = op.Concat(cos, op.Neg(sin), axis=0)  # (2K, N1)
        edge = op.Or(op.Equal(k1, integers(0)), op.Equal(k1, self.half1))
        weight = op.Div(op.Where(edge, _constant(np.float32(1)), _constant(np.float32(2))), op.Cast(self.n, to=FLOAT))
        weight = op.Concat(weight, weight, axis=0)
        self.last = op.Mul(op.Transpose(self.first, perm=[1, 0]), weight)  # (N1, 2K)
        # second step: for every k1, from n2 to k2
        frequency = op.Add(op.Unsqueeze(k1, integers(1)), op.Mul(n2, self.n1))  # (K, k2)
        product = op.Mul(op.Unsqueeze(n2, integers(0, 2)), op.Unsqueeze(frequency, integers(1)))  # (K, n2, k2)
        cos, sin = self._angles(product, self.n)
        self.second = op.Concat(
            op.Concat(cos, op.Neg(sin), axis=2), op.Concat(sin, cos, axis=2), axis=1
        )  # (K, 2 N2, 2 N2)

    def _angles(self, product, period):
        turn = op.Cast(op.Mod(product, period), to=FLOAT)
        angle = op.Div(op.Mul(turn, _constant(np.float32(2 * math.pi))), op.Cast(period, to=FLOAT))
        return op.Cos(angle), op.Sin(angle)

    def forward(self, x, rows1):
        """Transform (R, rows1, N2) -> (K, R, 2 N2)."""
        first = op.Slice(self.first, integers(0), rows1, integers(1))
        x = op.MatMul(first, x)  # (R, 2K, N2)
        x = op.Reshape(x, op.Concat(integers(-1, 2), self.k, self.n2, axis=0))
        x = op.Transpose(x, perm=[2, 0, 1, 3])
        x = op.Reshape(x, op.Concat(self.k, integers(-1), op.Mul(self.n2, integers(2)), axis=0))
        return op.MatMul(x, self.second)

    def inverse(self, x):
        """Return the first half of the samples: (K, R, 2 N2) -> (R, N1 / 2, N2)."""
        x = op.MatMul(x, op.Transpose(self.second, perm=[0, 2, 1]))
        x = op.Reshape(x, op.Concat(self.k, integers(-1, 2), self.n2, axis=0))
        x = op.Transpose(x, perm=[1, 2, 0, 3])
        x = op.Reshape(x, op.Concat(integers(-1), op.Mul(self.k, integers(2)), self.n2, axis=0))
        return op.MatMul(op.Slice(self.last, integers(0), self.half1, integers(0)), x)


def _convolve(signal, filters, plan, length):
    m = op.Div(plan.n, integers(2))
    pads = op.Concat(integers(0, 0, 0, 0, 0), op.Sub(m, length), axis=0)
    shape = op.Shape(signal)
    x = op.Reshape(op.Pad(signal, pads), op.Concat(integers(-1), plan.half1, plan.n2, axis=0))
    x = plan.forward(x, plan.half1)  # (K, C B, 2 N2)
    h = plan.forward(filters, plan.n1)  # (K, C, 2 N2)
    channels = op.Slice(shape, integers(0), integers(1))
    split = op.Concat(plan.k, channels, integers(-1), plan.n2, axis=0)
    re, im = op.Split(op.Reshape(x, op.Concat(plan.k, channels, integers(-1, 2), plan.n2, axis=0)), axis=3, num_outputs=2)
    h_re, h_im = op.Split(op.Reshape(h, op.Concat(plan.k, channels, integers(1, 2), plan.n2, axis=0)), axis=3, num_outputs=2)
    product = op.Concat(
        op.Sub(op.Mul(re, h_re), op.Mul(im, h_im)), op.Add(op.Mul(re, h_im), op.Mul(im, h_re)), axis=3
    )
    product = op.Reshape(product, op.Concat(plan.k, integers(-1), op.Mul(plan.n2, integers(2)), axis=0))
    y = op.Reshape(plan.inverse(product), op.Concat(channels, integers(-1), m, axis=0))
    return op.Slice(y, integers(0), length, integers(2))


def _taps(source, length, plan):
    """Return the two-sided filter [h_0 .. h_{L-1}, 0 .., r_{L-1} .. r_0] as (H, N1, N2)."""
    features, frequency, input_weight, input_bias, hidden_weight, hidden_bias, output_weight, time, decay = source
    places = _range(length)
    both = op.Concat(op.Unsqueeze(places, integers(0)),
                     op.Unsqueeze(op.Sub(op.Sub(length, integers(1)), places), integers(0)), axis=0)  # (2, L)
    x = op.Transpose(op.Gather(features, both), perm=[0, 2, 1])  # (2, E, L)
    frequency = op.Unsqueeze(frequency, integers(1))
    x = op.Sin(op.Mul(frequency, op.Add(op.MatMul(input_weight, x), op.Unsqueeze(input_bias, integers(2)))))
    for number in range(2):
        weight = op.Gather(hidden_weight, _constant(np.int64(number)))
        bias = op.Unsqueeze(op.Gather(hidden_bias, _constant(np.int64(number))), integers(2))
        x = op.Sin(op.Mul(frequency, op.Add(op.MatMul(weight, x), bias)))
    times = op.Unsqueeze(op.Gather(time, both), integers(1))  # (2, 1, L)
    fall = op.Exp(op.Neg(op.Mul(op.Unsqueeze(decay, integers(1)), times)))  # (2, H, L)
    h, r = op.Split(op.Mul(op.MatMul(output_weight, x), fall), axis=0, num_outputs=2)
    gap = op.Sub(plan.n, op.Mul(length, integers(2)))
    h = op.Pad(h, op.Concat(integers(0, 0, 0, 0, 0), gap, axis=0))
    return op.Reshape(op.Concat(h, r, axis=2), op.Concat(integers(-1), plan.n1, plan.n2, axis=0))


def block_diagonal_glu(x, up, down, bias, dropout, seed, kernels):
    """Translate m2bert_ops.block_diagonal_glu: (T, H) -> (T, H)."""
    blocks, width, inner = (int(size) for size in down.shape)

    def multiply(x, weight, size):
        x = op.Transpose(op.Reshape(x, integers(-1, blocks, size)), perm=[1, 0, 2])  # (K, T, in / K)
        x = op.Transpose(op.MatMul(x, op.Transpose(weight, perm=[0, 2, 1])), perm=[1, 0, 2])
        return op.Reshape(x, integers(0, -1))

    gate, value = op.Split(multiply(x, up, width), axis=1, num_outputs=2)
    return op.Add(multiply(op.Mul(op.Gelu(gate), value), down, inner), bias)


def add_layer_norm(x, y, weight, bias, eps, kernels):
    """Translate m2bert_ops.add_layer_norm: its output is (H, T)."""
    normed, *_ = op.LayerNormalization(op.Add(x, y), weight, bias, axis=-1, epsilon=eps)
    return op.Transpose(normed, perm=[1, 0])


def searchsorted(ordered, values, right=False, **ignored):
    """Translate torch.searchsorted of rows in their own sorted values, as `occurrences` of the pooler calls it."""
    length = op.Slice(op.Shape(values), integers(1), integers(2))
    big = integers(2**40)
    rows = op.Unsqueeze(_range(op.Slice(op.Shape(values), integers(0), integers(1))), integers(1))
    keys = op.Reshape(op.Add(values, op.Mul(rows, big)), integers(-1))
    _, _, places, counts = op.Unique(keys)
    ends = op.CumSum(counts, _constant(np.int64(0)))
    found = op.Gather(ends if right else op.Sub(ends, counts), places)
    return op.Sub(op.Reshape(found, op.Shape(values)), op.Mul(rows, length))


def _range(count):
    return op.Range(_constant(np.int64(0)), op.Squeeze(count), _constant(np.int64(1)))


def _mask(lengths, longest):
    places = op.Range(_constant(np.int64(0)), longest, _constant(np.int64(1)))
    return op.Cast(op.Less(places, op.Unsqueeze(op.Cast(lengths, to=INT), integers(1))), to=FLOAT)


def _real(lengths, longest):
    return _mask(lengths, longest)


def _by_row(longest):
    return op.Concat(integers(0, -1), op.Reshape(longest, integers(1)), axis=0)


def _flat(x):
    return op.Reshape(x, integers(0, -1))
