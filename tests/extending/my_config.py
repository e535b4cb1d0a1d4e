"""Everything of one's own in one config: python train.py --config=my_config.py --workdir=runs/own"""

import ml_collections


def get_config():
    config = ml_collections.ConfigDict()
    config.name = "own"
    config.seed = 0
    config.model = dict(
        system="my_systems:Linear",
        task="segmentation",
        task_options=dict(classes=8),
        backbone=dict(name="resnet", depth=18, width=8, output_stride=16),
    )
    scenes = dict(name="scenes", size=(48, 64), length=4, fields=("segmentation",))
    config.data = dict(
        train=dict(source=dict(scenes, split="train")),
        eval=dict(source=dict(scenes, split="val")),
    )
    stage = dict(name="base", steps=2, learning_rate=1e-3)
    config.training = dict(batch_size=2, stages=(stage,), optimizer="adamw", init_from="", log_every=1)
    config.evaluation = dict(mode="dense", pictures=1)
    return config
