"""MDEQ: its cell against NumPy, the paper's MACs, read-outs, anytime prediction, training. Tiny networks."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from dynpix_jax import papers
from dynpix_jax.cli.flops import parts_of
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.system import Outputs
from dynpix_jax.core.trees import map_named, named_leaves
from dynpix_jax.evaluation.stepwise import StepPredictor
from dynpix_jax.evaluation.table_files import read_tables
from dynpix_jax.flops import dense_report, gated_macs, system_macs, variable_shapes
from dynpix_jax.papers.mdeq import weight_names
from dynpix_jax.papers.mdeq.config import CellConfig
from dynpix_jax.papers.mdeq.network import Cell
from dynpix_jax.papers.mdeq.weight_norm import WeightNormConv, weight_normed
from dynpix_jax.weights import importer
from dynpix_jax.weights.importer import import_weights
from tests.papers.mdeq.cells import CELLS
from tests.papers.mdeq.formulas import cell_macs, counted_macs, head_macs, published_macs, stem_macs
from tests.papers.mdeq.reference import cell as reference_cell
from tests.papers.mdeq.reference import random_tensors

TABLES = read_tables("mdeq").tables
SIZE = (18, 22)
SECTION = dict(
    system="mdeq",
    task_options=dict(classes=3),
    cell=dict(channels=(4, 8), expansion=2, groups=2, dropout=0.2),
    forward=dict(iterations=8, memory=4, tolerance=0.0),
    backward=dict(iterations=8, memory=4, tolerance=0.0, error="relative"),
    anytime=dict(iterations=(1, 2, 5, 8)),
)
jit = partial(
    jax.jit,
    compiler_options={"xla_llvm_disable_expensive_passes": True, "xla_backend_optimization_level": 0},
)


def build(**changes):
    return papers.build(SECTION | changes)


def fresh(system, seed: int = 0):
    """Random variables; norms of little scale make f a contraction, so that solvers find its fixed point."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path.endswith("var"):
            return jnp.ones(leaf.shape)
        if path.endswith(("scale", "gain")):
            scale = 0.2 if "/post_gn" in path else 1.0
            return jnp.asarray(scale * rng.uniform(0.5, 1.0, leaf.shape), leaf.dtype)
        spread = 0.1 if leaf.ndim == 1 else 1.0
        return jnp.asarray(rng.normal(0, spread, leaf.shape), leaf.dtype)

    return map_named(draw, variable_shapes(system))


def batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(0, 256, (2, *SIZE, 3), np.uint8),
        "segmentation": rng.integers(0, 3, (2, *SIZE)).astype(np.int32),
        "valid": np.ones(2, bool),
    }


@cache
def predicted():
    system = build()
    variables = fresh(system)
    return system, variables, jit(system.apply)(variables, batch()["image"])


def test_macs_of_the_paper():
    """Reference: one application of f 49.070, stem and head 30.910 (x 2**30); XL 439.157 and 226.370."""
    size, gibi = (1024, 2048), 2**30
    for variant, of_f, of_ends in (("small", 49.070, 30.910), ("xl", 439.157, 226.370)):
        cell = CELLS[variant]
        assert cell_macs(cell, size) / gibi == pytest.approx(of_f, abs=1e-3)
        ends = stem_macs(cell, size) + head_macs(cell, 19, size)
        assert ends / gibi == pytest.approx(of_ends, abs=1e-3)
    for n, counted in ((4, 276.3), (6, 374.4), (8, 472.5), (10, 570.7)):
        assert counted_macs(CELLS["small"], 19, size, n) / gibi == pytest.approx(counted, abs=0.05)


@pytest.mark.parametrize(("table", "variant"), list(zip(TABLES, ("small", "xl"), strict=True)))
def test_all_rows_of_the_table(table, variant):
    """The paper's column, which it rounds or cuts to a digit, and half of f from it."""
    assert len(table.rows) == 27
    for n, row in enumerate(table.rows, 1):
        published = published_macs(CELLS[variant], 19, (1024, 2048), n)
        assert row.macs == pytest.approx(published, abs=0.11 * 2**30)
        assert row.counted == published - (n + 1) * cell_macs(CELLS[variant], (1024, 2048))
        assert row.alternative == f"iterations_{n}"


def test_the_program_costs_what_is_said():
    section = dict(system="mdeq", task_options=dict(classes=19), anytime=dict(iterations=()))
    size = (256, 512)
    report = dense_report(papers.build(section), size)
    assert report.total == counted_macs(CellConfig(), 19, size, 27)
    assert parts_of(report) == {
        "stem": stem_macs(CellConfig(), size),
        "cell": 28 * cell_macs(CellConfig(), size),
        "head": head_macs(CellConfig(), 19, size),
    }


