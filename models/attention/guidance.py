"""What models guided by attention share: the options, the memory of maps, and the maps as pictures.

The map that guides the translation of an image comes from a discriminator: from its last pass over a
translation of that image (the memory, `models/attention/memory.py`), or from a pass over the image itself.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from data.transforms import crops
from models import build
from models.attention.fusion import FUSIONS, STAGES, GuidedTranslator, normalise_map, resize_map
from models.attention.memory import AttentionMemory
from models.base_model import BaseModel
from util.errors import UserError

STAGED = tuple(name for name, fusion in FUSIONS.items() if not fusion.extra_nc)


class GuidedModel(BaseModel):
    """Precedes the class of the model that it guides.

    Attributes:
        sources: the domains whose images are translated.
        memory: domain -> its memory of maps, where maps come from one; also among the model's `memories`.
        maps: the maps (B, 1, h, w) in [0, 1] of a step, which join its `results`: those that guided the
            images of domain A as "attn_A", and with a memory those to keep for them as "next_A".
    """

    sources: tuple[str, ...]
    translation_options = ("attention_fusion", "attention_stage")

    @classmethod
    def add_options(cls, add) -> None:
        super().add_options(add)
        add(
            "--attention_fusion",
            "rmult",
            "how a map A in [0, 1] guides G: rmult x (1 + A), mult x A, alpha a further channel, none: not",
            choices=(*FUSIONS, "none"),
            scope="fixed",
        )
        add(
            "--attention_stage",
            "F0",
            "what is fused: F0, the image; in a ResNet F1, before the halvings; F2, after them; F3, after 4 "
            "blocks; F4, after all",
            choices=STAGES,
            only={"attention_fusion": STAGED},
            scope="fixed",
        )

    @classmethod
    def check(cls, opt: Namespace) -> None:
        super().check(opt)
        if opt.attention_fusion == "none":
            return
        if opt.netD not in build.ATTENDING:
            raise UserError(
                f"--netD {opt.netD} does not say where it looks: give --netD {' or '.join(build.ATTENDING)}, "
                "or --attention_fusion none"
            )
        with torch.device("meta"):  # refuses a stage that the generator does not have
            build.build_generator(opt, fusion=opt.attention_fusion, stage=opt.attention_stage)

    @classmethod
    def remembers(cls, opt: Namespace) -> bool:
        """Whether maps come from the memory."""
        return opt.attention_fusion != "none"

    @classmethod
    def process_obstacle(cls, opt: Namespace) -> str | None:
        if cls.remembers(opt) and not crops(opt.preprocess):
            return (
                f"--preprocess {opt.preprocess} gives maps of any size, which processes cannot exchange for "
                "their memory: use a mode that crops, such as resize_and_crop"
            )
        return super().process_obstacle(opt)

    def __init__(self, opt: Namespace):
        self.guides = opt.attention_fusion != "none"
        self.memory: dict[str, AttentionMemory] = {}
        self.rows: dict[str, Tensor] = {}
        super().__init__(opt)

    def build_memories(self) -> dict[str, nn.Module]:
        if self.remembers(self.opt):
            self.memory = {domain: AttentionMemory(self.opt.dataroot) for domain in self.sources}
        maps = {f"attention_{domain}": memory for domain, memory in self.memory.items()}
        return super().build_memories() | maps

    def build_guided(self, backwards: bool = False) -> nn.Module:
        """A generator that takes maps, or a plain one with `--attention_fusion none`."""
        opt = self.opt
        guidance = {"fusion": opt.attention_fusion, "stage": opt.attention_stage} if self.guides else {}
        return build.build_generator(opt, backwards=backwards, **guidance)

    def translator(self) -> nn.Module:
        networks = [self.networks[name] for name in self.translating(self.opt)]
        return GuidedTranslator(*networks) if self.guides else networks[0]

    def expect_images(self, paths: dict[str, Sequence[str]]) -> None:
        for domain, memory in self.memory.items():
            memory.add(paths[domain])

    def set_input(self, batch: dict) -> None:
        """Also "A_windows" and "B_windows" (`AttentionMemory`) for crops; without them, images are whole."""
        super().set_input(batch)
        for domain, memory in self.memory.items():
            self.rows[domain] = memory.rows(batch[f"{domain}_paths"])
            size, windows = self.batch[domain].shape[2:], self.batch.get(f"{domain}_windows")
            self.batch[f"{domain}_attention"] = memory.lookup(self.rows[domain], size, windows)

    def source_maps(self) -> dict[str, Tensor]:
        """The maps in [0, 1], (B, 1, h, w), of the images of each domain of `sources`."""
        return {domain: self.batch[f"{domain}_attention"] for domain in self.sources}

    def score_and_map(self, name: str, images: Tensor) -> tuple[Tensor, Tensor]:
        """The scores of the discriminator `name`, and where it looked: (B, 1, h, w) in [0, 1], detached."""
        score, raw = self.networks[name].attend(images)
        return score, normalise_map(raw.detach())

    @classmethod
    def observer(cls, opt: Namespace) -> str:
        """The discriminator whose maps guide translations in `--direction`, of what is `observed`."""
        raise NotImplementedError

    def observe(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Translations of images (B, C, H, W), and the observer's maps of them, (B, 1, H, W) in [0, 1].

        The maps are those that a training with these weights would use next.
        """
        translations = self.translator()(images)
        observer = self.networks[self.observer(self.opt)]
        maps = normalise_map(observer.raw_map(self.observed(images, translations)))
        return translations, resize_map(maps, images.shape[2:])

    def training_step(self) -> None:
        self.maps: dict[str, Tensor] = {}
        super().training_step()
        self.results |= self.maps

    def optimize_parameters(self) -> None:
        """One training step; then its maps are remembered, which no captured step could do."""
        super().optimize_parameters()
        for domain, memory in self.memory.items():
            memory.store(
                self.rows[domain], self.results[f"next_{domain}"], self.batch.get(f"{domain}_windows")
            )

    @property
    def visual_names(self) -> list[str]:
        names = list(super().visual_names)
        for domain in self.sources if self.guides else ():
            names.insert(names.index(f"real_{domain}") + 1, f"attn_{domain}")
        return names

    def get_current_visuals(self) -> dict[str, Tensor]:
        """As the base's; "attn_A" is the map of real_A at its size, 0 black and 1 white."""
        visuals = super().get_current_visuals()
        for domain in self.sources if self.guides else ():
            shown = resize_map(visuals[f"attn_{domain}"], self.batch[domain].shape[2:])
            visuals[f"attn_{domain}"] = 2 * shown - 1
        return visuals

    def load_training_state(self, state: dict) -> None:
        if "attention" in state:  # saved by a version that kept maps beside the memories
            maps = {f"attention_{name}": [{"_extra_state": of}] for name, of in state["attention"].items()}
            state = {**state, "memories": state["memories"] | maps}
        super().load_training_state(state)
