"""What holds for the settings of every config: what a default is worth, and that every value has a reader."""

from __future__ import annotations

import copy
import re
from functools import cache

import pytest

from dynpix_jax.core.config import settings
from dynpix_jax.core.configs import given_args
from dynpix_jax.core.errors import UserError
from dynpix_jax.core.merging import leaves
from dynpix_jax.run_config import read_run
from tests.every_config import FILES, ROOT, VARIANTS, change, read, written_out


@pytest.mark.parametrize("spec", [*FILES, *VARIANTS])
def test_a_default_makes_no_difference(spec):
    run = read(spec)
    full = written_out(run)
    assert read(copy.deepcopy(full)) == run
    # Nor do some of the defaults, the others left out.
    given = dict(leaves(run.given))
    paths = (path for path, _ in leaves(full) if path not in given)
    defaults = list(dict.fromkeys(re.sub(r"multipliers\[.*", "multipliers", path) for path in paths))
    assert len(defaults) > 20
    for first in (0, 1):
        some = copy.deepcopy(full)
        for path in defaults[first::2]:
            change(some, path, None, remove=True)
        assert read(some) == run


VALUES = {
    "rho": "0.6", "gate_scope": "conv3x3", "drop_blocks": "2 1", "drop_layers": "1", "stem": "3x3 7x7",
    "multipool": "res4_2 res3_2", "budget": "gpu cpu", "loss": "l1 cosine", "loops": "1", "tied": "True",
    "pooling": "multiscale", "gate": "argmax", "blur": "2.0", "regression": "True", "test_aug": "True",
    "steps": "999", "fc": "2", "width": "64", "pixels": "77", "images": "3", "conv7": "True False",
    "test_scales": "0.75", "seed": "5", "rare": "0.4", "consensus": "2.0", "solver": "anderson",
    "iterations": "5", "read_out": "1+3", "jacobian": "0.3", "arch": "w18", "downsampling": "1+1+1",
    "criterion": "entropy", "threshold": "0.7", "normalize": "present", "heads": "plain",
    "norm": "shared own", "se": "dec", "w_d": "0.2", "decoder": "uber", "split": "test train",
    "root": "elsewhere", "weights": "other.safetensors", "continue_from": "runs/x", "packed": "True",
    "recipe": "paper ours", "loop_loss": "nyuv2 cityscapes", "scores": "astmt", "valid_normals": "astmt",
    "masked": "training inference", "calibrate": "mean", "train_split": "trainval",
    "variant": "average base ee single small tiny", "task": "depth boundaries normals",
    "backbone": "50 r26", "classes": "5 13 33 40", "every": "7", "flip": "False", "network": "small",
    "points": "points.mat", "sbd": "elsewhere", "strategy": "uniform", "train_scales": "full half",
    "balanced": "True", "label_root": "elsewhere", "crop": "96", "val_share": "0.3", "tap": "relu",
    "labels": "depth+normals", "bsds": "elsewhere", "camvid": "elsewhere", "gates": "soft base",
    "later": "2",
}  # fmt: skip
"""Every argument of a config, with values of which one at least is not what the config has anyway."""

ARGUED = (*FILES, *VARIANTS, "configs/pag/stanford2d3d.py:task=normals")

NOT_READ = re.compile(r"do(es)? not read it|nothing reads|(is|has) no (loop|depth|class)|valid: [^, ]+$")
"""What the refusal of an argument says that would have no effect; the last: there is one choice."""


def arguments(spec: str) -> set[str]:
    """The names that a config's string argument may have, as it lists them for one that it does not know."""
    with pytest.raises(UserError) as error:
        read(with_argument(spec, "no_such_argument=0"))
    listed = re.search(r"(?:valid:|this config reads) (.*)", str(error.value))
    assert listed is not None, error.value
    return set(listed[1].split(", "))


def with_argument(spec: str, argument: str) -> str:
    return f"{spec}{',' if ':' in spec else ':'}{argument}"


@cache
def effects(spec: str) -> dict[str, bool]:
    """Argument -> whether a value changes the run; otherwise it is refused because nothing would read it."""
    run, found = settings(read(spec)), {}
    for name in arguments(spec) - given_args(spec.partition(":")[2]):
        refusals = []
        found[name] = False
        for value in VALUES[name].split():
            try:
                found[name] |= settings(read(with_argument(spec, f"{name}={value}"))) != run
            except UserError as error:
                refusals.append(str(error))
        refused = any(NOT_READ.search(refusal) for refusal in refusals)
        assert found[name] or refused, f"{spec}: {name}={VALUES[name]} changes nothing: {refusals}"
    return found


@pytest.mark.parametrize("spec", ARGUED)
def test_every_argument_has_an_effect_or_is_not_read(spec):
    assert effects(spec)


def test_every_argument_has_an_effect_somewhere():
    assert set().union(*map(arguments, FILES)) == set(VALUES)
    effective = {name for spec in ARGUED for name, changes in effects(spec).items() if changes}
    assert effective == set(VALUES)


