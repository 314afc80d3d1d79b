"""The long convolution's forward kernels against float64, in Triton's interpreter where there is no GPU."""

import pytest
import torch
from torch.nn import functional as F

pytest.importorskip("triton")

from references import Case, fft_convolution, half_convolution, relative_error, toeplitz_convolution  # noqa: E402

from modeling_m2bert import m2bert_ops_triton_conv as conv  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_dft as dft  # noqa: E402
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("lengths", "slots"), SHORT)
def test_toeplitz_form(lengths, slots, dtype, device, poisoned, hold_to_composite):
    check("toeplitz", Case(lengths, slots, dtype, device), hold_to_composite)


@pytest.mark.parametrize(("lengths", "slots"), LONG)
def test_fused_form(lengths, slots, device, poisoned, hold_to_composite):
    check("fused", Case(lengths, slots, torch.float16, device), hold_to_composite)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(("lengths", "slots"), [*LONG, ([5, 1], [5, 2])])
def test_three_kernels(lengths, slots, dtype, device, poisoned, hold_to_composite):
    check("three_kernels", Case(lengths, slots, dtype, device), hold_to_composite)


@pytest.mark.slow
@pytest.mark.parametrize("length", [2048, 2311, 4096, 7919])
@pytest.mark.parametrize("form", ["fused", "three_kernels"])
def test_longer_rows(form, length, device, poisoned, hold_to_composite):
    check(form, Case([length], [length], torch.float16, device, channels=1), hold_to_composite)


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


@pytest.mark.parametrize("size", [1e-3, 100.0])
@pytest.mark.parametrize("form", ["fused", "three_kernels"])
def test_size_of_samples_and_taps(form, size, device):
    case = Case([1000], [1000], torch.float16, device, with_residual=False)
    case.arguments[0] = torch.full_like(case.arguments[0], size)
    case.arguments[1] = torch.full_like(case.arguments[1], 1e-2)
    case.arguments[3] = case.arguments[3] * 1e-4
    assert relative_error(run(form, case), case.expected(toeplitz_convolution, torch.float64)["y"]) < 1.5e-3


@pytest.mark.parametrize(("channels", "lengths", "slots"), [(2, [], []), (2, [0, 0], [0, 0]), (0, [3], [3])])
def test_nothing_to_do(channels, lengths, slots, device):
    case = Case(lengths, slots, torch.float16, device, channels=channels, num_taps=4)
    gated, gate, residual, _, _, skip, residual_skip = case.arguments
    y = conv.long_conv(gated, gate, residual, None, skip, residual_skip, *case.rows)
    assert y.shape == gated.shape


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
