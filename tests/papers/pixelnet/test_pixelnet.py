"""PixelNet: the paper's sizes, predictions against NumPy, pixels that training draws, its loss."""

from __future__ import annotations

import itertools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.routing import Routing
from dynpix_jax.core.sections import from_config
from dynpix_jax.core.trees import map_named
from dynpix_jax.flops import count_macs, variable_shapes
from dynpix_jax.papers.pixelnet.config import PixelNetConfig
from dynpix_jax.papers.pixelnet.sampling import hypercolumns

FIVE = ("conv1_2", "conv2_2", "conv3_3", "conv4_3", "conv5_3")
THREE = ("conv1_2", "conv3_3", "conv5_3")
SIZE = (21, 26)


def build(layers: tuple[str, ...] = FIVE, hidden: tuple[int, ...] = (4096, 4096), **changes: Any):
    section: dict[str, Any] = dict(
        system="pixelnet",
        task="segmentation",
        task_options=dict(classes=21),
        hypercolumn=dict(layers=layers),
        mlp=dict(hidden=hidden),
    )
    # Layers that a network does not have may be given a width, too.
    return papers.build(from_config(PixelNetConfig, {**section, **changes}, "config.model"))


LOW = ("conv1_2", "conv2_1", "conv3_1")


def tiny(**changes: Any):
    """Layers of VGG with 2 to 8 channels, and MLP layers of 5 and 6."""
    return build(LOW, (5, 6), **{"backbone": dict(width=2, fc_features=4), "chunk": 60, **changes})


def random_variables(system) -> Any:
    """No two leaves alike, moments included."""
    rng = np.random.default_rng(0)

    def leaf(path: str, shape: jax.ShapeDtypeStruct) -> np.ndarray:
        if path.endswith(("var", "scale")):
            return rng.uniform(0.5, 1.5, shape.shape).astype(np.float32)
        fan_in = max(1, int(np.prod(shape.shape[:-1])))
        return rng.normal(0, (2 / fan_in) ** 0.5, shape.shape).astype(np.float32)

    return map_named(leaf, variable_shapes(system))


def make_batch(classes: int = 21) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    labels = rng.integers(0, classes, (2, *SIZE)).astype(np.int32)
    labels[:, :5] = 255
    return {
        "image": rng.integers(0, 256, (2, *SIZE, 3)).astype(np.uint8),
        "segmentation": labels,
        "valid": np.array([True, True]),
    }


def parameters(system) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(variable_shapes(system)["params"]))


def test_dimensions_of_the_hypercolumn():
    for layers, channels in ((FIVE, 1472), ((*FIVE, "fc7"), 5568)):
        shapes = variable_shapes(build(layers))["params"]
        assert shapes["mlp1"]["kernel"].shape == (1, 1, channels, 4096)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_parameters_by_formula(depth):
    widths = [1472, *[4096] * (depth - 1), 21]
    mlp = sum(below * above + above for below, above in itertools.pairwise(widths))
    assert parameters(build(hidden=(4096,) * (depth - 1))) == 14_714_688 + mlp


@pytest.mark.parametrize(
    ("layers", "hidden", "megabytes"),
    [
        (THREE, (), 60),
        (THREE, (4096,), 74),
        (THREE, (4096, 4096), 144),
        ((*THREE, "fc7"), (4096, 4096), 686),
    ],
)
def test_model_sizes_of_table_4(layers, hidden, megabytes):
    assert 4 * parameters(build(layers, hidden)) / 1e6 == pytest.approx(megabytes, rel=0.05)