@pytest.mark.parametrize(
    ("spec", "change", "key"),
    [
        ("configs/pag/nyuv2.py:variant=gated,rho=0.7", "model.gate.rho=0.3", "stages[3].model.gate.rho"),
        ("configs/pag/nyuv2.py", "model.gate.rho=0.3", "model.gate.kind"),
        ("configs/pag/camvid.py:variant=gated", "model.gate.weight=1.0", "stages[2].model.gate.weight"),
        ("configs/quickstart.py", "training.momentum=0.5", "training.optimizer"),
        ("configs/mdeq/camvid.py:continue_from=x", "model.forward.mixing=0.5", "anderson"),
        ("configs/pixelnet/scenes.py", "model.sampling.rare_share=0.3", "biased"),
        ("configs/anytime/camvid.py:variant=ee", "model.heads.features=32", "model.heads.kind"),
        ("configs/astmt/nyud.py:decoder=uber", "model.decoder.features=32", "model.decoder.kind"),
        ("configs/perspective/nyuv2.py", "model.depth_features=(8, 8)", "model.pooling.signal"),
        ("configs/pag/camvid.py", "evaluation.thresholds=25", "boundary benchmark"),
        ("configs/pag/camvid.py", "evaluation.workers=1", "does not score segmentation"),
        ("configs/astmt/nyud.py:variant=single,task=depth", "evaluation.max_dist=0.01", "score depth"),
        ("configs/pag/camvid.py", "evaluation.inference.blur=2.0", "smooths depth"),
        ("configs/pag/camvid.py", "execution.implementation=gather", "no stage has gates"),
        ("configs/mdeq/camvid.py:continue_from=x", "execution.implementation=gather", "no stage has gates"),
        ("configs/astmt/nyud.py", "execution.implementation=gather", "no stage has gates"),
        ("configs/pixelnet/scenes.py", "model.backbone.fc_features=64", "model.hypercolumn.layers"),
        ("configs/pixelnet/scenes.py", "model.backbone.dropout=0.1", "model.hypercolumn.layers"),
        ("configs/pag/camvid.py", "data.eval.pad_to=(9,9)", "only training"),
        ("configs/pag/camvid.py", "model.gate.temperature=(3.0,2.0)", "nothing is drawn"),
        ("configs/pag/camvid.py:variant=average", "training.stages[1].model.gate.soft=True", "is drawn"),
        ("configs/perspective/nyuv2.py:variant=pred_depth", "model.bins.focal_baseline=1.0", "bins.focal"),
        ("configs/perspective/nyuv2.py", "model.loss.segmentation=(1.0,5.0)", "model.loops is 0"),
        ("configs/anytime/camvid.py:variant=hrnet", "model.heads.features=64", "no exit before stage 4"),
        ("configs/anytime/scenes_pose.py:variant=hrnet", "model.heads.inputs=highest", "one branch"),
        ("configs/astmt/nyud.py:variant=single", "model.encoder.se=True", "a single task"),
        ("configs/astmt/nyud.py:variant=adversarial,w_d=0", "model.adversarial.epochs=3", "weight is 0"),
        ("configs/astmt/fsv.py", "data.train.source.every_test_image=True", "split 'test'"),
    ],
)  # fmt: skip
def test_what_nothing_reads_is_refused_with_the_key_that_counts(spec, change, key):
    with pytest.raises(UserError, match="nothing reads") as error:
        read_run(str(ROOT / spec), [change])
    assert key in str(error.value)
    assert change.split("=")[0] in str(error.value)


def test_a_network_has_no_such_alternative():
    with pytest.raises(UserError, match=r"evaluation\.also: this network has no 'loop_3'; .* loop_0"):
        read_run(str(ROOT / "configs/perspective/nyuv2.py:loops=2"), ["evaluation.also=('loop_3',)"])


def test_what_an_alternative_reads_is_read():
    """The soft choices of a network have no gates; evaluated by their largest, they have."""
    spec, change = "configs/perspective/nyuv2.py:variant=pred_depth", "execution.implementation=gather"
    assert read_run(str(ROOT / spec), [change]).evaluation.also == ("argmax",)
    with pytest.raises(UserError, match="no stage has gates"):
        read_run(str(ROOT / spec), [change, "evaluation.also=()"])
    # A MultiPool draws by gates' temperature, without gates.
    change = "training.stages[1].model.gate.temperature=(3.0,2.0)"
    multipool = read_run(str(ROOT / "configs/pag/camvid.py:variant=multipool"), [change])
    assert multipool.stages[1].model.gate.temperature == (3.0, 2.0)
    change = "execution.implementation=gather"
    # In training a gate may stand in one stage alone.
    assert read_run(str(ROOT / "configs/quickstart.py"), [change]).execution.implementation == "gather"


def test_a_default_of_a_task_makes_no_difference():
    """What ASTMT leaves out of a task's options and weights is the task's default."""
    config = read("configs/astmt/nyud.py").given
    model = {**config["model"], "task_weights": {}}
    options = {**model["task_options"], "normals": {}, "depth": {"scale_invariance": 0.0}}
    short = {**config, "model": {**model, "task_options": options}}
    long = {
        **config,
        "model": {**model, "task_options": {**options, "depth": {}}, "task_weights": {"depth": 1}},
    }
    assert read(short) == read(long)
    with pytest.raises(UserError, match=r"model\.task_options\.depth\.scale_invarance: unknown key"):
        read({**config, "model": {**model, "task_options": {**options, "depth": {"scale_invarance": 0.0}}}})


def test_a_default_of_a_part_makes_no_difference():
    """What the part of a joint source leaves out is that source's default, and the joint source's split."""
    config = read("configs/astmt/bsds_camvid.py:variant=multi").given
    train, (edges, classes) = config["data"]["train"], config["data"]["train"]["source"]["sources"]

    def with_parts(*parts):
        source = {**train["source"], "sources": parts}
        return {**config, "data": {**config["data"], "train": {**train, "source": source}}}

    short = {"name": edges["name"], "root": edges["root"]}
    long = {**edges, "label": "consensus", "consensus": 0.3, "split": "train"}
    assert read(with_parts(short, classes)) == read(with_parts(long, classes)) == read(config)
    with pytest.raises(UserError, match=r"config\.data\.train\.source\.sources\[1\]\.rooot: unknown key"):
        read(with_parts(edges, {**classes, "rooot": ""}))
