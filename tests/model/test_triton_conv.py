"""The long convolution's kernels against float64, gradients too, in Triton's interpreter where there is no GPU; and
all of them as they are launched, compiled for Hopper."""

import itertools
import weakref

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from references import (  # noqa: E402
    NAMES,
    Case,
    fft_convolution,
    half_convolution,
    relative_error,
    toeplitz_convolution,
)  # fmt: skip

from modeling_m2bert import m2bert_ops_filter  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_conv as conv  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_conv_backward as backward  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_dft as dft  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_fused as fused  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_stages as stages  # noqa: E402

HALF_BOUND = 6e-4  # relative to float64
FORMS = {
    "toeplitz": (conv.long_conv_toeplitz, dft.transform_length),
    "fused": (conv.long_conv_fused, lambda longest: max(dft.transform_length(longest), 512)),
    "three_kernels": (conv.long_conv_three_kernels, lambda longest: max(dft.transform_length(longest), 512)),
}
SHORT = [([1], [1]), ([2, 0, 17], [2, 3, 17]), ([64, 1, 65], [64, 2, 66]), ([255, 256], [256, 256])]
LONG = [([257], [257]), ([511, 512, 1], [511, 512, 3]), ([1024, 31], [1024, 1024])]


def run(form, case, arguments=None):
    """y of one form, from arguments with NaN in padding."""
    gated, gate, residual, taps, residual_taps, skip, residual_skip = arguments or case.arguments
    function, transform_length = FORMS[form]
    m = transform_length(case.longest)
    prepared = [None if t is None else conv.prepare_filter(t, m, gated.dtype) for t in (taps, residual_taps)]
    signals = [case.poison(signal) for signal in (gated, gate, residual)]
    return function(*signals, *prepared, skip, residual_skip, *case.rows, m)


def check(form, case, hold_to_composite):
    y, exact = run(form, case), case.expected(toeplitz_convolution, torch.float64)
    if y.dtype == torch.float32:
        hold_to_composite({"y": y}, case.expected(fft_convolution, torch.float32), exact)
        return
    emulated = case.expected(half_convolution, torch.float64)["y"].to(y.dtype)
    ours, theirs = relative_error(y, exact["y"]), relative_error(emulated, exact["y"])
    assert ours <= 2 * theirs, f"error {ours:.2e}, emulated {theirs:.2e}"
    assert ours <= HALF_BOUND, f"error {ours:.2e}"
    assert (y[:, ~case.real] == 0).all()


def forms():
    """Form, lengths, slots and dtype of what is checked."""
    for form, batches in (("toeplitz", SHORT), ("fused", LONG), ("three_kernels", [*LONG, ([5, 1], [5, 2])])):
        for dtype in (torch.float16,) if form == "fused" else (torch.float32, torch.float16):
            yield from ((form, *batch, dtype, 2) for batch in batches)
    for length in (2048, 2311, 4096, 7919):
        for form in ("fused", "three_kernels"):
            yield pytest.param(form, [length], [length], torch.float16, 1, marks=pytest.mark.slow)


@pytest.mark.parametrize(("form", "lengths", "slots", "dtype", "channels"), list(forms()))
def test_each_form(form, lengths, slots, dtype, channels, device, poisoned, hold_to_composite):
    check(form, Case(lengths, slots, dtype, device, channels=channels), hold_to_composite)


def test_number_of_rows_that_is_no_power_of_two(device, poisoned, hold_to_composite):
    assert dft.factors(dft.transform_length(8209)) == (160, 64)
    case = Case([8209], [8209], torch.float16, device, channels=1, with_residual=False)
    assert relative_error(run("three_kernels", case), case.expected(fft_convolution, torch.float64)["y"]) < HALF_BOUND


@pytest.mark.slow
@pytest.mark.parametrize("length", [16001, 20011, 32768])
def test_very_long_rows(length, device, poisoned):
    for dtype, bound in ((torch.float16, HALF_BOUND), (torch.float32, 1e-6)):
        case = Case([length], [length], dtype, device, channels=1, with_residual=False)
        exact = case.expected(fft_convolution, torch.float64)["y"]
        assert relative_error(run("three_kernels", case), exact) < bound