@pytest.mark.parametrize(
    ("layers", "changes"),
    [
        (("conv1_2", "conv4_1", "fc7"), dict(pad=7)),
        (LOW, dict(hypercolumn=dict(layers=LOW, normalize="batch"))),
    ],
)
def test_every_pixel_is_the_mlp_of_its_joined_hypercolumn(layers, changes):
    """Chunked prediction, and prediction at given pixels, against NumPy on the joined columns."""
    system = tiny(**{"hypercolumn": dict(layers=layers), **changes})
    variables, images, pad = random_variables(system), make_batch()["image"], changes.get("pad", 0)
    whole = (SIZE[0] + 2 * pad, SIZE[1] + 2 * pad)
    strides = {"conv1_2": 1, "conv2_1": 2, "conv3_1": 4, "conv4_1": 8, "fc7": 32}
    points = np.random.default_rng(2).integers(0, SIZE, (2, 9, 2))

    @jax.jit
    def run(variables, images):
        maps = system.network.apply(variables, images, method="maps")
        columns = hypercolumns(maps, strides=[strides[layer] for layer in layers], size=whole)
        outputs = [system.apply(variables, images), system.at(variables, images, points)]
        return columns, *(one.predictions["segmentation"] for one in outputs)

    columns, dense, at = map(np.asarray, run(variables, images))
    x = columns[:, pad : pad + SIZE[0], pad : pad + SIZE[1]].astype(np.float64)
    if "hypercolumn" in changes:
        moments, affine = variables["batch_stats"], variables["params"]
        names = [f"norms_{layer}" for layer in layers]
        mean, var = (np.concatenate([moments[name][leaf] for name in names]) for leaf in ("mean", "var"))
        scale, bias = (np.concatenate([affine[name][leaf] for name in names]) for leaf in ("scale", "bias"))
        x = (x - mean) / np.sqrt(var + 1e-5) * scale + bias
    for index in (1, 2, 3):
        layer = variables["params"][f"mlp{index}"]
        x = np.maximum(x, 0) if index > 1 else x
        x = x @ np.asarray(layer["kernel"][0, 0], np.float64) + layer["bias"]
    np.testing.assert_allclose(dense, x, atol=1e-4 * np.abs(x).max())
    expected = np.stack([dense[i][tuple(points[i].T)] for i in range(2)])
    np.testing.assert_allclose(at, expected, atol=1e-4 * np.abs(x).max())


def test_macs_are_counted():
    """By hand. Interpolation, four terms a value, is no product of matrices and not counted."""
    system = tiny(chunk=26)  # bands of one row
    images = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.float32)
    report = count_macs(lambda v, x: system.apply(v, x).predictions, variable_shapes(system), images)
    # 21x26 pixels, 11x13 cells at stride 2, 6x7 at stride 4: conv1_1, conv1_2; conv2_1, conv2_2; conv3_1.
    vgg = 21 * 26 * 9 * (3 * 2 + 2 * 2) + 11 * 13 * 9 * (2 * 4 + 4 * 4) + 6 * 7 * 9 * 4 * 8
    # Of a band, the first layer's part of conv3_1 multiplies the two rows of cells around it; the parts of
    # conv1_2 and conv2_1, whose cells are many, multiply the 26 samples.
    first = 21 * (26 * (2 + 4) * 5 + 2 * 7 * 8 * 5)
    assert report.total == vgg + first + 21 * 26 * (5 * 6 + 6 * 21)


