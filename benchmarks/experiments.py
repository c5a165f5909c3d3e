"""What is trained over several seeds, by name: train.py's arguments, and how many seeds.

`python benchmarks/seeds.py NAME` runs one of them, `--tables` tabulates all.
"""

from typing import NamedTuple


class Experiment(NamedTuple):
    """Runs that differ in their seeds, 0 to seeds - 1."""

    arguments: str  # of train.py
    seeds: int = 10


STRICT, SPRITES = "--dataset multi-mnist", "--dataset sprites"
LOOSE = f"{STRICT} --overlap loose"
ENUMERATE_LOOSE = f"{LOOSE} --estimator enumerate"
TOUCHING = ("--steps 8000 --count-prior 1e-10 --set model.likelihood_sd=0.2 model.z_what_size=15 "
            "model.predict_net=[200] model.embed_net=[500] shift=2")

MAIN = {
    "strict-enumerate": Experiment(f"{STRICT} --estimator enumerate --steps 4000"),
    "strict-nvil": Experiment(f"{STRICT} --estimator nvil --steps 4000"),
    "strict-vimco": Experiment(f"{STRICT} --estimator vimco --steps 3000"),
    "sprites-enumerate": Experiment(f"{SPRITES} --estimator enumerate --steps 2000"),
    "sprites-nvil": Experiment(f"{SPRITES} --estimator nvil --steps 2000", 3),
    "sprites-vimco": Experiment(f"{SPRITES} --estimator vimco --steps 3000", 3),
    "loose-enumerate": Experiment(f"{LOOSE} --estimator enumerate {TOUCHING}"),
    "loose-nvil": Experiment(f"{LOOSE} --estimator nvil {TOUCHING}", 3),
    "loose-vimco": Experiment(f"{LOOSE} --estimator vimco {TOUCHING}", 3),
}
# Further from the defaults: smaller digits, more of them, noise.
ROBUSTNESS = {
    "digits-12px": Experiment(f"{STRICT} --estimator enumerate --object-size 0.24 --steps 4000", 5),
    "digits-9px": Experiment(f"{STRICT} --estimator enumerate --object-size 0.186 --steps 4000", 5),
    "five-digits": Experiment(f"{STRICT} --estimator enumerate --counts 0 1 2 3 4 5 --image-size 64 --object-size 0.25 "
                              "--steps 4000", 5),
    "noise": Experiment(f"{STRICT} --estimator enumerate --noise 0.1", 5),
}
# The recipe without one of its settings, beside the same number of steps with it.
ABLATIONS = {
    "sprites-no-exploration": Experiment(f"{SPRITES} --estimator enumerate --steps 2000 --set exploration=0", 3),
    "sprites-short-exploration": Experiment(f"{SPRITES} --estimator enumerate --steps 2000 "
                                            "--set exploration_share=0.25", 3),
    "sprites-no-rescue": Experiment(f"{SPRITES} --estimator enumerate --steps 2000 --set rescue=0", 3),
    "sprites-wide-scale-prior": Experiment(f"{SPRITES} --estimator enumerate --steps 2000 "
                                           "--set model.scale_prior_sd=0.2", 3),
    "sprites-vimco-short": Experiment(f"{SPRITES} --estimator vimco --steps 2000", 3),
    "strict-short": Experiment(f"{STRICT} --estimator enumerate --steps 2000", 3),
    "strict-k-1e-4": Experiment(f"{STRICT} --estimator enumerate --steps 2000 --count-prior 1e-4", 3),
    "strict-k-1e-2": Experiment(f"{STRICT} --estimator enumerate --steps 2000 --count-prior 1e-2", 3),
    "strict-lr-3e-4": Experiment(f"{STRICT} --estimator enumerate --steps 2000 --lr 3e-4", 3),
    "strict-lr-3e-3": Experiment(f"{STRICT} --estimator enumerate --steps 2000 --lr 3e-3", 3),
    "strict-constant-lr": Experiment(f"{STRICT} --estimator enumerate --steps 2000 --set final_lr=1", 3),
    "strict-sigmoid-decoder": Experiment(f"{STRICT} --estimator enumerate --steps 2000 --set "
                                         "model.decoder_output_bias=-2 model.decoder_output_use_sigmoid=true", 3),
    "digits-12px-wide-sd": Experiment(f"{STRICT} --estimator enumerate --object-size 0.24 --steps 4000 "
                                      "--set model.likelihood_sd=0.3", 3),
    "nvil-short": Experiment(f"{STRICT} --estimator nvil --steps 2000", 3),
    "nvil-one-draw": Experiment(f"{STRICT} --estimator nvil --steps 2000 --set estimator.draws=1", 3),
    "nvil-no-baseline": Experiment(f"{STRICT} --estimator nvil --steps 2000 --set model.use_baselines=false", 3),
    "nvil-slow-baseline": Experiment(f"{STRICT} --estimator nvil --steps 2000 --baseline-lr 1e-3", 3),
    "nvil-rescaled": Experiment(f"{STRICT} --estimator nvil --steps 2000 --set estimator.centre=true "
                                "estimator.normalise=true estimator.signal_scale=10", 3),
}
# What might tell touching digits apart, without labels: step by step to what loose-enumerate has, and beside it.
REMEDIES = {
    "loose-recipe": Experiment(f"{ENUMERATE_LOOSE} --steps 3000", 3),
    "loose-sd-0.2": Experiment(f"{ENUMERATE_LOOSE} --steps 3000 --set model.likelihood_sd=0.2", 3),
    "loose-small-code": Experiment(f"{ENUMERATE_LOOSE} --steps 3000 --count-prior 1e-10 --set model.likelihood_sd=0.2 "
                                   "model.z_what_size=15", 3),
    "loose-predict-net": Experiment(f"{ENUMERATE_LOOSE} --steps 3000 --count-prior 1e-10 --set model.likelihood_sd=0.2 "
                                    "model.z_what_size=15 model.predict_net=[200]", 3),
    "loose-long": Experiment(f"{ENUMERATE_LOOSE} --steps 8000 --count-prior 1e-10 --set model.likelihood_sd=0.2 "
                             "model.z_what_size=15 model.predict_net=[200]", 2),
    "loose-shift": Experiment(f"{ENUMERATE_LOOSE} --steps 8000 --count-prior 1e-10 --set model.likelihood_sd=0.2 "
                              "model.z_what_size=15 model.predict_net=[200] shift=2"),
    "loose-learned-prior": Experiment(f"{ENUMERATE_LOOSE} --steps 3000 --set model.likelihood_sd=0.2 "
                                      "--learn-count-prior", 3),
    "loose-two-particles": Experiment(f"{ENUMERATE_LOOSE} --steps 3000 --set model.likelihood_sd=0.2 --particles 2", 3),
}
# Counts that training does not show: to 3 from 0, 1 and 2, and so on.
TO_3 = f"{STRICT} --estimator enumerate --counts 0 1 2 --unseen-counts 3"
TO_2 = f"{STRICT} --estimator enumerate --counts 0 1 3 --unseen-counts 2"
TO_5 = f"{STRICT} --estimator enumerate --counts 0 1 2 --unseen-counts 3 4 5 --image-size 64 --object-size 0.25"
READERS = {"air": "--set", "dair": "--difference --set", "search": "--difference --set model.search=true"}
GENERALISATION = {
    **{f"{name}-to-{to}-n{steps}": Experiment(f"{arguments} {reader} model.num_steps={steps}", 5)
       for to, arguments in (("3", TO_3), ("2", TO_2)) for steps in (3, 5) for name, reader in READERS.items()},
    **{f"{name}-to-345-n6": Experiment(f"{TO_5} {reader} model.num_steps=6", 3) for name, reader in READERS.items()},
}
# Digits before something else than black, with a background in the model and without one.
BEFORE = {kind: f"{STRICT} --estimator enumerate --steps 4000 --backdrop {kind}" for kind in ("grey", "grid", "noise")}
BACKDROPS = {
    **{f"{kind}-modelled": Experiment(f"{arguments} --background", 5) for kind, arguments in BEFORE.items()},
    **{f"{kind}-unmodelled": Experiment(f"{arguments} --set model.likelihood_sd=0.2", 3)
       for kind, arguments in BEFORE.items()},
}
# Characters as strokes, and as one window of as many numbers.
DRAWINGS = ("--dataset omniglot --estimator enumerate --steps 4000 --object-size 0.25 --count-prior 1e-6 "
            "--set shift=2 model.likelihood_sd=0.2")
