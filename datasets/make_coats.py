"""Draw the embedded set of four domains: animals with plain, striped, spotted and ginger coats.

    python datasets/make_coats.py [--out datasets/coats] [--size 64] [--train 200] [--test 20] [--seed 0]

Scenes come from one distribution, that of make_stripes.py: only the coat differs. The script writes
`train/COAT`, `test/COAT` and `masks/COAT` (of the test pictures: 255 on animals, else 0).
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # as a file, a script sees only its own folder

from datasets.make_stripes import COATS, DrawnSet
from util.errors import entry_point

SET = DrawnSet("coats", {f"{phase}/{coat}": coat for phase in ("train", "test") for coat in COATS})
make_coats = SET.make


@entry_point
def main(argv: list[str] | None = None) -> None:
    SET.command(__doc__.split("\n\n")[0], argv)


if __name__ == "__main__":
    sys.exit(main())
