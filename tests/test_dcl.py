"""DCLGAN and two-sided QS-Attn: the released steps in float64, negatives, refusals."""

import pytest
import torch
from golden import load_baseline, under
from textbook import assert_refused, close, images, load_before, model_of, released_steps, run_steps, step

from models.dcl_model import DCLModel
from models.patchnce import PatchNCELoss
from models.qs_model import QSDualModel

TINY = "--gpu_ids -1 --ngf 4 --ndf 4 --netF_nc 12 --num_patches 24"
GOLDEN = f"--model dcl {TINY} --netG resnet_6blocks --netD n_layers --n_layers_D 2"
SMALL = "--gpu_ids -1 --ngf 4 --ndf 4 --num_patches 24 --netG resnet_4blocks"


def golden_steps(golden):
    """The batches, and the positions in the order in which they are drawn."""
    batches = [{domain: golden[f"step{n}.real_{domain}"] for domain in "AB"} for n in (1, 2)]
    drawn = [(layer, term) for layer in (4, 8, 12, 16) for term in (1, 2)]
    return batches, [[golden[f"step{n}.ids_NCE{term}_layer{layer}"] for layer, term in drawn] for n in (1, 2)]


def test_two_steps_of_the_released_code(float64):
    golden, model = load_baseline("dclgan_step"), model_of(GOLDEN)
    batches, positions = golden_steps(golden)
    steps = released_steps(model, golden, batches, ("fake_B", "fake_A"), positions)
    for number in steps:
        for name in ("idt_A", "idt_B"):
            if f"step{number}.{name}" in golden:
                close(model.results[name], golden[f"step{number}.{name}"])
    assert {key.split(".")[0] for key in under(golden, "grad1.")} == model.networks.keys()
    translated = model.networks["G_A"](golden["step1.real_A"])
    close(translated, golden["final.fake_B_of_step1_A"])
    close(model.networks["D_A"](translated), golden["final.D_A_of_it"])
    close(model.networks["G_B"](golden["step1.real_B"]), golden["final.fake_A_of_step1_B"])
    for name in ("weight", "bias"):
        close(model.networks["F1"].mlp_3[2].get_parameter(name), golden[f"after.F1.mlp_3.2.{name}"])


def test_the_first_released_step_with_lsgan(float64):
    golden, model = load_baseline("dclgan_step"), model_of(GOLDEN, "--gan_mode lsgan")
    load_before(model, golden)
    batches, positions = golden_steps(golden)
    ((losses, _),) = run_steps(model, model, batches[:1], positions)
    expected = {name: value.item() for name, value in under(golden, "lsgan_step1.loss_").items()}
    assert losses == pytest.approx(expected, rel=1e-5)


def test_with_random_patches_qs_dual_is_dcl_bit_for_bit(monkeypatch):
    dcl, dual = (model_of(f"--model {name} {SMALL}") for name in ("dcl", "qs_dual"))
    monkeypatch.setattr(QSDualModel, "choose_patches", DCLModel.choose_patches)
    for number in range(3):
        found = []
        for model in (dcl, dual):
            torch.manual_seed(number)
            found.append(step(model, images(2, seed=number)))
        assert found[0] == found[1]
    for name, net in dcl.networks.items():
        for ours, theirs in zip(net.parameters(), dual.networks[name].parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_attention_alone_carries_gradient_from_a_term_into_its_source_encoder():
    """NCE1 reaches G_A beyond its translation through qs_dual's attention rows, and not at all in dcl."""
    for name, reached in {"dcl": False, "qs_dual": True}.items():
        model = model_of(f"--model {name} {SMALL}")
        model.set_input(images())
        made, features = model.forward()
        loss = model.contrastive("NCE1", model.contrast_sources(features)["NCE1"], made["fake_B"].detach())
        weight = model.networks["G_A"].model[1].weight
        (gradient,) = torch.autograd.grad(loss, weight, allow_unused=True)
        assert (gradient is not None) == reached


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
        """A selection, an encoder and a head that hand out the patches above."""

        def route(self, features):
            return features

        def encode(self, fake, layers):
            return [queries]

        def __call__(self, number, patches):
            return patches

    model.networks = {"G_B": Fixed(), "F2": Fixed()}
    found = model.contrastive("NCE1", ([Fixed()], [keys]), torch.zeros(2, 3, 4, 4))
    close(found, 2.0 * expected, rtol=1e-9)
    apart = PatchNCELoss(0.5)(queries, keys).mean()
    assert (found / 2 - apart).abs() > 0.1


def test_heads_learn_at_the_rate_of_adams_own_defaults_and_decay_with_the_others():
    model = model_of(f"--model dcl {SMALL} --lr 0.01 --beta1 0.1 --n_epochs 0 --n_epochs_decay 3")
    groups = {name: optimizer.param_groups[0] for name, optimizer in model.optimizers.items()}
    assert groups["F1"]["betas"] == groups["F2"]["betas"] == (0.9, 0.999)
    assert groups["G_A"]["betas"] == groups["D_B"]["betas"] == (0.1, 0.999)
    shares = {name: group["lr"] / (1e-3 if name[0] == "F" else 0.01) for name, group in groups.items()}
    assert shares == pytest.approx(dict.fromkeys(groups, 0.75))
    model.update_learning_rate()
    assert groups["F1"]["lr"] == pytest.approx(0.5e-3)


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
    assert_refused(words, told)
