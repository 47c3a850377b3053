"""DCLGAN and two-sided QS-Attn: the released steps in float64, negatives, refusals."""

from __future__ import annotations

import pytest
import torch
from golden import load_baseline, under
from textbook import load_before, run_steps

from models import create_model
from models.dcl_model import DCLModel
from models.patchnce import PatchNCELoss
from models.qs_dual_model import QSDualModel
from options.train_options import TrainOptions
from util.errors import UserError

TINY = "--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 12 --num_patches 24"
GOLDEN = f"--model dcl {TINY} --netG resnet_6blocks --netD n_layers --n_layers_D 2"
LAYERS = (4, 8, 12, 16)


def model_of(words):
    torch.manual_seed(0)
    return create_model(TrainOptions().parse(words.split()))


def batch(seed=0, count=1, size=(32, 32)):
    generator = torch.Generator().manual_seed(seed)
    return {domain: torch.rand(count, 3, *size, generator=generator) * 2 - 1 for domain in "AB"}


def close(found, expected, rtol=1e-5, atol=1e-6):
    torch.testing.assert_close(found.detach(), expected, rtol=rtol, atol=atol)


def golden_positions(golden, number):
    """The positions of step `number` in the order in which they are drawn."""
    return [golden[f"step{number}.ids_NCE{term}_layer{layer}"] for layer in LAYERS for term in (1, 2)]


def test_two_steps_of_the_released_code(float64):
    golden = load_baseline("dclgan_step")
    model = model_of(GOLDEN)
    load_before(model, golden)
    batches = [{domain: golden[f"step{n}.real_{domain}"] for domain in "AB"} for n in (1, 2)]
    positions = [golden_positions(golden, n) for n in (1, 2)]
    for number, (losses, gradients) in enumerate(run_steps(model, model, batches, positions), start=1):
        assert losses.keys() == {key.split("loss_")[1] for key in under(golden, "lsgan_step1.")}
        for loss, value in losses.items():
            assert value == pytest.approx(golden[f"step{number}.loss_{loss}"].item(), rel=1e-5), loss
        if number == 1:
            expected = under(golden, "grad1.")
            assert {key.split(".")[0] for key in expected} == model.networks.keys()
            for key, value in expected.items():
                close(gradients[key], value, atol=1e-6 * value.abs().max().item() + 1e-9)
        for image in ("fake_B", "fake_A", "idt_A", "idt_B"):
            if f"step{number}.{image}" in golden:
                close(model.results[image], golden[f"step{number}.{image}"])
    translated = model.networks["G_A"](golden["step1.real_A"])
    close(translated, golden["final.fake_B_of_step1_A"])
    close(model.networks["D_A"](translated), golden["final.D_A_of_it"])
    close(model.networks["G_B"](golden["step1.real_B"]), golden["final.fake_A_of_step1_B"])
    for name in ("weight", "bias"):
        close(model.networks["F1"].mlp_3[2].get_parameter(name), golden[f"after.F1.mlp_3.2.{name}"])


def test_the_first_released_step_with_lsgan(float64):
    golden = load_baseline("dclgan_step")
    model = model_of(f"{GOLDEN} --gan_mode lsgan")
    load_before(model, golden)
    images = [{domain: golden[f"step1.real_{domain}"] for domain in "AB"}]
    ((losses, _),) = run_steps(model, model, images, [golden_positions(golden, 1)])
    for loss, value in losses.items():
        assert value == pytest.approx(golden[f"lsgan_step1.loss_{loss}"].item(), rel=1e-5), loss


SMALL = "--gpu_ids -1 --ngf 4 --ndf 4 --num_patches 24 --netG resnet_4blocks"


def test_with_random_patches_qs_dual_is_dcl_bit_for_bit(monkeypatch):
    dcl, dual = (model_of(f"--model {name} {SMALL}") for name in ("dcl", "qs_dual"))
    monkeypatch.setattr(QSDualModel, "choose_patches", DCLModel.choose_patches)
    for number in range(3):
        for model in (dcl, dual):
            model.set_input(batch(number, 2))
            torch.manual_seed(number)
            model.optimize_parameters()
        assert dcl.get_current_losses() == dual.get_current_losses()
    for name, net in dcl.networks.items():
        for ours, theirs in zip(net.parameters(), dual.networks[name].parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_attention_alone_carries_gradient_from_a_term_into_its_source_encoder():
    """NCE1 reaches G_A beyond its translation through qs_dual's attention rows, and not at all in dcl."""
    for name, reached in {"dcl": False, "qs_dual": True}.items():
        model = model_of(f"--model {name} {SMALL}")
        model.set_input(batch())
        images, features = model.forward()
        loss = model.contrastive("NCE1", model.contrast_sources(features)["NCE1"], images["fake_B"].detach())
        weight = model.networks["G_A"].model[1].weight
        (gradient,) = torch.autograd.grad(loss, weight, allow_unused=True)
        assert (gradient is not None) == reached


def test_no_attention_matrix_of_all_positions_has_a_gradient(monkeypatch):
    """What autograd keeps of the selection has as many rows as there are queries."""
    model = model_of(f"--model qs_dual {SMALL} --num_patches 4")
    model.set_input(batch(size=(32, 64)))
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.shape) or t, lambda t: t):
        images, features = model.forward()
        sources = model.contrast_sources(features)
        model.generator_loss(images, sources)
    positions = 8 * 16
    assert saved and not [shape for shape in saved if shape[-2:] == (positions, positions)]


