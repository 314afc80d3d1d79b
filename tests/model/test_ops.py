"""The operations on plain PyTorch against their definitions in float64, gradients included; what the door refuses."""

import contextlib
import math
import sys
import types

import pytest
import references
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from modeling_m2bert import (
    M2BertModel,
    m2bert_ops_dispatch,
    m2bert_ops_product,
    m2bert_ops_torch,
    m2bert_ops_torch_conv,
    m2bert_ops_triton,
)
from modeling_m2bert.m2bert_layers import ChannelLinear, TokenLinear
from modeling_m2bert.m2bert_ops import add_layer_norm, block_diagonal_glu, cached_long_conv, long_conv, short_conv_gate
from modeling_m2bert.m2bert_ops_dispatch import choose_kernels
from modeling_m2bert.m2bert_ops_torch_conv import prepare_filter, transform_length


def rows(*slots_and_lengths):
    """offsets, lengths, longest of rows given as (columns, tokens)."""
    slots, lengths = zip(*slots_and_lengths, strict=True)
    offsets = torch.tensor([0, *slots]).cumsum(0).int()
    return offsets, torch.tensor(lengths, dtype=torch.int32), max(slots)


ROWS = [rows((1, 1)), rows((2, 2), (1, 1)), rows((31, 31), (7, 7), (16, 16)), rows((20, 13), (5, 0), (20, 20))]


def direct_long_conv(gated, gate, residual, taps, residual_taps, skip, residual_skip, offsets, lengths, longest):
    signals = gated, gate, residual, taps, residual_taps, skip, residual_skip
    return references.long_conv(references.toeplitz_convolution, offsets, lengths, *signals)


def assert_same(ours, theirs, arguments, tolerance=1e-11):
    """Outputs and the gradients of every argument along a fixed direction."""
    differentiable = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    outputs = [f(*arguments) for f in (ours, theirs)]
    outputs = [output if isinstance(output, tuple) else (output,) for output in outputs]
    directions = [torch.randn(o.shape, generator=torch.Generator().manual_seed(1), dtype=o.dtype) for o in outputs[1]]
    gradients = [torch.autograd.grad(output, differentiable, directions, allow_unused=True) for output in outputs]
    for actual, expected in zip((*outputs[0], *gradients[0]), (*outputs[1], *gradients[1]), strict=True):
        expected = torch.zeros_like(actual) if expected is None else expected
        assert torch.isfinite(actual).all()
        assert actual.shape == expected.shape
        assert actual.numel() == 0 or (actual - expected).abs().max() <= tolerance


def randoms(*shapes):
    torch.manual_seed(0)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def poison(offsets, lengths, *tensors):
    """NaN in every padded column: nothing may read them."""
    with torch.no_grad():
        for x in tensors:
            for start, end, n in zip(offsets.tolist(), offsets.tolist()[1:], lengths.tolist(), strict=False):
                x[:, start + n : end] = math.nan


@pytest.mark.parametrize("at", ROWS)
@pytest.mark.parametrize("residual", [True, False])
def test_long_conv_is_the_two_sided_sum(at, residual, monkeypatch):
    monkeypatch.setattr(m2bert_ops_torch_conv, "_group_elements", lambda *sizes: 100)  # several groups of channels
    signals, taps, skips = ((5, int(at[0][-1])),) * 3, ((2, 5, 33),) * 2, ((5,),) * 2
    x, gate, u, h, residual_h, d, residual_d = randoms(*signals, *taps, *skips)
    poison(*at[:2], x, gate, u)
    if not residual:
        u = residual_h = residual_d = None
    assert_same(long_conv, direct_long_conv, [x, gate, u, h, residual_h, d, residual_d, *at])


@pytest.mark.parametrize("at", ROWS)
def test_short_conv_gate_is_causal_and_starts_every_row_anew(at):
    projected, *parameters = randoms((9, int(at[0][-1])), (9,), (9, 3), (9,))
    poison(*at[:2], projected)
    assert_same(short_conv_gate, references.short_conv_gate, [projected, *parameters, *at])


