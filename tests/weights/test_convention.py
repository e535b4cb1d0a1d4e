"""What an import says about strides and colours, and what refuses weights that follow another convention."""

from __future__ import annotations

import json
import re
import shlex

import numpy as np
import pytest
import safetensors.numpy

from dynpix_jax import papers
from dynpix_jax.backbones.pretrained import TORCH
from dynpix_jax.cli import import_weights as cli
from dynpix_jax.cli import main
from dynpix_jax.core.errors import UserError
from dynpix_jax.run_config import read_run
from dynpix_jax.training.initial import initial_variables
from dynpix_jax.weights import import_weights, read_weights, write_weights
from dynpix_jax.weights.convention import check_settings, read_settings, to_header
from tests.weights import caffe_net as cn
from tests.weights import matlab_net as mn
from tests.weights import torch_zip as tz

BLOCK = {"layer1.0.conv1.weight": np.ones((64, 64, 1, 1), np.float32)}


def model(**backbone):
    return papers.parse(dict(system="pag", task="boundaries", backbone=dict(depth=50, **backbone)))


@pytest.mark.parametrize(
    ("name", "arch", "settings"),
    [
        ("a.pth", "resnet50", {"stride_in_1x1": False, "preprocessing": "torch"}),
        ("a.pth.tar", "resnet18", {"preprocessing": "torch"}),
        ("a.safetensors", "resnet50", {}),
        ("a.pth", "se_resnet50", {}),  # those that begin an ASTMT network get strides and colours there
    ],
)
def test_what_is_told(tmp_path, name, arch, settings):
    state = BLOCK if arch != "resnet18" else {"conv1.weight": np.ones((64, 3, 7, 7), np.float32)}
    path = tmp_path / name
    if name.endswith("safetensors"):
        safetensors.numpy.save_file(state, path)
    else:
        tz.save(path, {key: tz.tensor(array) for key, array in state.items()})
    _, report = import_weights(arch, path)
    assert report.settings == settings
    untold = {"stride_in_1x1", "preprocessing"} - settings.keys() if arch != "resnet18" else set()
    assert set(report.untold) == untold
    _, stated = import_weights(arch, path, convention="caffe")
    assert stated.settings["preprocessing"] == "caffe"
    assert stated.untold == ()


def test_vgg_of_caffe_and_of_matconvnet(tmp_path):
    """The same network in both formats: one reads BGR, the other RGB."""
    kernel = np.random.default_rng(0).normal(size=(64, 3, 3, 3)).astype("f4")
    caffe = cn.save(tmp_path / "a.caffemodel", cn.layer("conv1_1", "Convolution", [cn.blob(kernel)]))
    turned = kernel[:, ::-1].transpose(2, 3, 1, 0)
    net = {"layers": [{"name": "conv1_1", "type": "conv", "weights": [turned, np.zeros(64, "f4")]}]}
    found = [import_weights("vgg16", file) for file in (caffe, mn.save(tmp_path / "a.mat", net, "7"))]
    for variables, report in found:
        assert report.settings == {"preprocessing": "caffe"}
        np.testing.assert_array_equal(variables["params"]["conv1_1"]["kernel"], kernel.transpose(2, 3, 1, 0))


def test_the_file_carries_it_and_another_config_refuses(tmp_path, capsys):
    source, out = tmp_path / "resnet50-0676ba61.pth", tmp_path / "w.safetensors"
    tz.save(source, {key: tz.tensor(array) for key, array in BLOCK.items()})
    argv = ["import-weights", "--arch=resnet50", f"--source={source}", f"--out={out}"]
    assert main.main(argv) == 0
    said = "convention: stride in the 3x3 (stride_in_1x1=False), RGB / 255, mean, standard deviation"
    assert said in capsys.readouterr().out
    assert read_settings(out) == TORCH
    with pytest.raises(UserError) as refused:
        initial_variables(str(out), model())
    assert str(refused.value) == (
        f"{out}: weights of another convention: they have stride in the 3x3, RGB / 255, mean, standard "
        "deviation; the config has stride in the first 1x1, BGR in 0..255 less the mean. Change the config: "
        "--set model.backbone.stride_in_1x1=False model.backbone.preprocessing=torch"
    )
    assert initial_variables(str(out), model(stride_in_1x1=False, preprocessing="torch")) is not None
    assert (
        initial_variables(str(out), papers.parse(dict(system="mdeq", task_options=dict(classes=5))))
        is not None
    )  # it has neither
    # A file of ours keeps what it says; a file that says nothing is taken by all.
    assert main.main([*argv[:2], f"--source={out}", f"--out={tmp_path / 'again.safetensors'}"]) == 0
    assert read_settings(tmp_path / "again.safetensors") == TORCH
    write_weights(tmp_path / "old.safetensors", read_weights(out), {"architecture": "resnet50"})
    assert initial_variables(str(tmp_path / "old.safetensors"), model()) is not None
    check_settings("x", {}, None)


