"""The long convolution's gradients against autograd in float64, in Triton's interpreter where there is no GPU."""

import pytest
import torch

pytest.importorskip("triton")

from references import NAMES, Case, fft_convolution, relative_error, toeplitz_convolution  # noqa: E402

from modeling_m2bert import m2bert_ops_triton_conv as conv  # noqa: E402
from modeling_m2bert import m2bert_ops_triton_stages as stages  # noqa: E402

HALF_BOUND = 6e-4  # relative to float64
CASES = [([1], [1]), ([2, 0, 17], [2, 1, 18]), ([512, 257], [512, 512])]


def run(case, dy=None, arguments=None):
    """Gradients by name, from signals with NaN in padding."""
    gated, gate, residual, *parameters = arguments or case.arguments
    signals = [case.poison(signal) for signal in (case.dy if dy is None else dy, gated, gate, residual)]
    gradients = conv.long_conv_backward(*signals, *parameters, *case.rows)
    return {name: gradient for name, gradient in zip(NAMES, gradients, strict=True) if gradient is not None}


@pytest.mark.parametrize(("lengths", "slots"), CASES)
def test_gradients_float32(lengths, slots, device, poisoned, hold_to_composite):
    case = Case(lengths, slots, torch.float32, device, channels=1)
    exact = case.expected_gradients(toeplitz_convolution, torch.float64)
    hold_to_composite(run(case), case.expected_gradients(fft_convolution, torch.float32), exact)


@pytest.mark.parametrize(
    ("lengths", "slots", "with_residual"), [*((*case, True) for case in CASES[1:]), ([601, 2], [700, 700], False)]
)
def test_gradients_float16(lengths, slots, with_residual, device, poisoned):
    case = Case(lengths, slots, torch.float16, device, with_residual=with_residual)
    exact, actual = case.expected_gradients(toeplitz_convolution, torch.float64), run(case)
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
    for name, gradient in run(case).items():
        assert relative_error(gradient, exact[name]) < HALF_BOUND, name


def test_size_of_gradients_changes_nothing(device):
    case = Case([300], [300], torch.bfloat16, device, channels=1, with_residual=False)
    case.dy = case.dy * 1e-6
    exact, expected = case.expected_gradients(toeplitz_convolution, torch.float64), run(case)
    for name, gradient in expected.items():
        bound = HALF_BOUND if gradient.dtype == torch.float32 else HALF_BOUND + 2**-8
        assert relative_error(gradient, exact[name]) < bound, name
    for factor in (2.0**-40, 2.0**60):
        for name, gradient in run(case, case.dy * factor).items():
            assert torch.equal(gradient, expected[name] * factor), name


def test_large_gradients_at_one_token(device):
    case = Case([500], [500], torch.float16, device, channels=1, with_residual=False)
    case.dy = torch.zeros_like(case.dy)
    case.dy[:, 123] = 3e3
    exact = case.expected_gradients(toeplitz_convolution, torch.float64)
    for name, gradient in run(case).items():
        assert relative_error(gradient, exact[name]) < HALF_BOUND, name


def test_taps_beyond_reach_have_no_gradient(device, poisoned):
    case = Case([512], [512], torch.float16, device, channels=1, num_taps=600)
    exact, actual = case.expected_gradients(toeplitz_convolution, torch.float64), run(case)
    for name in ("taps", "residual_taps"):
        assert (actual[name][0, :, 512:] == 0).all()
        assert (actual[name][1, :, 511:] == 0).all()
        assert relative_error(actual[name], exact[name]) < HALF_BOUND


def test_groups_of_channels_and_their_strides(device, poisoned, monkeypatch):
    case = Case([70], [70], torch.float16, device, channels=3)
    exact, together = case.expected_gradients(toeplitz_convolution, torch.float64), run(case)
    monkeypatch.setattr(stages.Stages, "channels_at_once", lambda self, *rest: 2)
    signals = enumerate([case.dy, *case.arguments[:3]])
    wide = [torch.nn.functional.pad(signal, (3, 4 + i))[:, 3 : 3 + case.columns] for i, signal in signals]
    monkeypatch.setattr(case, "poison", lambda signal: signal)
    for name, gradient in run(case, wide[0], [*wide[1:], *case.arguments[3:]]).items():
        bound = 2 * relative_error(together[name], exact[name])  # products round by shape
        assert relative_error(gradient, exact[name]) <= bound, name


@pytest.mark.slow
def test_batch_mates_do_not_change_gradients_of_a_row(device):
    case, alone = (Case(rows, rows, torch.float16, device, channels=1) for rows in ([9, 70], [70]))
    case.dy[:, :9] *= 1e4
    row = slice(9, None)
    expected = run(alone, case.dy[:, row], [*(signal[:, row] for signal in case.arguments[:3]), *case.arguments[3:]])
    actual = run(case)
    for name in NAMES[:3]:
        assert relative_error(actual[name][:, row], expected[name].double()) < 1e-6, name


@pytest.mark.parametrize(("channels", "lengths", "slots"), [(2, [], []), (2, [0], [0]), (0, [3], [3])])
def test_nothing_to_do(channels, lengths, slots, device):
    case = Case(lengths, slots, torch.float16, device, channels=channels, num_taps=4)
    for name, gradient in run(case).items():
        assert gradient.shape == case.arguments[NAMES.index(name)].shape
        assert (gradient == 0).all()
