"""Games against exact Shapley values, and against shap's, lime's and the formulas' stored results where these are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.graphs import graph, images, run
from typer.testing import CliRunner

from onnx_gradcam.cli import app
from onnx_gradcam.editor.methods import games
from onnx_gradcam.editor.methods.regions import players
from onnx_gradcam.editor.probes import probed
from onnx_gradcam.errors import InputError, UnsupportedError
from onnx_gradcam.options import Options
from onnx_gradcam.runtime.prober import Prober

SHARED = Path(__file__).parents[4] / "shared/methods/oracles"
shared = pytest.mark.skipif(not SHARED.exists(), reason="the oracles of shared/ are not here")
BODY = "c = Conv(x, K) a = Relu(c) d = Conv(a, L) b = Relu(d) p = GlobalAveragePool(b) f = Flatten(p) y = Gemm(f, W)"
SIZES = {"K": (6, 3, 3, 3), "L": (5, 6, 3, 3), "W": (5, 4)}


def model():
    return graph(BODY, **SIZES)


def score(x):
    return run(model(), x=np.asarray(x, np.float32))["y"][:, 1].astype(np.float64)


def shares(method, x, cells=(2, 3), classes=(1,), source=None, seed=0, **choices):
    """What each cell of a grid gets."""
    choices.setdefault("players", f"grid:{cells[0]}x{cells[1]}")
    prober = Prober(probed(source or model(), Options(method=method, **choices)), seed=seed, batch_size=64)
    cam = prober.run(x, list(classes))["cam"][0]
    labels = players(x[0], choices["players"])
    return np.bincount(labels.ravel(), cam.ravel())


def exact(x, labels):
    """Shapley values by all orders of the players."""
    import itertools  # noqa: PLC0415

    n = labels.max() + 1
    known = {}

    def value(members):
        if members not in known:
            known[members] = score(x * np.isin(labels, list(members)))[0]
        return known[members]

    orders = list(itertools.permutations(range(n)))
    total = np.zeros(n)
    for order in orders:
        for place, player in enumerate(order):
            total[player] += value(frozenset(order[: place + 1])) - value(frozenset(order[:place]))
    return total / len(orders)


def test_exact_shapley_values_are_the_mean_over_all_orders():
    x = images(1)
    np.testing.assert_allclose(shares("shapley", x), exact(x, players(x[0], "grid:2x3")), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "passes", "tolerance"),
    [("kernel-shap", 64, 1e-4), ("kernel-shap", 40, 0.1), ("sampled-shapley", 1400, 0.05)],
)
def test_estimates_approach_exact_shapley_values(method, passes, tolerance):
    x = images(1)
    expected = shares("shapley", x)
    found = shares(method, x, max_passes=passes)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.ptp(expected))
    assert found.sum() == pytest.approx(float(score(x)[0] - score(0 * x)[0]), rel=1e-4)


@shared
def test_nine_cells_of_a_convolutional_network():
    oracle, games_of = np.load(SHARED / "o6_shapley.npz"), np.load(SHARED / "o10_games.npz")
    facts = np.load(SHARED / "o2_saliency.npz")
    x, index = facts["x_hwc"].transpose(2, 0, 1)[None], [int(facts["class"])]
    source, true = SHARED / "o2_cnn.onnx", oracle["exact"]
    found = shares("shapley", x, (3, 3), index, source)
    np.testing.assert_allclose(found, true, atol=1e-5)
    for passes, bar in ((100, 5e-3), (512, 1e-5)):
        np.testing.assert_allclose(shares("kernel-shap", x, (3, 3), index, source, max_passes=passes), true, atol=bar)
    sampled = shares("sampled-shapley", x, (3, 3), index, source, max_passes=250)
    assert np.abs(sampled - true).max() < 0.01
    lime = shares("lime", x, (3, 3), index, source, max_passes=500)
    assert np.abs(lime - games_of["lime_1000"]).max() < 0.01


@shared
def test_indices_of_stored_masks_and_scores():
    oracle = np.load(SHARED / "o10_games.npz")
    outputs = oracle["sobol_outputs"]
    np.testing.assert_allclose(
        games.total_order(outputs[:32], outputs[64:].reshape(64, 32)), oracle["sobol"], rtol=1e-6
    )
    found = games.dependence(oracle["hsic_masks"].astype(np.float64), oracle["hsic_outputs"])
    np.testing.assert_allclose(found, oracle["hsic"], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("method", ["sobol", "hsic"])
def test_a_cell_that_alone_counts_has_the_largest_index(method):
    weights = np.zeros((3, 8, 8), np.float32)
    weights[:, 2, 5] = 1
    source = graph("f = Flatten(x) y = Gemm(f, W)", W=(192, 4))
    source.graph.initializer[0].raw_data = np.repeat(weights.reshape(192, 1), 4, 1).tobytes()
    x = np.ones((1, 3, 8, 8), np.float32)
    cam = Prober(probed(source, Options(method=method)), batch_size=64).run(x, [1])["cam"][0]
    assert np.unravel_index(cam.argmax(), cam.shape) == (2, 5)
    assert cam[2, 5] > 3 * np.sort(cam.ravel())[-2]
    if method == "sobol":
        assert cam[2, 5] == pytest.approx(1, abs=0.4)


@pytest.mark.parametrize("method", ["shapley", "kernel-shap", "sampled-shapley", "lime", "sobol", "hsic"])
def test_a_model_without_gradients_is_explained(method):
    stepped = graph(BODY.replace("b = Relu(d)", "e = Ceil(d) b = Relu(e)"), **SIZES)
    choices = {"max_passes": 200} if method != "shapley" else {}
    cam = Prober(probed(stepped, Options(method=method, **choices)), batch_size=64).run(images(1), [1])["cam"]
    assert np.isfinite(cam).all()
    assert np.ptp(cam) > 0


def test_players_of_segments_and_of_a_file(tmp_path):
    image = np.zeros((3, 16, 16), np.float32)
    image[:, :, 9:] = 1
    labels = players(image, "segments:50")
    assert [len(np.unique(labels[:, side])) for side in (slice(6), slice(12, 16))] == [1, 1]
    assert labels[0, 0] != labels[0, -1]
    numbers = np.kron([[7, 9], [9, 30]], np.ones((8, 8), np.int64)).astype(np.int64)
    np.save(tmp_path / "parts.npy", numbers)
    assert players(image, str(tmp_path / "parts.npy"))[[0, 0, 15], [0, 15, 15]].tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"give whole numbers \[8, 8\]"):
        players(image[:, :8, :8], str(tmp_path / "parts.npy"))
    (tmp_path / "empty.npy").touch()
    with pytest.raises(InputError, match="cannot read the players"):
        players(image, str(tmp_path / "empty.npy"))


@pytest.mark.parametrize(
    ("choices", "error", "why"),
    [
        ({"method": "shapley", "players": "grid:4x4"}, UnsupportedError, "exact Shapley values of 16 players take"),
        ({"method": "kernel-shap", "max_passes": 20}, InputError, "needs 100 passes a baseline; raise --max-passes"),
        ({"method": "lime", "players": "hexagons"}, InputError, "players is 'hexagons'; choose 'grid"),
        ({"method": "lime", "players": "grid:9x9"}, InputError, "more than the 8 x 8 pixels"),
        ({"method": "rise", "max_passes": 10}, UnsupportedError, "RISE takes no --max-passes"),
    ],
)
def test_refusals(choices, error, why):
    with pytest.raises(error, match=why):
        Prober(probed(model(), Options(**choices))).run(images(1), [1])


def test_the_command_line(tmp_path):
    np.save(tmp_path / "x.npy", images(1)[0])
    (tmp_path / "m.onnx").write_bytes(model().SerializeToString())
    words = ["explain", tmp_path / "m.onnx", tmp_path / "x.npy", "--preprocess", "none", "--method", "kernel-shap"]
    words += ["--players", "grid:3x3", "--max-passes", "60", "--baseline", "darkest", "-o", tmp_path / "map.png"]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "map.png").exists()
