"""The model's operations as graphs of standard ONNX operators, for torch's exporter.

Each function translates the operation of its name, with that operation's arguments (`m2bert_ops`). It has no use for
`offsets`, `kernels`, `cache`, `dropout` and `seed`. The T columns are whole padded rows here: T = B L, L = `longest`.
Nothing in a graph depends on the batch or the length that it was exported with.

The long convolution is a product of spectra, and a discrete Fourier transform is two steps of matrix products. The DFT
operator of onnxruntime is slower, and loses digits at lengths that are no power of two.
"""

import math

import numpy as np
from onnxscript import ir
from onnxscript import opset20 as op

INT64, FLOAT = ir.DataType.INT64, ir.DataType.FLOAT
LAST = 2**31 - 1  # the end of any slice. OpenVINO computes integers in 32 bits


def short_conv_gate(projected, projection_bias, weight, bias, offsets, lengths, longest, kernels):
    """Return v * x1 and x2, both (H, T). In padding, x2 has any values: nothing reads them."""
    channels = int(weight.shape[0])
    bias = op.Add(bias, op.Mul(projection_bias, op.ReduceSum(weight, ints(1), keepdims=0)))
    rows = by_row(projected, longest)  # (3H, B, L)
    before = op.Unsqueeze(op.Neg(projection_bias), ints(1, 2))  # with the bias it is zero
    before = op.Expand(before, op.Concat(ints(1), op.Shape(rows, start=1, end=2), ints(2), axis=0))
    rows = op.Concat(before, rows, axis=2)  # (3H, B, 2 + L)
    mixed = op.Conv(
        op.Reshape(rows, ints(1, channels, -1)), op.Unsqueeze(weight, ints(1)), bias, group=channels, pads=[2, 0]
    )
    mixed = op.Slice(op.Reshape(mixed, op.Shape(rows)), ints(2), ints(LAST), ints(2))
    x1, x2, v = op.Split(mixed, axis=0, num_outputs=3)
    return flat(op.Mul(op.Mul(v, x1), real(lengths, longest))), flat(x2)


def cached_long_conv(
    gated, gate, residual, parameters, residual_parameters, skip, residual_skip, offsets, lengths, longest, *others
):  # fmt: skip
    """Return gate * conv(gated) + conv(residual), (H, T). In padding it has any values: nothing reads them."""
    transform = Transform(op.Reshape(longest, ints(1)), most=int(parameters[0].shape[0]))
    mixed = op.Mul(flat(convolve(by_row(gated, longest), parameters, skip, transform)), gate)
    if residual is None:
        return mixed
    residual = op.Mul(by_row(residual, longest), real(lengths, longest))
    return op.Add(mixed, flat(convolve(residual, residual_parameters, residual_skip, transform)))


def convolve(signal, parameters, skip, transform):
    """Convolve each channel of (H, B, L) with its filter in both directions, and add the skip term."""
    re, im = op.Split(transform.forward(signal), axis=3, num_outputs=2)  # (K, H, B, 1, N2)
    taps_re, taps_im = op.Split(transform.forward(two_sided_filter(parameters, transform)), axis=3, num_outputs=2)
    product_re = op.Sub(op.Mul(re, taps_re), op.Mul(im, taps_im))
    product_im = op.Add(op.Mul(re, taps_im), op.Mul(im, taps_re))
    mixed = transform.inverse(op.Concat(product_re, product_im, axis=3), channels=int(skip.shape[0]))
    return op.Add(mixed, op.Mul(signal, op.Unsqueeze(skip, ints(1, 2))))


def two_sided_filter(parameters, transform):
    """Return [h_0 .. h_{L-1}, zeros, r_{L-1} .. r_0], (H, 1, N), of the parameters of `m2bert_filter`."""
    features, frequency, input_weight, input_bias, hidden_weight, hidden_bias, output_weight, time, decay = parameters
    length, n = transform.length, transform.n
    places = count_to(length)
    places = op.Concat(places, op.Sub(op.Sub(length, ints(1)), places), axis=0)
    places = op.Reshape(places, ints(2, -1))  # (2, L): upwards for h, downwards for r
    frequency = op.Unsqueeze(frequency, ints(1))

    def sine_layer(weight, bias, x):
        return op.Sin(op.Mul(frequency, op.Add(op.MatMul(weight, x), op.Unsqueeze(bias, ints(2)))))

    x = op.Transpose(op.Gather(features, places), perm=[0, 2, 1])  # (2, E, L)
    x = sine_layer(input_weight, input_bias, x)  # (2, O, L)
    for layer in range(int(hidden_weight.shape[0])):
        x = sine_layer(*(op.Gather(stack, constant(layer)) for stack in (hidden_weight, hidden_bias)), x)
    times = op.Unsqueeze(op.Gather(time, places), ints(1))  # (2, 1, L)
    taps = op.Mul(op.MatMul(output_weight, x), op.Exp(op.Mul(op.Neg(op.Unsqueeze(decay, ints(1))), times)))
    h, r = op.Split(taps, axis=0, num_outputs=2)  # (1, H, L)
    zeros = op.Concat(ints(0, 0, 0, 0, 0), op.Sub(n, op.Mul(length, ints(2))), axis=0)
    return op.Transpose(op.Concat(op.Pad(h, zeros), r, axis=2), perm=[1, 0, 2])