OMNIGLOT = {
    "omniglot": Experiment(f"{DRAWINGS} model.z_what_size=20 model.scale_prior_sd=0.3", 5),
    "omniglot-one-window": Experiment(f"{DRAWINGS} model.num_steps=1 model.z_what_size=80 model.window_size=50 "
                                      "model.scale_prior_mean=1 model.scale_prior_sd=0.01 model.pos_prior_sd=0.01", 5),
}
NETWORKS = {
    "sprites-convolutional": Experiment(f"{SPRITES} --estimator enumerate --steps 2000 --set model.convolutional=true",
                                        3),
}
# An object on a table in 3D; the same with a renderer that is never blurred, and without exploring the shapes either.
SINGLE = "--dataset scenes-single --estimator enumerate --compile --steps 3000"
ONE_OBJECT = {"single": Experiment(SINGLE, 3),
              "single-sharp": Experiment(f"{SINGLE} --set model.first_sharpness=40", 3),
              "single-unannealed": Experiment(f"{SINGLE} --set model.annealed=0", 3)}
# Several objects. The recipe's guide is a search; beside it the recurrent net over the whole image, with and
# without the difference, and other ways to learn the shapes; "sharp" never blurs the renderer.
TABLE = "--dataset scenes-table --estimator enumerate --compile --steps 3000"
GUIDES = {"search": "", "overview": " --set model.search=false", "difference": " --difference --set model.search=false"}
SCENES = {
    **{f"table-{name}": Experiment(f"{TABLE}{guide}", 5 if name == "search" else 3) for name, guide in GUIDES.items()},
    **{f"table-shapes-{identity}": Experiment(f"{TABLE} --set model.identity={identity}", 3)
       for identity in ("nvil", "enumerate")},
    "table-sharp": Experiment(f"{TABLE} --set model.first_sharpness=40", 3),
}
UNSEEN_SCENES = {f"table-{name}-to-{to}": Experiment(f"{TABLE} --counts {shown} --unseen-counts {to}{guide}", 3)
                 for to, shown in ((2, "0 1 3"), (3, "0 1 2")) for name, guide in GUIDES.items()}
