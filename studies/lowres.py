"""What helps languages with little data? MoLE with a larger share of the batches, and a larger weight in the LID loss.

    python studies/lowres.py --temperatures 1 inf --powers 0 1 --seeds 0 1 2

The share of a language is hours ** (1 / temperature), its class weight (mean hours / hours) ** power. Runs the
recipe's stages 11 and 12 for each pair and seed, and scores. Writes
exp/study_lowres/{results.csv,lowres.md} in the recipe's folder.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from statistics import fmean, median

from study import COLUMNS, RECIPE, Study, get_parser, spread, write_lines

from espnet_lole.data.kaldi import read_table

SCARCE = 0.75
"""A language has little data if its hours are less than this times the median's."""


def read_hours() -> dict[str, float]:
    """Add up the hours of training speech of each language."""
    train, hours = RECIPE / "dump" / "raw" / "train", Counter[str]()
    langs = read_table(train / "utt2lang")
    for utt, samples in read_table(train / "utt2num_samples").items():
        hours[langs[utt]] += int(samples) / 16000 / 3600
    return dict(hours)


def class_weights(hours: dict[str, float], power: float) -> str:
    """Return options of a training that give more weight to languages with fewer hours."""
    mean = fmean(hours.values())
    return " ".join(
        f"--classifier_conf class_weights.{lang}={(mean / value) ** power:.4f}" for lang, value in hours.items()
    )


def group_figures(study: Study, variant: str, scenario: str, metric: str, langs: Sequence[str]) -> list[float]:
    """Return the mean of some languages' figures, for each seed."""
    return [
        fmean(seed) for seed in zip(*(study.figures(variant, scenario, metric, lang) for lang in langs), strict=True)
    ]


def main() -> None:
    """Entry point."""
    parser = get_parser(__doc__)
    parser.add_argument("--temperatures", nargs="+", default=["1", "inf"])
    parser.add_argument("--powers", type=float, nargs="+", default=[0.0, 1.0])
    args = parser.parse_args()
    study = Study("lowres", "mole", args.options)
    pairs = [(temperature, power) for temperature in args.temperatures for power in args.powers]
    study.experts(args.seeds[0])
    hours = read_hours()
    low = [lang for lang, value in hours.items() if value < SCARCE * median(hours.values())]
    if not low:
        parser.error(f"expected languages with less than {SCARCE} of the median's hours, got none among {hours}")
    for seed in args.seeds:
        for temperature, power in pairs:
            options = f"--lang_temperature {temperature} {class_weights(hours, power)}"
            study.run(f"t{temperature}_w{power}", seed, options)
    groups = {f"little data ({' '.join(low)})": low, "the others": [lang for lang in hours if lang not in low]}
    lines = []
    for temperature, power in pairs:
        variant = f"t{temperature}_w{power}"
        columns = [(*curve, langs) for langs in groups.values() for curve in COLUMNS.values()]
        figures = [spread(group_figures(study, variant, *column)) for column in columns]
        lines.append([temperature, str(power), *figures])
    head = [f"{name}: {column}" for name in groups for column in COLUMNS]
    print(write_lines(["temperature", "power of the weights", *head], lines, study.folder / "lowres.md"))


if __name__ == "__main__":
    main()