def test_a_damaged_header(tmp_path):
    path = tmp_path / "w.safetensors"
    for entry in ("{", "[1]"):
        write_weights(path, {"params": {"a": np.ones(2)}}, {"backbone": entry})
        with pytest.raises(UserError, match=r"w\.safetensors: the entry 'backbone' of its header is damaged"):
            read_settings(path)
    write_weights(path, {"params": {"a": np.ones(2)}}, {"backbone": json.dumps({"other": 1})})
    assert read_settings(path) == to_header({}) == {}


def test_the_examples_of_the_help_fit_each_other():
    """The first has the settings that its config needs; every config of an example is one."""
    text = cli.__doc__.replace("\\\n", " ")
    commands = [shlex.split(line) for line in text.splitlines() if re.match(r" +(dynpix|python) ", line)]
    by_name = {words[1]: words for words in reversed(commands)}
    train = by_name["train.py"]
    config = next(word for word in train if word.startswith("--config=")).removeprefix("--config=")
    run = read_run(config, train[train.index("--set") + 1 :])
    assert by_name["import-weights"][:4] == ["dynpix", "import-weights", "--arch", "resnet50"]
    check_settings(by_name["import-weights"][-1], TORCH, run.stages[0].model.backbone)
    assert run.training.init_from == by_name["import-weights"][-1]
    assert read_run(by_name["eval.py"][2].removeprefix("--config=")).stages[-1].model.adaptivity is not None


def test_a_resnet_of_caffe(tmp_path):
    """Moments are sums with a divisor, scale and bias a layer of their own; the stem has a bias."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=shape).astype("f4")

    kernel, bias, mean, var, gain, shift = normal(64, 3, 7, 7), *(normal(64) for _ in range(5))
    strides = cn.number(6, 2)
    path = cn.save(
        tmp_path / "ResNet-50-model.caffemodel",
        cn.layer("data", "Data", mean=(103.939, 116.779, 123.68)),
        cn.layer("conv1", "Convolution", [cn.blob(kernel), cn.blob(bias)], convolution=strides),
        cn.layer("bn_conv1", "BatchNorm", [cn.blob(mean), cn.blob(var), cn.blob(np.array([4.0]))]),
        cn.layer("scale_conv1", "Scale", [cn.blob(gain), cn.blob(shift)]),
        cn.layer("res2a_branch2a", "Convolution", [cn.blob(normal(64, 64, 1, 1))]),
        cn.layer("res3d_branch2b", "Convolution", [cn.blob(normal(128, 128, 3, 3))]),
        cn.layer("res3a_branch1", "Convolution", [cn.blob(normal(512, 256, 1, 1))], convolution=strides),
        cn.layer("fc1000", "InnerProduct", [cn.blob(normal(1000, 2048)), cn.blob(normal(1000))]),
    )
    variables, report = import_weights("resnet50", path)
    assert (report.unexpected, report.settings) == ((), {"stride_in_1x1": True, "preprocessing": "caffe"})
    assert {name.rpartition("/")[0] for name in report.loaded} == {
        *("params/stem_conv", "params/stem_bn", "batch_stats/stem_bn", "params/fc"),
        *("params/res2_1/conv1", "params/res3_4/conv2", "params/res3_1/projection"),
    }
    np.testing.assert_array_equal(variables["params"]["stem_conv"]["kernel"], kernel.transpose(2, 3, 1, 0))
    moments = variables["batch_stats"]["stem_bn"]
    np.testing.assert_allclose(moments["mean"], mean / 4 - bias, rtol=1e-6)
    np.testing.assert_array_equal(moments["var"], var / 4)