# As many processes would share them: a run's batch is theirs together, whoever computes its parts.
LARGE_BATCHES = {f"batch-{size}-lr-{lr}": Experiment(f"{STRICT} --estimator enumerate --batch-size {size} "
                                                     f"--steps {steps} --lr {lr}", 3)
                 for size, steps in ((256, 1000), (1024, 500)) for lr in ("1e-3", "2e-3", "4e-3")}
# The step's arithmetic in half the bits.
PRECISION = {f"strict-{name}": Experiment(f"{STRICT} --estimator {estimator} --steps 2000 --precision bf16", 3)
             for name, estimator in (("bf16", "enumerate"), ("nvil-bf16", "nvil"))}
GROUPS = {"The recipe": MAIN, "Further from the defaults": ROBUSTNESS,
          "The recipe without one of its settings": ABLATIONS, "Touching digits": REMEDIES,
          "Counts that training does not show": GENERALISATION, "Backdrops": BACKDROPS, "Omniglot": OMNIGLOT,
          "One object in 3D": ONE_OBJECT, "Several objects in 3D": SCENES,
          "Counts in 3D that training does not show": UNSEEN_SCENES,
          "Other networks": NETWORKS, "Large batches": LARGE_BATCHES, "Low precision": PRECISION}
EXPERIMENTS = {name: experiment for group in GROUPS.values() for name, experiment in group.items()}
