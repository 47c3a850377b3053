"""CycleGAN: the released steps in float64, the pool, directions, and what is refused."""

import pytest
import torch
from golden import load_baseline
from textbook import assert_refused, close, model_of, released_steps, step

from models.sides import ImagePool

TINY = "--model cycle_gan --gpu_ids -1 --ngf 4 --ndf 4 --netG resnet_4blocks"
GOLDEN = {
    "cyclegan_step": TINY,
    "cyclegan_step_aa": f"{TINY} --netD n_layers --n_layers_D 2 --no_antialias false --no_antialias_up false",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_two_steps_of_the_released_code(float64, name):
    golden, model = load_baseline(name), model_of(GOLDEN[name])
    batches = [{domain: golden[f"step{n}.real_{domain}"] for domain in "AB"} for n in (1, 2)]
    list(released_steps(model, golden, batches, ("fake_B", "fake_A")))
    translated = model.networks["G_A"](golden["step1.real_A"])
    close(translated, golden["final.fake_B_of_step1_A"])
    close(model.networks["D_A"](translated), golden["final.D_A_of_it"])
    close(model.networks["D_B"](golden["step1.real_A"]), golden["final.D_B_of_step1_A"])


def test_the_pool_answers_as_the_released_one(float64):
    """Past its filling, with the released draws: p for every image, a place only where p exceeds 0.5."""
    golden = load_baseline("image_pool")
    pool = ImagePool(int(golden["size"]))
    draws, places = iter(golden["draws_p"].tolist()), iter(golden["draws_id"].tolist())
    for image, expected in zip(golden["in"], golden["out"], strict=True):
        full = pool.count >= pool.size
        draw = next(draws) if full else 0.0
        place = next(places) if draw > 0.5 else 0
        assert torch.equal(pool.swap(image, torch.tensor([draw]), torch.tensor([place])), expected)


def test_a_pool_takes_the_images_of_a_batch_in_order():
    pool, images = ImagePool(2), torch.arange(4.0).view(4, 1, 1, 1)
    shown = pool.swap(images, torch.tensor([0.0, 0.0, 0.9, 0.9]), torch.tensor([1, 1, 0, 0]))
    assert shown.flatten().tolist() == [0, 1, 0, 2]  # image 2 takes the place of 0, image 3 that of 2
    assert pool.images.flatten().tolist() == [3, 1] and pool.count == 2


def test_domains_may_differ_in_size(float64):
    """The generators then see the domains in passes of their own, and compute the same."""
    model = model_of(TINY, "--pool_size 0")
    a, b = torch.rand(1, 3, 32, 32) * 2 - 1, torch.rand(1, 3, 32, 48) * 2 - 1
    for found, image in zip(model.generate("G_A", a, b)[:2], (a, b), strict=True):
        assert torch.equal(found, model.networks["G_A"](image))
    step(model, {"A": a, "B": b})
    assert model.results["fake_A"].shape == b.shape and model.guard.failure() is None


@pytest.mark.parametrize(
    "words, told",
    {
        "--input_nc 1": "--lambda_identity 0",
        "--preprocess none": "--pool_size 50 keeps images of one size",
        "--lambda_NCE 2": "--lambda_NCE has no effect with --model cycle_gan",
    }.items(),
)
def test_what_cannot_be_is_refused(words, told):
    assert_refused(f"{TINY} {words}", told)
