"""For torch.hub: the translators of this project, from any folder.

translate = torch.hub.load("PATH/OF/THIS/FOLDER", "generator", "horse2zebra_global", source="local")
translate(Image.open("horse.jpg")).save("zebra.png")
"""

dependencies = ["torch", "torchvision", "numpy", "PIL", "tqdm"]

from models.inference import load_generator as generator  # noqa: E402, F401