def test_the_costs_of_iterations():
    """Of a cell of three branches, one of which is two steps from another."""
    cell, size = CellConfig(channels=(8, 16, 32)), (256, 512)
    section = dict(system="mdeq", task_options=dict(classes=19), cell=dict(channels=cell.channels))
    system = papers.build(section | dict(anytime=dict(iterations=())))
    f = cell_macs(cell, size)
    assert gated_macs(system, size) == {"iterations_27": 27 * f}
    # A search that ended after 9 of 27 iterations.
    left = system_macs(system, size).executed({"iterations_27": 9 / 27})
    assert left == pytest.approx(counted_macs(cell, 19, size, 9))
    exits = papers.build(section | dict(anytime=dict(iterations=(4, 6, 8, 10))))
    macs = system_macs(exits, size)
    assert sum(macs.steps) == macs.report.total
    assert macs.steps[0] == counted_macs(cell, 19, size, 4)
    assert macs.gated == {
        f"iterations_{n}": more * f for n, more in {4: 4, 6: 2, 8: 2, 10: 2, 27: 17}.items()
    }
    once = exits.alternatives["iterations_10"]
    assert dense_report(once, size).total == counted_macs(cell, 19, size, 10)
    # A search that ended after 7 iterations.
    shares = exits.executed_shares(Outputs({}, measures={"iterations": jnp.array([7.0])}))
    assert {name: float(share[0]) for name, share in shares.items()} == dict(
        iterations_4=1, iterations_6=1, iterations_8=0.5, iterations_10=0, iterations_27=0
    )
    ended = [float(up_to[0]) for up_to in np.broadcast_arrays(*macs.up_to_predictions(shares))]
    np.testing.assert_allclose(ended, np.cumsum(macs.steps) - np.array([0, 0, 1, 3, 20]) * f)
    unrolled = papers.build(section | dict(unrolled=3))
    assert dense_report(unrolled, size).total == counted_macs(cell, 19, size, 2)
    assert gated_macs(unrolled, size) == unrolled.alternatives == {}


@pytest.fixture
def official(monkeypatch, tmp_path):
    """A checkpoint of a tiny architecture, as the release writes it: prefixes, and f four times."""
    cell = CellConfig(channels=(4, 8, 12), expansion=2, groups=4)
    monkeypatch.setitem(weight_names.CELLS, "mdeq_small", cell)
    importer.expected_shapes.cache_clear()
    tensors = random_tensors(cell.channels, cell.expansion, classes=5)
    saved = {f"model.{name}": array for name, array in tensors.items()}
    for name, array in tensors.items():
        inner = name.removeprefix("fullstage.")
        if inner != name:
            for copy in ("fullstage_copy", "deq.func", "deq.func_copy"):
                saved[f"model.{copy}.{inner}"] = array
    np.savez(tmp_path / "mdeq.npz", **saved)
    yield cell, tensors, tmp_path / "mdeq.npz"
    importer.expected_shapes.cache_clear()