def test_all_patches_of_a_batch_are_negatives():
    """By a loop over patches: the loss of one against the keys of both images, not only its own."""
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(2, 2, 3, 5, dtype=torch.float64, generator=generator)
    model = model_of(f"--model dcl {SMALL} --nce_T 0.5")
    flat_queries, flat_keys = queries.flatten(0, 1), keys.flatten(0, 1)
    expected = 0.0
    for p, query in enumerate(flat_queries):
        scores = torch.stack([query @ key / 0.5 for key in flat_keys])
        expected -= scores.log_softmax(0)[p] / len(flat_queries)

    class Fixed:
        """A selection and a head that hand out the patches above."""

        def route(self, features):
            return features

        def encode(self, fake, layers):
            return [queries]

        def of_layers(self, patches):
            return patches

    model.networks = {"G_B": Fixed(), "F2": Fixed()}
    found = model.contrastive("NCE1", ([Fixed()], [keys]), torch.zeros(2, 3, 4, 4))
    close(found, 2.0 * expected, rtol=1e-9)
    apart = PatchNCELoss(0.5)(queries, keys).mean()
    assert (found / 2 - apart).abs() > 0.1


def test_heads_learn_at_the_rate_of_adams_own_defaults_and_decay_with_the_others():
    model = model_of(f"--model dcl {SMALL} --lr 0.01 --beta1 0.1 --n_epochs 0 --n_epochs_decay 3")
    model.set_input(batch())
    model.optimize_parameters()
    groups = {name: optimizer.param_groups[0] for name, optimizer in model.optimizers.items()}
    assert groups["F1"]["betas"] == groups["F2"]["betas"] == (0.9, 0.999)
    assert groups["G_A"]["betas"] == groups["D_B"]["betas"] == (0.1, 0.999)
    shares = {name: group["lr"] / (1e-3 if name[0] == "F" else 0.01) for name, group in groups.items()}
    assert shares == pytest.approx(dict.fromkeys(groups, 0.75))
    model.update_learning_rate()
    assert groups["F1"]["lr"] == pytest.approx(0.5e-3)


def test_domains_of_different_channels_are_contrasted_each_by_its_own_encoder():
    model = model_of(f"--model dcl {SMALL} --input_nc 1 --lambda_IDT 0 --nce_layers 0,4")
    images = batch()
    model.set_input({"A": images["A"][:, :1], "B": images["B"]})
    model.optimize_parameters()
    assert model.results["fake_A"].shape[1] == 1 and model.results["fake_B"].shape[1] == 3
    assert all(value == value for value in model.get_current_losses().values())


def test_a_step_that_is_not_finite_changes_no_weight():
    model = model_of(f"--model qs_dual {SMALL}")
    images = batch()
    model.set_input(images)
    model.optimize_parameters()
    before = {name: [p.clone() for p in net.parameters()] for name, net in model.networks.items()}
    images["A"] = torch.full_like(images["A"], torch.nan)
    model.set_input(images)
    model.optimize_parameters()
    failure = model.guard.failure()
    assert failure.step == 1 and {"D_A", "D_B"} <= set(failure.names)
    for name, net in model.networks.items():
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before[name], strict=True)), name


@pytest.mark.parametrize(
    "words, told",
    {
        "--model dcl --input_nc 1": "--lambda_IDT 0",
        "--model dcl --nce_idt false": "--nce_idt has no effect with --model dcl",
        "--model dcl --lambda_NCE 0 --lambda_GAN 0": "nothing to learn from",
        "--model qs_dual --qs_variant released": "--qs_variant has no effect with --model qs_dual",
        "--model qs_dual --qs_layers 0": "--qs_layers names 0",
    }.items(),
)
def test_what_cannot_be_is_refused(words, told):
    options = TrainOptions()
    with pytest.raises(UserError, match=told):
        options.resolve(options.parser.parse_given(words.split()))
