"""The ablations of the papers' supplements, each trained, judged and shown on one page by one command:

    python scripts/ablations.py queries            every setting, on ./datasets/horse2zebra
    python scripts/ablations.py queries --print    show the trainings and run none
    python scripts/ablations.py layers --only last_two --dataroot ./datasets/cat2dog -- --ngf 32
                                                   one setting; what follows -- goes to train.py

OUT/index.html shows pictures in columns and the metrics beside the published numbers, which are of the epoch
with the best FID; ours are of the last. All other options are those of scripts/compare.py. ablations.json has
the settings and the published numbers.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.compare import Study, parse_study
from util.arguments import ArgumentParser
from util.errors import UserError, entry_point

# By name: "title", "settings" (options of train.py by name), "published" (data set -> setting -> metric ->
# number), "directions" to judge, "source" of the published numbers.
ABLATIONS = json.loads(Path(__file__).with_suffix(".json").read_text("utf-8"))
SOURCE = "supplement of QS-Attn, {data}: 400 epochs, 256 x 256, the epoch with the best FID."


@entry_point
def main(argv: Sequence[str] | None = None) -> int:
    """Run an ablation, or print its trainings; exit status 1 if a run failed."""
    parser = ArgumentParser(prog="scripts/ablations.py", description=__doc__.splitlines()[0].rstrip(":"))
    listed = "; ".join(f"{name}: {', '.join(of['settings'])}" for name, of in ABLATIONS.items())
    parser.add_argument("ablation", choices=ABLATIONS, help=listed)
    parser.add("--only", None, "one setting of the ablation", shown="all")
    parser.add("--print", False, "print the trainings instead of running them")
    opt = parse_study(parser, sys.argv[1:] if argv is None else argv, "./datasets/horse2zebra", [0])
    ablation, data = ABLATIONS[opt.ablation], Path(opt.dataroot).name
    opt.out = opt.out or Path("results", f"{data}_{opt.ablation}")
    settings = {setting: tuple(words.split()) for setting, words in ablation["settings"].items()}
    if opt.only and opt.only not in settings:
        raise UserError(f"--only {opt.only} is not a setting of {opt.ablation}: it has {', '.join(settings)}")
    if opt.only:
        settings = {opt.only: settings[opt.only]}
    # Of a set without published numbers those of the paper's main one, under its name.
    published = ablation.get("published", {})
    known = data if data in published else next(iter(published), "")
    numbers = {setting: of for setting, of in published.get(known, {}).items() if setting in settings}
    shown = {"numbers": numbers, "source": ablation.get("source", SOURCE).format(data=known)}
    study = Study(opt, settings, ablation["title"], shown, ablation.get("directions"))
    if not opt.print:
        return study.run()
    for run in study.runs:
        print("python train.py", shlex.join([f"--name={run.name}", *run.words]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