@pytest.mark.parametrize(("form", "length"), [("toeplitz", 40), ("fused", 300), ("three_kernels", 300)])
def test_without_residual(form, length, device, poisoned):
    case = Case([length, 7], [length, 7], torch.float16, device, with_residual=False)
    assert relative_error(run(form, case), case.expected(toeplitz_convolution, torch.float64)["y"]) < HALF_BOUND


@pytest.mark.parametrize(
    ("longest", "form"), [(256, "toeplitz"), (257, "fused"), (8192, "fused"), (8193, "three_kernels")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_length_and_dtype_choose_the_form(longest, form, dtype, monkeypatch):
    chosen, asked = [], []
    for name, (function, _) in FORMS.items():
        monkeypatch.setattr(conv, function.__name__, lambda *arguments, name=name: chosen.append(name))
    x = torch.zeros(1, longest, dtype=dtype)
    conv.long_conv(x, x, None, lambda m: asked.append(m) or (None, None), None, None, None, None, longest)
    assert chosen == ["three_kernels" if form == "fused" and dtype == torch.float32 else form]
    assert asked == [dft.transform_length(longest)]


@pytest.mark.parametrize(("form", "length"), [("toeplitz", 30), ("fused", 270), ("three_kernels", 270)])
def test_batch_mates_do_not_change_a_row(form, length, device):
    case = Case([9, length, 5], [9, length, 6], torch.float16, device)
    case.arguments[0][:, :9] = float("nan")
    case.arguments[2][:, 9 + length :] = float("inf")
    alone = Case([length], [length], torch.float16, device)
    row = slice(9, 9 + length)
    signals = [signal[:, row] for signal in case.arguments[:3]]
    expected = run(form, alone, [*signals, *case.arguments[3:]])
    assert expected.isfinite().all()
    assert torch.allclose(run(form, case)[:, row], expected, rtol=0, atol=2e-3 * expected.abs().max().item())


@pytest.mark.parametrize(("form", "length"), [("toeplitz", 100), ("fused", 300), ("three_kernels", 300)])
def test_only_taps_within_reach_matter(form, length, device):
    for num_taps in (length + 700, 9):
        case = Case([length], [length], torch.float16, device, num_taps=num_taps, with_residual=False)
        exact = case.expected(lambda x, taps: toeplitz_convolution(x, F.pad(taps, (0, length))), torch.float64)
        assert relative_error(run(form, case), exact["y"]) < HALF_BOUND


def test_groups_of_channels_and_their_strides(device, poisoned, monkeypatch):
    case = Case([270, 3], [270, 3], torch.float16, device, channels=3)
    exact, together = case.expected(toeplitz_convolution, torch.float64)["y"], run("three_kernels", case)
    monkeypatch.setattr(stages, "SCRATCH_BYTES", 1)
    monkeypatch.setattr(stages.Stages, "channels_at_once", lambda self, *rest: 2)
    wide = [F.pad(signal, (3, 4 + i))[:, 3 : 3 + case.columns] for i, signal in enumerate(case.arguments[:3])]
    assert not wide[0].is_contiguous()
    in_groups = run("three_kernels", case, [*wide, *case.arguments[3:]])
    assert relative_error(in_groups, exact) <= 2 * relative_error(together, exact)  # products round by shape


SIZES = (0.0, 1e-7, 1e-3, 1.0, 6000.0, 1e30)
LENGTHS = [200, 700, 2048, *(pytest.param(length, marks=pytest.mark.slow) for length in (8192, 16384))]


def sized(length, dtype, device, sizes=SIZES):
    """A case whose channels have constant rows of these sizes, and noise around 1 with an outlier of 1e6 at the end."""
    case = Case([length], [length], dtype, device, channels=len(sizes) + 1, with_residual=False)
    gated, gate = case.arguments[:2]
    gated[:-1] = torch.tensor(sizes, device=device)[:, None]
    gated[-1, length // 3] = 1e6
    gate.fill_(1)
    taps, skip = (case.arguments[i].abs() for i in (3, 5))  # nothing cancels, and constant rows grow most
    case.arguments = [gated, gate, gated, taps, taps, skip, skip]
    return case


def close_in_each_channel(actual, exact, bound, name=""):
    for channel, (found, expected) in enumerate(zip(actual, exact, strict=True)):
        assert relative_error(found, expected) < bound, f"{name} {channel}: {relative_error(found, expected):.2e}"


@pytest.mark.parametrize("length", LENGTHS)
def test_samples_of_any_size(length, device, poisoned):
    case = sized(length, torch.bfloat16, device)
    exact, m = case.expected(fft_convolution, torch.float64)["y"], dft.transform_length(length)
    for form in ["toeplitz"] if m <= 256 else ["fused", "three_kernels"] if m <= 8192 else ["three_kernels"]:
        close_in_each_channel(run(form, case), exact, 2**-8, form)


@pytest.mark.parametrize("length", LENGTHS)
def test_gradients_of_samples_of_any_size(length, device, poisoned):
    case = sized(length, torch.bfloat16, device)
    exact = case.expected_gradients(fft_convolution, torch.float64)
    for name, gradient in gradients_of(case).items():
        by_channel = (x.transpose(0, 1) if "taps" in name else x for x in (gradient, exact[name]))
        close_in_each_channel(*by_channel, 2**-8, name)


@pytest.mark.parametrize(("form", "length"), [("toeplitz", 40), ("fused", 300), ("three_kernels", 300)])
def test_the_size_of_one_row_changes_neither_its_digits_nor_its_batch_mates(form, length, device):
    case = Case([7, length], [7, length], torch.bfloat16, device)
    signals, rest = case.arguments[:3], case.arguments[3:]
    expected = run(form, case)
    for factor in (2.0**-50, 2.0**90):
        larger = [torch.cat([s[:, :7], s[:, 7:] * factor], 1) for s in (signals[0], signals[2])]
        y = run(form, case, [larger[0], signals[1], larger[1], *rest])
        assert torch.equal(y, torch.cat([expected[:, :7], expected[:, 7:] * factor], 1))


@pytest.mark.parametrize("form", ["fused", "three_kernels"])
def test_size_of_taps(form, device):
    case = Case([1000], [1000], torch.float16, device, with_residual=False)
    case.arguments[0] = torch.full_like(case.arguments[0], 100)
    case.arguments[1] = torch.full_like(case.arguments[1], 1e-2)
    case.arguments[3] = case.arguments[3] * 1e-4
    assert relative_error(run(form, case), case.expected(toeplitz_convolution, torch.float64)["y"]) < 1.5e-3


def test_transform_lengths_are_few_and_can_be_factored():
    lengths = {dft.transform_length(longest) for longest in range(1, 40000)}
    assert len(lengths) == 17
    for longest in (1, 16, 17, 256, 257, 8192, 8193, 10241, 16385, 32768, 131072):
        m = dft.transform_length(longest)
        assert longest <= m < max(2 * longest, 17)
        if m >= dft.SHORTEST_TRANSFORM:
            m1, m2 = dft.factors(m)
            assert m1 * m2 == m
            assert m1 % 32 == 0
            assert m2 in (16, 32, 64, 128)


def test_tables_are_built_once_and_not_while_a_cuda_graph_is_captured(device, monkeypatch):
    first = weakref.ref(dft.folded_tables(32, 16, torch.float16, torch.device(device)))
    for m1 in range(3, 90):
        dft.folded_tables(m1, 2, torch.float16, torch.device(device))
    assert first() is not None
    monkeypatch.setattr(m2bert_ops_filter, "is_capturing", lambda device: True)
    assert dft.folded_tables(32, 16, torch.float16, torch.device(device)) is first()
    for tables, sizes in ((dft.stage1_tables, (3,)), (dft.stage2_tables, (3, 2)), (dft.folded_tables, (2, 2))):
        with pytest.raises(RuntimeError, match="before capturing"):
            tables(*sizes, torch.float32, torch.device(device))


# gradients

CASES = [([1], [1]), ([2, 0, 17], [2, 1, 18]), ([512, 257], [512, 512])]


def gradients_of(case, dy=None, arguments=None):
    """Gradients by name, from signals with NaN in padding."""
    gated, gate, residual, *parameters = arguments or case.arguments
    signals = [case.poison(signal) for signal in (case.dy if dy is None else dy, gated, gate, residual)]
    gradients = conv.long_conv_backward(*signals, *parameters, *case.rows)
    return {name: gradient for name, gradient in zip(NAMES, gradients, strict=True) if gradient is not None}


@pytest.mark.parametrize(("lengths", "slots"), CASES)
def test_gradients_float32(lengths, slots, device, poisoned, hold_to_composite):
    case = Case(lengths, slots, torch.float32, device, channels=1)
    exact = case.expected_gradients(toeplitz_convolution, torch.float64)
    hold_to_composite(gradients_of(case), case.expected_gradients(fft_convolution, torch.float32), exact)


@pytest.mark.parametrize(
    ("lengths", "slots", "with_residual"), [*((*case, True) for case in CASES[1:]), ([601, 2], [700, 700], False)]
)
def test_gradients_float16(lengths, slots, with_residual, device, poisoned):
    case = Case(lengths, slots, torch.float16, device, with_residual=with_residual)
    exact, actual = case.expected_gradients(toeplitz_convolution, torch.float64), gradients_of(case)
    assert exact.keys() == actual.keys()
    for name, gradient in actual.items():
        assert gradient.dtype == (torch.float16 if name in NAMES[:3] else torch.float32)
        error = relative_error(gradient, exact[name])
        assert error < HALF_BOUND, f"{name}: {error:.2e}"
        if name in NAMES[:3]:
            assert (gradient[:, ~case.real] == 0).all(), name


@pytest.mark.slow
@pytest.mark.parametrize("length", [2039, 4096, 8209])
def test_gradients_of_longer_rows(length, device, poisoned):
    case = Case([length], [length], torch.float16, device, channels=1)
    exact = case.expected_gradients(fft_convolution, torch.float64)
    for name, gradient in gradients_of(case).items():
        assert relative_error(gradient, exact[name]) < HALF_BOUND, name


def test_size_of_gradients_changes_nothing(device):
    case = Case([300], [300], torch.bfloat16, device, channels=1, with_residual=False)
    case.dy = case.dy * 1e-6
    exact, expected = case.expected_gradients(toeplitz_convolution, torch.float64), gradients_of(case)
    for name, gradient in expected.items():
        bound = HALF_BOUND if gradient.dtype == torch.float32 else HALF_BOUND + 2**-8
        assert relative_error(gradient, exact[name]) < bound, name
    for factor in (2.0**-40, 2.0**60):
        for name, gradient in gradients_of(case, case.dy * factor).items():
            assert torch.equal(gradient, expected[name] * factor), name


def test_large_gradients_at_one_token(device):
    case = Case([500], [500], torch.float16, device, channels=1, with_residual=False)
    case.dy = torch.zeros_like(case.dy)
    case.dy[:, 123] = 3e3
    exact = case.expected_gradients(toeplitz_convolution, torch.float64)
    for name, gradient in gradients_of(case).items():
        assert relative_error(gradient, exact[name]) < HALF_BOUND, name


def test_taps_beyond_reach_have_no_gradient(device, poisoned):
    case = Case([512], [512], torch.float16, device, channels=1, num_taps=600)
    exact, actual = case.expected_gradients(toeplitz_convolution, torch.float64), gradients_of(case)
    for name in ("taps", "residual_taps"):
        assert (actual[name][0, :, 512:] == 0).all()
        assert (actual[name][1, :, 511:] == 0).all()
        assert relative_error(actual[name], exact[name]) < HALF_BOUND


def test_gradients_in_groups_of_channels_and_their_strides(device, poisoned, monkeypatch):
    case = Case([70], [70], torch.float16, device, channels=3)
    exact, together = case.expected_gradients(toeplitz_convolution, torch.float64), gradients_of(case)
    monkeypatch.setattr(stages.Stages, "channels_at_once", lambda self, *rest: 2)
    signals = enumerate([case.dy, *case.arguments[:3]])
    wide = [F.pad(signal, (3, 4 + i))[:, 3 : 3 + case.columns] for i, signal in signals]
    monkeypatch.setattr(case, "poison", lambda signal: signal)
    for name, gradient in gradients_of(case, wide[0], [*wide[1:], *case.arguments[3:]]).items():
        bound = 2 * relative_error(together[name], exact[name])  # products round by shape
        assert relative_error(gradient, exact[name]) <= bound, name


@pytest.mark.slow
def test_batch_mates_do_not_change_gradients_of_a_row(device):
    case, alone = (Case(rows, rows, torch.float16, device, channels=1) for rows in ([9, 70], [70]))
    case.dy[:, :9] *= 1e4
    row = slice(9, None)
    expected = gradients_of(
        alone, case.dy[:, row], [*(signal[:, row] for signal in case.arguments[:3]), *case.arguments[3:]]
    )
    actual = gradients_of(case)
    for name in NAMES[:3]:
        assert relative_error(actual[name][:, row], expected[name].double()) < 1e-6, name


@pytest.mark.parametrize(("channels", "lengths", "slots"), [(2, [], []), (2, [0, 0], [0, 0]), (0, [3], [3])])
def test_nothing_to_do(channels, lengths, slots, device):
    case = Case(lengths, slots, torch.float16, device, channels=channels, num_taps=4)
    gated, gate, residual, _, _, skip, residual_skip = case.arguments
    y = conv.long_conv(gated, gate, residual, None, skip, residual_skip, *case.rows)
    assert y.shape == gated.shape
    for name, gradient in gradients_of(case).items():
        assert gradient.shape == case.arguments[NAMES.index(name)].shape
        assert (gradient == 0).all()


# machine code

KERNELS = {
    fused: ["convolve_rows"],
    stages: ["scale_rows", "transform_rows", "multiply_spectra"],
    conv: ["multiply_toeplitz", "gate_rows"],
    backward: ["sum_spectrum_gradient", "gradient_rows"],
}
WITHOUT_WGMMA = {"multiply_toeplitz", "scale_rows"}
SHARED_BYTES = 227 * 1024
SPILLED_BYTES = {("convolve_rows", 8192): 96}  # addresses for both of its convolutions, read once in each


def launch_all(dtype, m, with_residual, slots):
    x, skip, taps = torch.zeros(1, sum(slots), dtype=dtype), torch.zeros(1), torch.zeros(2, 1, 4)
    residual = (x, taps, skip) if with_residual else (None, None, None)
    lengths = torch.tensor(slots, dtype=torch.int32)
    rows = torch.tensor([0, *slots]).cumsum(0).int(), lengths, max(slots)
    prepared = conv.prepare_filter(taps, m, dtype)
    filters = prepared, prepared if with_residual else None
    conv.long_conv(x, x, residual[0], lambda _: filters, skip, residual[2], *rows)
    if m >= 512:
        conv.long_conv_backward(x, x, x, residual[0], taps, residual[1], skip, residual[2], *rows)


def launched():
    """(dtype, M, step through the forms of a batch) of all launches; some of them are enough for every day."""
    for dtype, m in ((torch.bfloat16, 64), (torch.bfloat16, 2048), (torch.float32, 512)):
        yield dtype, m, 3
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        for m in (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 10240, 16384):
            yield pytest.param(dtype, m, 1, marks=pytest.mark.slow)


@pytest.mark.parametrize(("dtype", "m", "step"), list(launched()))
def test_compiles_without_spills(dtype, m, step, launches, compile_sm90):
    specs = launches(KERNELS)
    batches = list(itertools.product((True, False), ([m] * 3, [m, m - 1] + [1] * 18)))
    for with_residual, slots in batches[::step]:
        launch_all(dtype, m, with_residual, slots)
    for spec, used in zip(specs, compile_sm90(specs), strict=True):
        report = f"{spec['kernel']} {spec['constexprs']} {spec['options']}: {used}"
        assert used["stack"] <= SPILLED_BYTES.get((spec["kernel"], m), 0), report
        assert used["shared"] <= SHARED_BYTES, report
        if m >= 2048 and dtype != torch.float32 and spec["kernel"] not in WITHOUT_WGMMA:
            assert used["wgmma"], report