def test_loss_is_the_tasks_at_the_drawn_pixels():
    """Dropout off: the same number from all pixels' predictions; gradients everywhere in the network."""
    system = tiny(
        mlp=dict(hidden=(5, 6), dropout=0.0),
        sampling=dict(pixels=40),
    )
    variables, batch = random_variables(system), make_batch()
    rngs = {"points": jax.random.key(4), "dropout": jax.random.key(5)}

    # Arguments rather than constants, which would be folded while the program is compiled.
    def loss(params, batch, rngs):
        return system.loss({**variables, "params": params}, batch, rngs=rngs, controls={})

    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, aux), gradients = run(variables["params"], batch, rngs)
    points = np.asarray(jax.jit(system.draw)(rngs["points"], batch["segmentation"], batch["valid"]))
    assert points.shape == (2, 40, 2)
    assert (points[..., 0] >= 5).all()  # what is above has no label
    logits = np.asarray(
        jax.jit(lambda v, x: system.apply(v, x).predictions["segmentation"])(variables, batch["image"])
    )
    costs = []
    for image in range(2):
        for y, x in points[image]:
            row = logits[image, y, x].astype(np.float64)
            costs.append(np.log(np.exp(row).sum()) - row[batch["segmentation"][image, y, x]])
    np.testing.assert_allclose(value, np.mean(costs), rtol=1e-4)
    np.testing.assert_allclose(aux.terms["segmentation"], value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert all(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(gradients))


def test_strategies():
    rng = np.random.default_rng(0)
    target = (rng.random((3, *SIZE)) < 0.1).astype(np.float32)
    target[0, :, :3], target[1, :, :20] = -1.0, -1.0
    valid = np.array([True, True, False])

    def draw(**sampling: Any) -> np.ndarray:
        system = tiny(task="boundaries", task_options={}, sampling=dict(pixels=40, **sampling))
        return np.asarray(jax.jit(system.draw)(jax.random.key(0), target, valid))

    for share in (0.25, 0.5, 0.75):
        points = draw(strategy="biased", rare_share=share)
        assert [int(target[i][tuple(points[i].T)].sum()) for i in range(2)] == [40 * share] * 2
    points = draw(strategy="stratified")
    assert points.shape == (3, 40, 2)
    assert all((target[i][tuple(points[i].T)] >= 0).all() for i in range(2))
    points = draw(strategy="uniform")
    assert points.shape == (120, 3)
    assert (target[tuple(points.T)] >= 0).all()
    counts = np.bincount(points[:, 0], minlength=3)
    assert counts[2] == 0
    assert counts[0] > 2 * counts[1] > 0


def test_padding_images_cost_nothing():
    system = tiny(sampling=dict(pixels=30, strategy="uniform"), hypercolumn=dict(layers=LOW, dropout=0.5))
    variables, batch = random_variables(system), make_batch()
    rngs = {"points": jax.random.key(4), "dropout": jax.random.key(5)}
    batch["valid"] = np.array([False, False])
    run = jax.jit(lambda v, b, keys: system.loss(v, b, rngs=keys, controls={}))
    value, aux = run(variables, batch, rngs)
    assert float(value) == 0.0
    assert float(aux.terms["rare"]) == 0.0


def test_training_moves_the_moments_by_the_drawn_pixels():
    system = tiny(hypercolumn=dict(layers=LOW, normalize="batch"))
    variables, batch = random_variables(system), make_batch()
    points = jnp.asarray(np.random.default_rng(2).integers(0, SIZE, (2, 9, 2)))

    def forward(v, x, p):
        return system.at(v, x, p, train=True, rngs={"dropout": jax.random.key(0)}).updates

    updates = jax.jit(forward)(variables, batch["image"], points)
    maps = jax.jit(lambda v, x: system.network.apply(v, x, method="maps"))(variables, batch["image"])
    columns = hypercolumns(maps[:1], strides=(1,), size=SIZE)
    values = np.concatenate([np.asarray(columns)[i][tuple(points[i].T)] for i in range(2)])
    before = variables["batch_stats"]["norms_conv1_2"]["mean"]
    found = updates["batch_stats"]["norms_conv1_2"]["mean"]
    np.testing.assert_allclose(found, 0.9 * before + 0.1 * values.mean(0), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="train: training"):
        system.apply(variables, batch["image"], {}, Routing(train=True))


def test_norm_group_of_one_image():
    """Each image is computed as in a batch of its own; gradients add up, and moved moments are means."""
    options = dict(
        backbone=dict(width=2, fc_features=4, batch_norm=True),
        hypercolumn=dict(layers=LOW, normalize="batch"),
        mlp=dict(hidden=(5, 6), dropout=0.0),
    )
    variables = random_variables(tiny(**options))
    images = make_batch()["image"] // np.array([1, 4], np.uint8)[:, None, None, None]
    points = np.random.default_rng(2).integers(0, SIZE, (2, 9, 2))

    def compiled(system):
        def run(params, images, points):
            given, rngs = {**variables, "params": params}, {"dropout": jax.random.key(0)}
            outputs = system.at(given, images, points, train=True, rngs=rngs)
            logits = outputs.predictions["segmentation"]
            return (logits**2).sum(), (logits, outputs.updates)

        return jax.jit(jax.grad(run, has_aux=True))

    grouped, run = (compiled(tiny(**options, **group)) for group in (dict(norm_group=1), {}))
    gradients, (logits, updates) = grouped(variables["params"], images, points)
    (first, (left, moved)), (second, (right, others)) = (
        run(variables["params"], images[one], points[one]) for one in (slice(0, 1), slice(1, 2))
    )
    np.testing.assert_allclose(logits, np.concatenate([left, right]), rtol=1e-4, atol=1e-4)
    assert set(updates["batch_stats"]) == {"backbone", *(f"norms_{layer}" for layer in LOW)}
    means = jax.tree.map(lambda a, b: (a + b) / 2, moved, others)
    chex.assert_trees_all_close(updates, means, rtol=1e-4, atol=1e-4)
    sums = jax.tree.map(jnp.add, first, second)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(sums))
    chex.assert_trees_all_close(gradients, sums, rtol=1e-3, atol=1e-4 * largest)
    # The images have moments of their own: norms over both would give something else.
    one, other = (stats["batch_stats"]["backbone"]["bn1_1"]["mean"] for stats in (moved, others))
    assert not np.allclose(one, other, rtol=0.05)