def test_the_cell_is_that_of_official_checkpoints(official):
    cell, tensors, file = official
    variables, report = import_weights("mdeq_small", file)
    assert report.missing == report.unexpected == ()
    assert variables["params"]["head"]["conv2"]["kernel"].shape == (1, 1, 24, 5)
    np.testing.assert_array_equal(
        variables["batch_stats"]["stem"]["bn3"]["var"], tensors["stage0.1.running_var"]
    )
    rng = np.random.default_rng(1)
    z = [rng.normal(size=(c, 8 // 2**i, 12 // 2**i)) for i, c in enumerate(cell.channels)]
    x = rng.normal(size=(4, 8, 12))
    expected = reference_cell(tensors, z, x, cell.groups)
    ours = [jnp.asarray(one.transpose(1, 2, 0)[None], jnp.float32) for one in (*z, x)]
    params = weight_normed(variables["params"]["cell"])
    found = jit(Cell(cell).apply)({"params": params}, tuple(ours[:-1]), ours[-1])
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a[0], b.transpose(1, 2, 0), atol=2e-4)


def test_checkpoints_of_classifiers_lack_the_head_alone(official, tmp_path):
    _, tensors, _ = official
    known = {name: array for name, array in tensors.items() if not name.startswith("last_layer")}
    known |= {"incre_modules.0.0.conv1.weight": np.ones((1, 1, 1, 1)), "classifier.bias": np.ones(2)}
    np.savez(tmp_path / "cls.npz", **known)
    _, report = import_weights("mdeq_small", tmp_path / "cls.npz")
    assert report.unexpected == ()
    assert {name.split("/")[1] for name in report.missing} == {"head"}
    np.savez(tmp_path / "odd.npz", **known, something=np.ones(3))
    assert import_weights("mdeq_small", tmp_path / "odd.npz")[1].unexpected == ("something",)


def test_weight_norm():
    """It starts as what it is drawn as; a gain is the length of its filter, whatever the kernel's."""
    layer = WeightNormConv(3, 4)
    params = jit(layer.init)(jax.random.key(0), jnp.zeros((1, 2, 2, 3)))["params"]
    normed = weight_normed({"conv": params, "other": {"kernel": jnp.ones(2)}})
    np.testing.assert_allclose(normed["conv"]["kernel"], params["kernel"], rtol=1e-5)
    np.testing.assert_array_equal(normed["other"]["kernel"], np.ones(2))
    changed = weight_normed({"gain": 2 * params["gain"], "kernel": 5 * params["kernel"]})
    np.testing.assert_allclose(changed["kernel"], 2 * params["kernel"], rtol=1e-5)


def test_predictions_on_the_way():
    system, variables, outputs = predicted()
    assert len(outputs.exits) == 3
    for one in (*outputs.exits, outputs.predictions):
        assert one["segmentation"].shape == (2, *SIZE, 3)
    np.testing.assert_array_equal(outputs.measures["iterations"], [8, 8])
    np.testing.assert_array_equal(outputs.measures["diverged"], [0, 0])
    assert (outputs.measures["residual"] < 1e-2).all()
    # Nearer and nearer to the end.
    last = outputs.predictions["segmentation"]
    gaps = [float(np.abs(one["segmentation"] - last).max()) for one in outputs.exits]
    assert gaps == sorted(gaps, reverse=True)
    predictor = StepPredictor(system, variables)
    steps = list(predictor.run(batch()["image"]))
    for step, one in zip(steps, (*outputs.exits, outputs.predictions), strict=True):
        np.testing.assert_allclose(step.predictions["segmentation"], one["segmentation"], atol=1e-3)
        assert step.confidence.shape == (2, 5, 6)
        assert ((step.confidence > 1 / 3 - 1e-6) & (step.confidence <= 1)).all()
    macs = system_macs(system, SIZE).steps
    assert steps[-1].total_macs == sum(macs)
    assert predictor.predict(batch()["image"], budget_macs=sum(macs[:2])).index == 1


def test_alternatives_are_the_exits():
    system, variables, outputs = predicted()
    assert list(system.alternatives) == ["iterations_1", "iterations_2", "iterations_5", "iterations_8"]
    fewer = jit(system.alternatives["iterations_2"].apply)(variables, batch()["image"])
    assert fewer.exits == ()
    np.testing.assert_allclose(fewer.predictions["segmentation"], outputs.exits[1]["segmentation"], atol=1e-4)


@cache
def trained(**changes):
    system = build(
        **{name: dict(value) if isinstance(value, tuple) else value for name, value in changes.items()}
    )
    variables = fresh(system)

    # The batch is an argument: constants are folded while the program is compiled.
    def loss(params, seed, batch):
        rngs = {"dropout": jax.random.key(seed)}
        return system.loss({**variables, "params": params}, batch, rngs=rngs, controls={})

    step = jit(jax.value_and_grad(loss, has_aux=True))
    return variables, lambda params, seed: step(params, seed, batch())


def test_training_through_the_fixed_point():
    variables, step = trained(jacobian=(("weight", 0.5),))
    (value, aux), gradient = step(variables["params"], 0)
    assert set(aux.terms) == {"segmentation", "jacobian", "iterations", "residual", "diverged"}
    np.testing.assert_allclose(value, aux.terms["segmentation"] + aux.terms["jacobian"], rtol=1e-6)
    assert aux.terms["iterations"] == 8
    assert aux.terms["diverged"] == 0
    # The same mask in all iterations, or there would be no fixed point to come near to.
    assert aux.terms["residual"] < 0.03
    for path, leaf in named_leaves(gradient):
        assert np.isfinite(leaf).all(), path
        assert np.abs(leaf).max() > 0, path
    again, _ = step(variables["params"], 0)
    assert again[0] == value
    other, _ = step(variables["params"], 1)
    assert other[0] != value
    stats = aux.updates["batch_stats"]
    for layer in (("stem", "bn1"), ("head", "bn1")):
        old, new = (tree[layer[0]][layer[1]]["mean"] for tree in (variables["batch_stats"], stats))
        assert (np.asarray(old) != np.asarray(new)).any()


def test_pretraining_is_plain_recurrence():
    """Loss and gradient are those of the layers of the network, called three times in a row."""
    searches = ("forward", "backward", "anytime")
    section = {name: value for name, value in SECTION.items() if name not in searches}
    system = papers.build(section | dict(unrolled=3, cell=SECTION["cell"] | dict(dropout=0.0)))
    variables, fields = fresh(system), batch()

    def loss(params, fields):
        return system.loss({**variables, "params": params}, fields, rngs={}, controls={})[0]

    def plainly(params, fields):
        here = {**variables, "params": params}
        run = partial(system.network.apply, here, train=True, mutable=["batch_stats"])
        x, _ = run(fields["image"], method="inject")
        z = (jnp.zeros((2, 5, 6, 4)), jnp.zeros((2, 3, 3, 8)))
        for _ in range(3):
            z = Cell(system.config.cell).apply({"params": weight_normed(params["cell"])}, z, x)
        logits, _ = run(z, method="decode")
        # Bilinear with the corners aligned: index times (n - 1) / (N - 1).
        rows, columns = (np.arange(n) * (m - 1) / (n - 1) for n, m in zip(SIZE, (5, 6), strict=True))
        logits = jax.vmap(
            jax.vmap(
                lambda one: jax.scipy.ndimage.map_coordinates(
                    one, jnp.meshgrid(rows, columns, indexing="ij"), order=1
                ),
                in_axes=-1,
                out_axes=-1,
            )
        )(logits)
        probabilities = jax.nn.log_softmax(logits)
        return -jnp.take_along_axis(probabilities, fields["segmentation"][..., None], -1).mean()

    (value, gradient), (plain, expected) = (
        jit(jax.value_and_grad(fn))(variables["params"], fields) for fn in (loss, plainly)
    )
    np.testing.assert_allclose(value, plain, rtol=1e-5)
    for (path, a), (_, b) in zip(named_leaves(gradient), named_leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-3 * float(np.abs(b).max()) + 1e-6, err_msg=path)


@pytest.mark.slow
def test_memory_of_a_training_step_does_not_grow():
    def temporary(**changes):
        system = build(**changes)
        variables = jax.eval_shape(lambda: fresh(system))

        def loss(params, variables, batch):
            rngs = {"dropout": jax.random.key(0)}
            return system.loss({**variables, "params": params}, batch, rngs=rngs, controls={})[0]

        program = jax.jit(jax.grad(loss)).lower(variables["params"], variables, batch()).compile()
        return program.memory_analysis().temp_size_in_bytes

    solver = dict(memory=4, tolerance=0.0)
    implicit = [
        temporary(forward=dict(solver, iterations=n), backward=dict(solver, iterations=n)) for n in (4, 8, 16)
    ]
    assert max(implicit) - min(implicit) < 0.01 * min(implicit)
    assert temporary(unrolled=16) > 1.5 * temporary(unrolled=4)


def test_a_diverging_search_is_counted():
    """Weights of NaN in f: nothing is finite from the start on, and that is said."""
    system, variables, _ = predicted()
    broken = map_named(
        lambda path, leaf: leaf * jnp.nan if path == "params/cell/post_gn_0/scale" else leaf, variables
    )
    outputs = jit(system.apply)(broken, batch()["image"])
    np.testing.assert_array_equal(outputs.measures["diverged"], [1, 1])
    np.testing.assert_array_equal(outputs.measures["iterations"], [0, 0])
    # The start is what is left: an image of zeros in all branches is decoded.
    assert np.isfinite(outputs.predictions["segmentation"]).all()
    # A share, so that the mean over microbatches is that of the batch.
    loss = jit(lambda given, batch, rngs: system.loss(given, batch, rngs=rngs, controls={})[1].terms)
    assert loss(broken, batch(), {"dropout": jax.random.key(0)})["diverged"] == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(cell=dict(channels=(12,))), "cell.channels"),
        (dict(cell=dict(groups=3)), "cell.groups"),
        (dict(forward=dict(method="newton")), "forward.method"),
        (dict(forward=dict(iterations=0)), "forward.iterations"),
        (dict(anytime=dict(iterations=(4, 4))), "anytime.iterations"),
        (dict(anytime=dict(iterations=(0, 4))), "anytime.iterations"),
        (dict(jacobian=dict(weight=1.0), unrolled=3), "jacobian.weight"),
        (dict(unrolled=-1), "unrolled"),
        (dict(task="segmentatoin"), "did you mean"),
    ],
)
def test_sections_that_make_no_sense(changes, message):
    with pytest.raises(UserError, match=message):
        build(**changes)
