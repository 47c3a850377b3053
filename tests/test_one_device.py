"""Every model's step stays on its device: it runs on "meta", whose tensors have no numbers, beside the CPU.

Mixing the two raises, and so does reading a number of the device on the host, which would wait for a GPU.
"""

from contextlib import nullcontext

import pytest
import torch
from torch.optim import Adam

from models import MODELS, base_model, create_model, sesim_model
from options.train_options import TrainOptions

META = torch.device("meta")
PAIRS = "--crop_size 128 --load_size 128"
OWN = {
    "sesim": "--vgg_weights random --attn_layers 2,4 --patch_nums 24 --patch_size 3",
    "asgit_supervised": PAIRS,
    **dict.fromkeys(("qs_multi", "cut_multi", "stargan"), "--domains cat,dog"),
    "munit": "--mlp_dim 8 --n_res 1 --n_layer 2 --num_scales 2",
}
MORE = {
    "qs local": "--QS_mode local",
    "qs pooled": "--QS_mode local_global --qs_layers 0,4,8,12,16 --qs_pool 8",
    "qs released": "--qs_variant released",
    "cut wgangp": "--model cut --gan_mode wgangp",
    "cut pool": "--model cut --pool_size 2 --no_dropout false --normG batch --normD batch",
    "lsesim": f"--model sesim --learned_attn {OWN['sesim']}",
    "asgit trainable": "--model asgit --netD trainable_attn --attention_source discriminator",
    "pix2pix": f"--model asgit_supervised --attention_fusion none --netD basic --normG batch {PAIRS}",
}
CASES = {name: f"--model {name} {OWN.get(name, '')}" for name in MODELS} | MORE


class PlainAdam(Adam):
    """Adam that is not fused, since the fused one knows no "meta"; it takes no notice of the guard."""

    def __init__(self, parameters, fused, **settings):
        super().__init__(parameters, **settings)

    def step(self):
        del self.found_inf
        super().step()
        self.found_inf = None


@pytest.mark.parametrize("case", CASES)
def test_a_step_stays_on_its_device(monkeypatch, case):
    for module in (base_model, sesim_model):
        monkeypatch.setattr(module, "get_device", lambda gpu_ids: META)
    monkeypatch.setattr(base_model, "Adam", PlainAdam)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    words = f"--gpu_ids -1 --ngf 4 --ndf 4 --crop_size 64 --load_size 64 {CASES[case]}"
    model = create_model(TrainOptions().parse(words.split()))
    model.expect_images({domain: ["0.png", "1.png"] for domain in "AB"})
    side = model.opt.crop_size
    batch = {domain: torch.zeros(1, 3, side, side) for domain in "AB"}
    batch |= {f"{domain}_windows": torch.zeros(1, 5) for domain in "AB"}
    batch |= {f"{domain}_domain": torch.zeros(1, dtype=torch.long) for domain in "AB"}
    for _ in range(5):  # StarGAN's fifth updates G too
        model.set_input({**batch, "A_paths": ["0.png"], "B_paths": ["1.png"]})
        model.optimize_parameters()
    assert all(value.device == META for value in (*model.losses.values(), *model.results.values()))
