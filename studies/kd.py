"""What does distillation bring? Students with and without its losses and its start, at equal data and steps.

    python studies/kd.py --seeds 0 1 2

Runs the recipe's stages 11 and 12 for each variant and seed, and scores.
Writes exp/study_kd/{results.csv,kd.md} in the recipe's folder.
"""

from __future__ import annotations

from study import Study, get_parser, write_table

VARIANTS = {
    "multilingual": ("no KD, random start (the usual multilingual LoRA)", "--kd_conf kd=none --student_init random"),
    "none": ("no KD", "--kd_conf kd=none"),
    "logits": ("logits", "--kd_conf kd=logits"),
    "layers": ("layers", "--kd_conf kd=layers"),
    "both": ("layers and logits", "--kd_conf kd=both"),
    "both_random": ("layers and logits, random start", "--kd_conf kd=both --student_init random"),
}
"""Variant -> what it is, and its options."""


def main() -> None:
    """Entry point."""
    parser = get_parser(__doc__)
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=list(VARIANTS))
    args = parser.parse_args()
    study = Study("kd", "student", args.options)
    for seed in args.seeds:
        for variant in args.variants:
            study.run(variant, seed, VARIANTS[variant][1])
    print(write_table(study, "student", {variant: VARIANTS[variant][0] for variant in args.variants}))


if __name__ == "__main__":
    main()
