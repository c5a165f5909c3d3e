"""What is trained over several seeds, by name: train.py's arguments, and how many seeds.

`python benchmarks/seeds.py NAME` runs one of them, `--tables` tabulates all.
"""

from typing import NamedTuple


class Experiment(NamedTuple):
    """Runs that differ in their seeds, 0 to seeds - 1."""

    arguments: str  # of train.py
    seeds: int = 10


MULTI_MNIST = "--dataset multi-mnist --estimator"
MAIN = {
    "strict-enumerate": Experiment(f"{MULTI_MNIST} enumerate --steps 4000"),
    "strict-nvil": Experiment(f"{MULTI_MNIST} nvil"),
    "strict-vimco": Experiment(f"{MULTI_MNIST} vimco"),
    "loose-enumerate": Experiment(f"{MULTI_MNIST} enumerate --overlap loose --steps 6000"),
    "sprites-enumerate": Experiment("--dataset sprites --estimator enumerate --steps 3000"),
}
ROBUSTNESS = {
    "digits-12px": Experiment(f"{MULTI_MNIST} enumerate --object-size 0.24", 5),
    "digits-9px": Experiment(f"{MULTI_MNIST} enumerate --object-size 0.186", 5),
    "five-digits": Experiment(f"{MULTI_MNIST} enumerate --counts 0 1 2 3 4 5 --image-size 64 --object-size 0.25 "
                              "--steps 4000", 5),
    "noise": Experiment(f"{MULTI_MNIST} enumerate --noise 0.1", 5),
}
EXPERIMENTS = {**MAIN, **ROBUSTNESS}