@pytest.mark.parametrize("tokens", [0, 1, 513])
@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_block_diagonal_glu_equals_its_dense_matrices(blocks, tokens):
    assert_same(block_diagonal_glu, references.glu, randoms((tokens, 12), (blocks, 48 // blocks, 12 // blocks),
                                                        (blocks, 12 // blocks, 24 // blocks), (12,)), 1e-9)  # fmt: skip


def test_dropout_drops_what_it_says_and_the_same_in_backward():
    torch.manual_seed(0)
    x, up = torch.ones(600, 8, dtype=torch.float64), torch.ones(2, 64, 4, dtype=torch.float64)
    down = torch.zeros(2, 4, 32, dtype=torch.float64)
    down[:, 0, 5] = 1  # output channel 0 of each block is one product
    x.requires_grad_()
    y = block_diagonal_glu(x, up, down, torch.zeros(8, dtype=torch.float64), dropout=0.25)
    full = F.gelu(torch.tensor(4.0, dtype=torch.float64)) * 4
    kept = y[:, ::4] != 0
    assert 0.7 < kept.double().mean() < 0.8
    assert torch.allclose(y[:, ::4][kept], full / 0.75)
    agreeing = (kept[:88] == kept[512:]).double().mean()  # two chunks of tokens: 0.75 ** 2 + 0.25 ** 2 if independent
    assert 0.5 < agreeing < 0.75
    (gradient,) = torch.autograd.grad(y.sum(), x)
    assert torch.equal(gradient[:, :4].sum(1) != 0, kept.any(1))


def test_dropout_does_not_depend_on_the_default_dtype():
    x, up, down, bias = randoms((600, 8), (2, 64, 4), (2, 4, 32), (8,))
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        torch.set_default_dtype(dtype)
        try:
            found.append(block_diagonal_glu(x, up, down, bias, dropout=0.002))
        finally:
            torch.set_default_dtype(torch.float32)
    assert torch.equal(*found)


@pytest.mark.parametrize("tokens", [0, 1, 513])
def test_add_layer_norm_equals_its_composite(tokens):
    def direct(x, y, weight, bias):
        return F.layer_norm(x + y, weight.shape, weight, bias, 1e-12)

    assert_same(lambda *a: add_layer_norm(*a, 1e-12), direct, randoms((tokens, 6), (tokens, 6), (6,), (6,)), 1e-8)
    assert add_layer_norm(*randoms((4, 6), (4, 6), (6,), (6,)), 1e-12).T.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_long_conv_of_half_precision_is_computed_in_float32(dtype):
    at = rows((30, 30))
    arguments = [x.detach() for x in randoms((4, 30), (4, 30), (4, 30), (2, 4, 30), (2, 4, 30), (4,), (4,))]
    x, gate, u = (x.to(dtype) for x in arguments[:3])
    y = long_conv(x, gate, u, *(p.float() for p in arguments[3:]), *at)
    assert y.dtype == dtype
    exact = long_conv(x.double(), gate.double(), u.double(), *(p.float().double() for p in arguments[3:]), *at)
    assert (y.double() - exact).abs().max() <= torch.finfo(dtype).eps * exact.abs().max()


def test_spectra_of_long_filters_are_kept_in_half_precision_for_half_precision_only(monkeypatch):
    monkeypatch.setattr(m2bert_ops_torch_conv, "HALF_PRECISION_BEYOND", 16)
    at, m = rows((20, 20)), transform_length(20)
    x, gate, taps, skip = (p.detach().float() for p in randoms((4, 20), (4, 20), (2, 4, 20), (4,)))
    taps *= 1e-6 * torch.tensor([1.0, 1e3, 1e-3, 1e12])[:, None]  # far outside the range of float16
    exact = prepare_filter(taps, m, torch.float32)
    assert [part.dtype for part in exact] == [torch.complex64]
    prepared = prepare_filter(taps, m, torch.bfloat16)
    assert prepared[0].dtype == torch.float16
    kept = m2bert_ops_torch_conv._spectrum(prepared, slice(None))[:, 0]
    largest = exact[0].abs().amax(1, keepdim=True)
    assert ((kept - exact[0]).abs() / largest).max() < 6e-4
    half = m2bert_ops_torch_conv.long_conv(x, gate, None, lambda m: (prepared, None), skip, None, *at)
    assert torch.isfinite(half).all()


def test_a_row_costs_and_gives_what_it_would_alone(monkeypatch):
    """Transforms are as long as their row needs, and batch mates change it by no more than rounding does."""
    sizes, rfft = [], torch.fft.rfft
    monkeypatch.setattr(torch.fft, "rfft", lambda x: sizes.append(x.shape[-1]) or rfft(x))
    arguments = [x.detach() for x in randoms((4, 310), (4, 310), (4, 310), (2, 4, 300), (2, 4, 300), (4,), (4,))]
    together = long_conv(*arguments, *rows((10, 10), (300, 300)))
    assert {20, 640} == set(sizes)
    alone = long_conv(*(x[:, :10] for x in arguments[:3]), *arguments[3:], *rows((10, 10)))
    row = [x.double() for x in (*(x[:, :10] for x in arguments[:3]), *arguments[3:])]
    exact = long_conv(*row, *rows((10, 10)))
    assert (together[:, :10] - exact).abs().max() <= 2 * (alone - exact).abs().max()


def test_transform_length_is_long_enough_and_never_much_longer():
    lengths = [transform_length(longest) for longest in range(1, 70000, 7)]
    assert all(longest <= m <= 4 / 3 * longest + 1 for longest, m in zip(range(1, 70000, 7), lengths, strict=True))
    assert len(set(lengths)) <= 3 * 17


def test_columns_need_not_be_contiguous():
    at = rows((6, 6))
    arguments = randoms((4, 6), (4, 6), (4, 6), (2, 4, 6), (2, 4, 6), (4,), (4,))
    transposed = [x.detach().T.contiguous().T for x in arguments[:3]]
    assert torch.equal(long_conv(*transposed, *arguments[3:], *at), long_conv(*arguments, *at))
    projected, *rest = randoms((6, 5), (6,), (6, 3), (6,))
    at = rows((5, 5))
    expected = short_conv_gate(projected, *rest, *at)
    assert all(map(torch.equal, short_conv_gate(projected.T.contiguous().T, *rest, *at), expected))


def zeros(**shapes):
    return {name: torch.zeros(shape) for name, shape in shapes.items()}


GOOD = {
    long_conv: zeros(gated=(4, 6), gate=(4, 6), residual=(4, 6), taps=(2, 4, 6), residual_taps=(2, 4, 6), skip=(4,),
                     residual_skip=(4,)),
    short_conv_gate: zeros(projected=(6, 6), projection_bias=(6,), weight=(6, 3), bias=(6,)),
    block_diagonal_glu: zeros(x=(3, 4), up=(2, 8, 2), down=(2, 2, 4), bias=(4,)),
    add_layer_norm: zeros(x=(3, 5), y=(3, 5), weight=(5,), bias=(5,)) | {"eps": 1e-12},
}  # fmt: skip
for operation in (long_conv, short_conv_gate):
    GOOD[operation] |= {"offsets": torch.tensor([0, 6]), "lengths": torch.tensor([6]), "longest": 6}


@pytest.mark.parametrize(
    ("operation", "change", "message"),
    [
        (long_conv, zeros(taps=(2, 4, 5)), r"its filter \(2, 4, 5\) .* P >= longest=6"),
        (long_conv, zeros(taps=(2, 3, 9)), r"its filter \(2, 3, 9\)"),
        (long_conv, zeros(gate=(4, 7)), r"gate \(4, 7\), .* do not fit gated \(4, 6\)"),
        (long_conv, {"residual": torch.zeros(4, 6).double()}, "in torch.float32"),
        (long_conv, {"residual": None}, "residual None"),
        (long_conv, {"residual_taps": None}, "its filter None"),
        (long_conv, {"residual_skip": None}, "skip term None"),
        (long_conv, zeros(skip=(1,)), r"skip term \(1,\)"),
        (long_conv, {"lengths": torch.tensor([7])}, r"lengths=\[7\]"),
        (long_conv, {"lengths": torch.tensor([-1])}, r"lengths=\[-1\]"),
        (long_conv, {"longest": 5}, "longest=5"),
        (long_conv, {"offsets": torch.tensor([0, 4])}, r"offsets=\[0, 4\] must rise from 0 to the 6 columns"),
        (long_conv, {"offsets": torch.tensor([0, 3, 6])}, r"expected \(B \+ 1,\) and \(B,\)"),
        (long_conv, {"kernels": "cuda"}, "kernels='cuda' is unknown; choose one of auto, torch, triton"),
        (short_conv_gate, zeros(projection_bias=(1,)), r"projected .* do not fit: expected \(3H, T\)"),
        (short_conv_gate, zeros(projected=(5, 6)), r"projected .* do not fit: expected \(3H, T\)"),
        (block_diagonal_glu, zeros(bias=(1,)), "do not fit"),
        (block_diagonal_glu, zeros(x=(3, 5)), "do not fit"),
        (block_diagonal_glu, {"dropout": 1.0}, "dropout=1.0 must be a probability below 1"),
        (add_layer_norm, zeros(y=(2, 5)), r"do not fit: expected \(T, H\), \(T, H\), \(H,\) and \(H,\)"),
        (add_layer_norm, zeros(weight=(1,)), "do not fit"),
    ],
)
def test_bad_arguments_are_named(operation, change, message):
    operation(**GOOD[operation])
    with pytest.raises(ValueError, match=message):
        operation(**GOOD[operation] | change)


@pytest.mark.parametrize(
    ("operation", "name"),
    [(operation, name) for operation, good in GOOD.items() for name, each in good.items()
     if isinstance(each, torch.Tensor) and each.is_floating_point()],
)  # fmt: skip
def test_one_argument_without_values_is_an_error(operation, name):
    with pytest.raises((RuntimeError, ValueError), match="meta"):
        operation(**GOOD[operation] | {name: GOOD[operation][name].to("meta")})


def test_parameters_for_fewer_positions_than_tokens_are_refused(tiny_config):
    source = M2BertModel(tiny_config()).layers[0].mixer.filter
    x = torch.zeros(32, 20)
    with pytest.raises(ValueError, match=r"its filter \(2, 32, 8\) .* longest=20"):
        cached_long_conv(x, x, None, source.parameters_for(8), None, source.skip, None, *rows((20, 20)), (0, 1))


def test_weight_gradients_of_half_precision_do_not_drown_in_many_tokens():
    """Sums over chunks of tokens are kept in float32: at 33 chunks their rounding would show."""
    torch.manual_seed(0)
    x = torch.rand(33 * 512, 4, dtype=torch.bfloat16)
    weights = [torch.rand(1, 8, 4), torch.rand(1, 4, 4), torch.rand(4)]
    gradients = {}
    for dtype in (torch.bfloat16, torch.float64):
        leaves = [w.bfloat16().to(dtype).requires_grad_() for w in weights]
        block_diagonal_glu(x.to(dtype), *leaves).sum().backward()
        gradients[dtype] = [leaf.grad.double() for leaf in leaves]
    for half, exact in zip(gradients[torch.bfloat16], gradients[torch.float64], strict=True):
        assert ((half - exact).norm() / exact.norm()) < 6e-3


def test_kernels_are_chosen_by_argument_then_environment_then_device(monkeypatch):
    x = torch.zeros(1)
    monkeypatch.delenv("M2BERT_KERNELS", raising=False)
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert choose_kernels("", x) == "torch"
    monkeypatch.setenv("M2BERT_KERNELS", "fast")
    with pytest.raises(ValueError, match="M2BERT_KERNELS='fast' is unknown; choose one of auto, torch, triton"):
        choose_kernels("", x)
    assert choose_kernels("torch", x) == "torch"
    monkeypatch.setenv("M2BERT_KERNELS", "triton")
    with pytest.raises(ValueError, match="M2BERT_KERNELS='triton' cannot be had: .*(NVIDIA GPU|not installed)"):
        choose_kernels("", x)
    assert choose_kernels("", x.double()) == "torch"


def test_triton_that_is_not_installed_is_named_where_it_is_wanted_and_else_not_looked_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    m2bert_ops_dispatch._triton.cache_clear()
    for _ in range(3):
        assert choose_kernels("auto", torch.zeros(1)) == "torch"
    assert m2bert_ops_dispatch._triton.cache_info().misses == 0
    with pytest.raises(ValueError, match="kernels='triton' cannot be had: the package triton is not installed"):
        choose_kernels("triton", torch.zeros(1))
    m2bert_ops_dispatch._triton.cache_clear()


@pytest.fixture
def gpus(monkeypatch):
    """Stand for a machine with an old GPU 0 and a new GPU 1. The fixture is a function of a number, and returns what
    choose_kernels reads of a tensor on that GPU. `gpus.launches` are the GPUs that a kernel was launched on."""

    def on(index):
        return types.SimpleNamespace(dtype=torch.float32, device=torch.device("cuda", index), is_cuda=True)

    @contextlib.contextmanager
    def current(device):
        on.current = device.index
        yield
        on.current = 0

    caches = [m2bert_ops_dispatch._triton, m2bert_ops_dispatch._capability, m2bert_ops_dispatch._launch_failure]
    caches.append(m2bert_ops_dispatch._announce)
    on.launches, on.current = [], 0
    for each in caches:
        each.cache_clear()
    monkeypatch.delenv("M2BERT_KERNELS", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: ((7, 5), (9, 0))[device.index])
    monkeypatch.setattr(torch.cuda, "device", current)
    monkeypatch.setattr(m2bert_ops_triton, "nothing", {(1,): lambda number: on.launches.append(on.current)}, False)
    yield on
    for each in caches:
        each.cache_clear()


def test_each_gpu_is_judged_by_its_own_capability(gpus):
    pytest.importorskip("triton")
    assert [choose_kernels("", gpus(index)) for index in (0, 1, 0, 1)] == ["torch", "triton"] * 2
    assert gpus.launches == [1]
    assert choose_kernels("triton", gpus(1)) == "triton"
    with pytest.raises(ValueError, match="older than compute capability 8.0"):
        choose_kernels("triton", gpus(0))


def test_triton_is_imported_for_a_gpu_that_can_use_it_and_once(gpus, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for _ in range(60):  # as many operations as twelve layers have
        assert choose_kernels("", gpus(0)) == "torch"
    assert m2bert_ops_dispatch._triton.cache_info().misses == 0
    for _ in range(60):
        assert choose_kernels("", gpus(1)) == "torch"
    assert m2bert_ops_dispatch._triton.cache_info().misses == 1


@pytest.mark.parametrize("tokens", [1, 5, 300])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_the_norm_reads_any_layout_and_changes_no_input(tokens, dtype):
    x, y, weight, bias = (tensor.detach().to(dtype) for tensor in randoms((tokens, 16), (tokens, 16), (16,), (16,)))
    expected = F.layer_norm((x.double() + y.double()), (16,), weight.double(), bias.double(), 1e-5)
    for first in (x, x.T.contiguous().T):
        for second in (y, y.T.contiguous().T):
            before = first.clone(), second.clone()
            z = m2bert_ops_torch.add_layer_norm(first, second, weight, bias, 1e-5)
            assert (z.double() - expected).abs().max() < (0.05 if dtype == torch.bfloat16 else 1e-12)
            assert z.T.is_contiguous()
            assert torch.equal(first, before[0])
            assert torch.equal(second, before[1])


def test_rocm_is_named(gpus, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert choose_kernels("auto", gpus(1)) == "torch"
    with pytest.raises(ValueError, match="kernels='triton' cannot be had: the GPU is AMD's"):
        choose_kernels("triton", gpus(1))


def test_without_a_compiler_auto_falls_back_with_one_warning(gpus, monkeypatch, caplog):
    pytest.importorskip("triton")
    tried = []

    def fail(number):
        tried.append(number)
        raise RuntimeError("Failed to find C compiler.")

    monkeypatch.setattr(m2bert_ops_triton, "nothing", {(1,): fail})
    for _ in range(3):
        assert choose_kernels("auto", gpus(1)) == "torch"
    assert len(tried) == 1
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "torch kernels: triton cannot launch a kernel: Failed to find C compiler." in warning.getMessage()
    assert choose_kernels("triton", gpus(1)) == "triton"


def test_the_trivial_kernel_can_be_launched(device):
    pytest.importorskip("triton")
    with torch.cuda.device_of(torch.zeros(1, device=device)):
        m2bert_ops_triton.nothing[(1,)](0)


@pytest.mark.parametrize("shape", [(5, 6), (2, 5, 6)])
def test_projections_of_rows_and_of_batches_of_rows(shape):
    """Values and gradients against float64, in float32."""
    torch.manual_seed(0)
    layer, x = TokenLinear(6, 4), torch.randn(shape, requires_grad=True)
    exact, wide = torch.nn.Linear(6, 4).double(), x.detach().double().requires_grad_()
    exact.load_state_dict(layer.state_dict())
    for given, module in ((x, layer), (wide, exact)):
        module(given).square().sum().backward()
    torch.testing.assert_close(layer(x).double(), exact(wide), rtol=1e-5, atol=1e-6)
    for mine, theirs in zip((x, *layer.parameters()), (wide, *exact.parameters()), strict=True):
        torch.testing.assert_close(mine.grad.double(), theirs.grad, rtol=1e-5, atol=1e-5)


class Products(TorchDispatchMode):
    """Collect the names and the dtypes of all products of matrices."""

    def __init__(self):
        super().__init__()
        self.names, self.dtypes = set(), set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        if name in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "linear", "_linear_pointwise"):
            self.names.add(name)
            self.dtypes |= {x.dtype for x in args if isinstance(x, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="needs torch with oneDNN")
@pytest.mark.parametrize(
    ("processor", "tokens", "by_onednn"),
    [
        ({"avx512_f": True, "cpu_name": "AMD EPYC"}, 70, True),
        ({"avx512_f": True, "cpu_name": "Intel Xeon"}, 70, False),
        ({"avx512_f": False, "cpu_name": "AMD EPYC"}, 70, False),
        ({"avx512_f": False, "cpu_name": "AMD EPYC"}, 2, True),
        ({}, 2, False),
    ],
)
def test_products_by_either_library_are_exact(processor, tokens, by_onednn, monkeypatch):
    """Values and gradients in float32 against float64, and which library is asked on which processor."""
    monkeypatch.setattr(m2bert_ops_product, "_capabilities", lambda: processor)
    monkeypatch.setattr(m2bert_ops_product, "_is_faster_by_onednn", m2bert_ops_product._is_faster_by_onednn.__wrapped__)
    tensors = [x.detach() / 4 for x in randoms((tokens, 16), (2, 32, 8), (2, 8, 16), (16,), (80, 16))]

    def run(dtype):
        x, up, down, bias, weight = (w.to(dtype).requires_grad_() for w in tensors)
        layer = ChannelLinear(16, 80, bias=False)
        layer.weight = torch.nn.Parameter(weight.detach())
        y, z = layer(x), block_diagonal_glu(x, up, down, bias)
        return y, z, *torch.autograd.grad(y.square().sum() + z.square().sum(), (x, up, down, bias, layer.weight))

    with Products() as products:
        found = run(torch.float32)
    assert ("_linear_pointwise" in products.names) == by_onednn
    for ours, right in zip(found, run(torch.float64), strict=True):
        assert ((ours - right).norm() / right.norm()).item() < 1e-6


@pytest.mark.parametrize("stride", [0, 1, 3])
def test_a_bias_may_have_any_stride(stride, monkeypatch):
    monkeypatch.setattr(m2bert_ops_product, "by_onednn", lambda x, weight: True)
    x, weight, memory = (each.detach().float() for each in randoms((40, 16), (24, 16), (24 * 3,)))
    bias = memory.as_strided((24,), (stride,))
    right = x.double() @ weight.double().T + bias
    assert (m2bert_ops_product.product(x, weight, bias) - right).abs().max() < 1e-5


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_without_instructions_for_them_are_computed_in_float32(dtype, autocast, monkeypatch):
    """They are of the same dtype and as exact as in half precision, gradients included."""
    tensors = [x.detach() / 4 for x in randoms((40, 16), (2, 32, 8), (2, 8, 16), (16,), (16, 16), (16,))]

    def run(x_dtype, weights_dtype, slow):
        monkeypatch.setattr(m2bert_ops_product, "SLOW_DTYPES", slow)
        x, *weights = (w.to(x_dtype if w is tensors[0] else weights_dtype).requires_grad_() for w in tensors)
        layer = TokenLinear(16, 16)
        layer.weight, layer.bias = map(torch.nn.Parameter, weights[3:])
        with Products() as products:
            with torch.autocast("cpu", dtype, enabled=autocast and x_dtype == dtype):
                y = layer(x)
            gradients = torch.autograd.grad(y.square().sum(), (x, *layer.parameters()))
        with torch.autocast("cpu", dtype, enabled=autocast and x_dtype == dtype):
            z = block_diagonal_glu(x, *weights[:3])
        found = y, z, *gradients, *torch.autograd.grad(z.square().sum(), (x, *weights[:3]))
        return found, products.dtypes

    exact, _ = run(torch.float64, torch.float64, ())
    weights = torch.float32 if autocast else dtype
    (narrow, _), (wide, dtypes) = (run(dtype, weights, slow) for slow in ((), (dtype,)))
    assert dtypes == {torch.float32}
    for ours, theirs, right in zip(wide, narrow, exact, strict=True):
        errors = [((each - right).norm() / right.norm()).item() for each in (ours, theirs)]
        assert ours.dtype == theirs.dtype
        assert errors[0] < 0.02
        assert errors[0] < 1.1 * errors[1]


def test_autocast_leaves_float64_alone_and_dtypes_that_differ_are_refused(monkeypatch):
    monkeypatch.setattr(m2bert_ops_product, "SLOW_DTYPES", (torch.bfloat16,))
    layer = TokenLinear(6, 4)
    with pytest.raises(RuntimeError, match="dtype"):
        layer(torch.randn(5, 6, dtype=torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer.double()(torch.randn(5, 6, dtype=torch.float64)).dtype == torch.float64


def test_no_block_of_the_feed_forward_network_is_multiplied_in_a_dtype_without_instructions(monkeypatch):
    monkeypatch.setattr(m2bert_ops_product, "SLOW_DTYPES", (torch.bfloat16,))
    x, up, down, bias = (w.detach().bfloat16() for w in randoms((40, 16), (2, 32, 8), (2, 8, 16), (16,)))
    with Products() as products:
        y = m2bert_ops_torch.block_diagonal_glu(x, up, down, bias, 0.0, None)
        dx, *_ = m2bert_ops_torch.block_diagonal_glu_backward(y, x, up, down, 0.0, None)
    assert products.dtypes == {torch.float32}
    assert y.dtype == dx.dtype == torch.bfloat16