def test_weights_of_a_bare_vgg_and_of_an_earlier_run():
    system = tiny()
    fresh = random_variables(system)
    vgg = {"params": jax.tree.map(lambda leaf: leaf + 1, fresh["params"]["backbone"])}
    adapted = system.adapt(vgg, fresh)
    np.testing.assert_array_equal(
        adapted["params"]["backbone"]["conv3_1"]["kernel"], vgg["params"]["conv3_1"]["kernel"]
    )
    np.testing.assert_array_equal(adapted["params"]["mlp1"]["kernel"], fresh["params"]["mlp1"]["kernel"])
    again = system.adapt(adapted, fresh)
    np.testing.assert_array_equal(
        again["params"]["backbone"]["conv2_1"]["bias"], vgg["params"]["conv2_1"]["bias"]
    )
    del vgg["params"]["conv2_1"]
    with pytest.raises(UserError, match=r"no conv2_1/.*for this vgg16 up to the highest of"):
        system.adapt(vgg, fresh)
    vgg["params"]["conv1_1"]["bias"] = np.zeros(3, np.float32)
    with pytest.raises(UserError, match="has shape"):
        system.adapt(vgg, fresh)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(hypercolumn=dict(layers=("conv6",))), r"hypercolumn\.layers: 'conv6' is no layer of vgg16"),
        (dict(hypercolumn=dict(layers=())), "expected one or more"),
        (dict(hypercolumn=dict(layers=("fc7", "fc7"))), "each once"),
        (dict(mlp=dict(hidden=(0,))), r"mlp\.hidden"),
        (dict(mlp=dict(init_std=0.0)), r"mlp\.init_std"),
        (dict(sampling=dict(rare_share=1.0)), r"sampling\.rare_share"),
        (dict(sampling=dict(pixels=1)), r"sampling\.pixels"),
        (dict(pad=-1), "pad: -1"),
        (dict(chunk=0), "chunk: 0"),
        (dict(task="edges"), "task: there is no task 'edges'"),
        (
            dict(task="normals", task_options={}, sampling=dict(strategy="biased")),
            "normals has no rare pixels",
        ),
        (dict(task="depth", task_options=dict(logit="metres")), "this loss of depth needs whole images"),
        (
            dict(task="depth", task_options=dict(scale_invariance=0.5), sampling=dict(strategy="uniform")),
            "'uniform' mixes the pixels of images",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)


@pytest.mark.slow
def test_dense_prediction_stays_below_2_gib():
    """fc-3 of 4096 on a 500 x 375 image, at the default chunk."""
    system = build()
    images = jax.ShapeDtypeStruct((1, 500, 375, 3), jnp.uint8)

    def predict(variables, images):
        return system.apply(variables, images).predictions["segmentation"]

    stats = jax.jit(predict).lower(variable_shapes(system), images).compile().memory_analysis()
    whole = stats.argument_size_in_bytes + stats.output_size_in_bytes + stats.temp_size_in_bytes
    assert whole < 2 * 2**30