class Transform:
    """The DFT of N real samples as matrix products, and its inverse. N is a power of two, at least 2 L.

        X[k1 + N1 k2] = sum_n2 exp(-2 pi i n2 (k1 + N1 k2) / N) sum_n1 exp(-2 pi i n1 k1 / N1) x[N2 n1 + n2]

    with N = N1 N2. Of real samples, those k1 that are at most N1 / 2 tell all: K = N1 / 2 + 1 of them.

    Args:
        length: (1,), L.
        most: the largest L.
    """

    def __init__(self, length, most: int):
        exponents = np.arange(1, math.ceil(math.log2(most)) + 2)
        sizes = constant(2**exponents)
        index = op.ArgMax(op.Cast(op.GreaterOrEqual(sizes, op.Mul(length, ints(2))), to=INT64), axis=0)
        self.length = length
        self.n = op.Gather(sizes, index)
        self.n1 = op.Gather(constant(2 ** np.minimum(exponents, (exponents + 2) // 2)), index)
        self.n2 = op.Div(self.n, self.n1)
        half = op.Div(self.n1, ints(2))
        self.k = op.Add(half, ints(1))
        k1, n1, n2 = count_to(self.k), count_to(self.n1), count_to(self.n2)
        cos, sin = waves(op.Mul(op.Unsqueeze(k1, ints(1)), n1), self.n1)
        self.first = op.Concat(cos, op.Neg(sin), axis=0)  # (2K, N1): from n1 to real and imaginary parts of k1
        has_no_mirror = op.Or(op.Equal(k1, ints(0)), op.Equal(k1, half))
        weight = op.Div(op.Where(has_no_mirror, constant(1.0), constant(2.0)), op.Cast(self.n, to=FLOAT))
        self.last = op.Mul(op.Transpose(self.first, perm=[1, 0]), op.Concat(weight, weight, axis=0))  # (N1, 2K)
        k = op.Add(op.Unsqueeze(k1, ints(1)), op.Mul(n2, self.n1))  # (K, k2)
        cos, sin = waves(op.Mul(op.Unsqueeze(n2, ints(1)), op.Unsqueeze(k, ints(1))), self.n)  # (K, n2, k2)
        self.second = op.Concat(  # (K, 2 N2, 2 N2): for each k1, from [re | im] of n2 to [re | im] of k2
            op.Concat(cos, op.Neg(sin), axis=2), op.Concat(sin, cos, axis=2), axis=1
        )

    def forward(self, x):
        """Transform (C, B, M), M <= N -> (K, C, B, 2, N2), real and imaginary parts."""
        missing = op.Mod(op.Neg(op.Shape(x, start=2)), self.n2)
        padded = op.Pad(x, op.Concat(ints(0, 0, 0, 0, 0), missing, axis=0))
        samples = op.Reshape(padded, op.Concat(op.Shape(x, end=2), ints(-1), self.n2, axis=0))  # (C, B, M / N2, N2)
        first = op.Slice(self.first, ints(0), op.Shape(samples, start=2, end=3), ints(1))
        parts = op.Reshape(op.MatMul(first, samples), op.Concat(ints(-1, 2), self.k, self.n2, axis=0))
        parts = self._by_frequency(op.Transpose(parts, perm=[2, 0, 1, 3]))
        return op.Reshape(
            op.MatMul(parts, self.second), op.Concat(self.k, op.Shape(x, end=2), ints(2), self.n2, axis=0)
        )

    def inverse(self, x, channels: int):
        """Return the first L samples: (K, C, B, 2, N2) -> (C, B, L)."""
        parts = op.MatMul(self._by_frequency(x), op.Transpose(self.second, perm=[0, 2, 1]))
        parts = op.Reshape(parts, op.Concat(self.k, ints(-1, 2), self.n2, axis=0))
        parts = op.Transpose(parts, perm=[1, 2, 0, 3])
        parts = op.Reshape(parts, op.Concat(ints(-1), op.Mul(self.k, ints(2)), self.n2, axis=0))  # (C B, 2K, N2)
        rows = op.Div(op.Add(self.length, op.Sub(self.n2, ints(1))), self.n2)
        samples = op.MatMul(op.Slice(self.last, ints(0), rows, ints(0)), parts)
        samples = op.Reshape(samples, op.Concat(ints(channels, -1), op.Mul(rows, self.n2), axis=0))
        return op.Slice(samples, ints(0), self.length, ints(2))

    def _by_frequency(self, x):
        """Reshape (K, .., 2, N2) -> (K, .., 2 N2), with one dimension in place of the dots."""
        return op.Reshape(x, op.Concat(self.k, ints(-1), op.Mul(self.n2, ints(2)), axis=0))


def waves(product, period):
    """Return cosine and sine of 2 pi product / period. The quotient's whole part is taken off in integers."""
    turns = op.Div(op.Cast(op.Mod(product, period), to=FLOAT), op.Cast(period, to=FLOAT))
    angles = op.Mul(turns, constant(2 * math.pi))
    return op.Cos(angles), op.Sin(angles)


def block_diagonal_glu(x, up, down, bias, dropout, seed, kernels):
    """Return down(gelu(gate) * value), (T, H)."""
    blocks = int(up.shape[0])

    def multiply(x, weight):
        x = op.Reshape(x, ints(-1, blocks, int(weight.shape[2])))
        x = op.MatMul(op.Transpose(x, perm=[1, 0, 2]), op.Transpose(weight, perm=[0, 2, 1]))  # (K, T, out / K)
        return op.Reshape(op.Transpose(x, perm=[1, 0, 2]), ints(-1, blocks * int(weight.shape[1])))

    gate, value = op.Split(multiply(x, up), axis=1, num_outputs=2)
    return op.Add(multiply(op.Mul(op.Gelu(gate), value), down), bias)


def add_layer_norm(x, y, weight, bias, eps, kernels):
    """Return LayerNorm(x + y), (H, T)."""
    normed = op.LayerNormalization(op.Add(x, y), weight, bias, axis=-1, epsilon=eps)
    return op.Transpose(normed[0] if isinstance(normed, tuple) else normed, perm=[1, 0])


def searchsorted(ordered, values, right=False, **others):
    """Return torch.searchsorted(ordered, values), (B, L), where `ordered` are the rows of `values`, sorted.

    So the place of a value is the number of values in its row that are less, or with `right` not greater.
    """
    rows = op.Unsqueeze(count_to(op.Shape(values, end=1)), ints(1))
    kinds = op.Add(op.ReduceMax(values), ints(2))  # values are -1 or more. The keys must fit into 32 bits
    keys = op.Reshape(op.Add(values, op.Mul(rows, kinds)), ints(-1))  # other rows have other keys
    _, _, places, counts = op.Unique(keys)
    ends = op.CumSum(counts, constant(0))
    found = op.Gather(ends if right else op.Sub(ends, counts), places)
    return op.Sub(op.Reshape(found, op.Shape(values)), op.Mul(rows, op.Shape(values, start=1)))


def real(lengths, longest):
    """Return (B, L), 1 at real positions and 0 in padding."""
    places = count_to(op.Reshape(longest, ints(1)))
    return op.Cast(op.Less(places, op.Unsqueeze(op.Cast(lengths, to=INT64), ints(1))), to=FLOAT)


def by_row(x, longest):
    """Reshape (C, T) -> (C, B, L)."""
    return op.Reshape(x, op.Concat(ints(0, -1), op.Reshape(longest, ints(1)), axis=0))


def flat(x):
    """Reshape (C, B, L) -> (C, T)."""
    return op.Reshape(x, ints(0, -1))


def count_to(end):
    """Return 0, 1, .. end - 1 for `end` (1,)."""
    return op.Range(constant(0), op.Squeeze(end), constant(1))


def ints(*values: int):
    """Return a constant (number of values,) int64."""
    return op.Constant(value_ints=list(values))


def constant(value):
    """Return a constant: integers as int64, other numbers as float32."""
    array = np.asarray(value)
    return op.Constant(value=ir.tensor(array.astype(np.int64 if array.dtype.kind == "i" else np.float32)))
