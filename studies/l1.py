"""How many layers to share? MoLE trained with L1 = 1 .. N of the N encoder layers merged, on the same experts.

    python studies/l1.py --l1 1 2 3 4 5 6 --seeds 0 1 2

Runs the recipe's stages 11 and 12 for each L1 and seed, scores, and draws.
Writes exp/study_l1/{results.csv,l1.md,l1.png} in the recipe's folder.
"""

from __future__ import annotations

from figures import draw_curves, save
from study import ERRORS, LID, Study, get_parser, write_table


def main() -> None:
    """Entry point."""
    parser = get_parser(__doc__)
    parser.add_argument("--l1", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    args = parser.parse_args()
    study = Study("l1", "mole", args.options)
    for seed in args.seeds:
        for l1 in args.l1:
            study.run(f"l{l1}", seed, f"--fusion_conf shared_layers={l1}")
    print(write_table(study, "L1", {f"l{l1}": str(l1) for l1 in args.l1}))
    left, right = (study.curves([f"l{l1}" for l1 in args.l1], columns) for columns in (ERRORS, LID))
    labels = "L1: shared encoder layers", "average error in percent", "LID accuracy in percent"
    save(draw_curves(args.l1, left, right, labels), study.folder / "l1.png")


if __name__ == "__main__":
    main()
