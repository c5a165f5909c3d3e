"""Every experiment by name: the arguments of train.py and the number of seeds.

`python -m experiments.run NAME` runs one of them, `python -m experiments.report` tabulates all results.
"""

from typing import NamedTuple


class Experiment(NamedTuple):
    """Runs that differ in nothing but their seeds, 0 to seeds - 1."""

    arguments: str  # of train.py
    seeds: int = 10


class Group(NamedTuple):
    """Experiments that share a table."""

    title: str
    experiments: dict[str, Experiment]


STRICT, SPRITES = "--dataset multi-mnist", "--dataset sprites"
STRICT_ENUMERATE, STRICT_NVIL = f"{STRICT} --estimator enumerate", f"{STRICT} --estimator nvil"
SPRITES_ENUMERATE = f"{SPRITES} --estimator enumerate"
LOOSE = f"{STRICT} --data.overlap loose"
LOOSE_ENUMERATE = f"{LOOSE} --estimator enumerate"

SMALL_CODE = "--model.count-prior 1e-10 --model.likelihood-sd 0.2 --model.z-what-size 15"
TOUCHING = f"--steps 8000 {SMALL_CODE} --model.predict-net 200 --model.embed-net 500 --optim.shift 2"
RECIPE = {
    "strict-enumerate": Experiment(f"{STRICT_ENUMERATE} --steps 4000"),
    "strict-nvil": Experiment(f"{STRICT_NVIL} --steps 4000"),
    "strict-vimco": Experiment(f"{STRICT} --estimator vimco --steps 3000"),
    "sprites-enumerate": Experiment(f"{SPRITES_ENUMERATE} --steps 2000"),
    "sprites-nvil": Experiment(f"{SPRITES} --estimator nvil --steps 2000", 3),
    "sprites-vimco": Experiment(f"{SPRITES} --estimator vimco --steps 3000", 3),
    "loose-enumerate": Experiment(f"{LOOSE_ENUMERATE} {TOUCHING}"),
    "loose-nvil": Experiment(f"{LOOSE} --estimator nvil {TOUCHING}", 3),
    "loose-vimco": Experiment(f"{LOOSE} --estimator vimco {TOUCHING}", 3),
}

ROBUSTNESS = {
    "digits-12px": Experiment(f"{STRICT_ENUMERATE} --data.object-size 0.24 --steps 4000", 5),
    "digits-9px": Experiment(f"{STRICT_ENUMERATE} --data.object-size 0.186 --steps 4000", 5),
    "five-digits": Experiment(f"{STRICT_ENUMERATE} --data.counts 0 1 2 3 4 5 --data.image-size 64 "
                              "--data.object-size 0.25 --steps 4000", 5),
    "noise": Experiment(f"{STRICT_ENUMERATE} --data.noise 0.1", 5),
}

# One setting of the recipe changed; `strict-short`, `nvil-short` and `sprites-enumerate` are the unchanged recipe.
ABLATIONS = {
    "sprites-no-exploration": Experiment(f"{SPRITES_ENUMERATE} --steps 2000 --estimator.exploration 0", 3),
    "sprites-short-exploration": Experiment(f"{SPRITES_ENUMERATE} --steps 2000 --estimator.exploration-steps 500", 3),
    "sprites-no-revival": Experiment(f"{SPRITES_ENUMERATE} --steps 2000 --estimator.revive 0", 3),
    "sprites-wide-scale-prior": Experiment(f"{SPRITES_ENUMERATE} --steps 2000 --model.scale-prior-sd 0.2", 3),
    "sprites-vimco-short": Experiment(f"{SPRITES} --estimator vimco --steps 2000", 3),
    "strict-short": Experiment(f"{STRICT_ENUMERATE} --steps 2000", 3),
    "strict-k-1e-4": Experiment(f"{STRICT_ENUMERATE} --steps 2000 --model.count-prior 1e-4", 3),
    "strict-k-1e-2": Experiment(f"{STRICT_ENUMERATE} --steps 2000 --model.count-prior 1e-2", 3),
    "strict-lr-3e-4": Experiment(f"{STRICT_ENUMERATE} --steps 2000 --optim.lr 3e-4", 3),
    "strict-lr-3e-3": Experiment(f"{STRICT_ENUMERATE} --steps 2000 --optim.lr 3e-3", 3),
    "strict-constant-lr": Experiment(f"{STRICT_ENUMERATE} --steps 2000 --optim.final-lr 1", 3),
    "strict-sigmoid-decoder": Experiment(f"{STRICT_ENUMERATE} --steps 2000 --model.decoder-output-bias -2 "
                                         "--model.decoder-output-use-sigmoid", 3),
    "digits-12px-wide-sd": Experiment(f"{STRICT_ENUMERATE} --data.object-size 0.24 --steps 4000 "
                                      "--model.likelihood-sd 0.3", 3),
    "nvil-short": Experiment(f"{STRICT_NVIL} --steps 2000", 3),
    "nvil-one-draw": Experiment(f"{STRICT_NVIL} --steps 2000 --estimator.draws 1", 3),
    "nvil-no-baseline": Experiment(f"{STRICT_NVIL} --steps 2000 --model.no-use-baselines", 3),
    "nvil-slow-baseline": Experiment(f"{STRICT_NVIL} --steps 2000 --optim.baseline-lr 1e-3", 3),
    "nvil-rescaled": Experiment(f"{STRICT_NVIL} --steps 2000 --estimator.centre --estimator.normalise "
                                "--estimator.signal-scale 10", 3),
}

# From the recipe to the settings of `loose-enumerate`, one change at a time, and alternatives to them.
REMEDIES = {
    "loose-recipe": Experiment(f"{LOOSE_ENUMERATE} --steps 3000", 3),
    "loose-sd-0.2": Experiment(f"{LOOSE_ENUMERATE} --steps 3000 --model.likelihood-sd 0.2", 3),
    "loose-small-code": Experiment(f"{LOOSE_ENUMERATE} --steps 3000 {SMALL_CODE}", 3),
    "loose-predict-net": Experiment(f"{LOOSE_ENUMERATE} --steps 3000 {SMALL_CODE} --model.predict-net 200", 3),
    "loose-long": Experiment(f"{LOOSE_ENUMERATE} --steps 8000 {SMALL_CODE} --model.predict-net 200", 2),
    "loose-shift": Experiment(f"{LOOSE_ENUMERATE} --steps 8000 {SMALL_CODE} --model.predict-net 200 --optim.shift 2"),
    "loose-learned-prior": Experiment(f"{LOOSE_ENUMERATE} --steps 3000 --model.likelihood-sd 0.2 "
                                      "--optim.learn-count-prior", 3),
    "loose-two-particles": Experiment(f"{LOOSE_ENUMERATE} --steps 3000 --model.likelihood-sd 0.2 "
                                      "--estimator.particles 2", 3),
}

# `air-to-3-n5`: the paper's AIR, tested on 3 objects after training on 0, 1 and 2, with N = 5 steps.
TO_3 = f"{STRICT_ENUMERATE} --data.counts 0 1 2 --data.unseen-counts 3"
TO_2 = f"{STRICT_ENUMERATE} --data.counts 0 1 3 --data.unseen-counts 2"
TO_345 = (f"{STRICT_ENUMERATE} --data.counts 0 1 2 --data.unseen-counts 3 4 5 --data.image-size 64 "
          "--data.object-size 0.25")
GUIDES = {"air": "", "dair": "--guide difference ", "search": "--guide search "}
GENERALISATION = {
    **{f"{name}-to-{to}-n{steps}": Experiment(f"{arguments} {guide}--model.num-steps {steps}", 5)
       for to, arguments in (("3", TO_3), ("2", TO_2)) for steps in (3, 5) for name, guide in GUIDES.items()},
    **{f"{name}-to-345-n6": Experiment(f"{TO_345} {guide}--model.num-steps 6", 3) for name, guide in GUIDES.items()},
}

# The search guide on objects of any size and number. "auto": the model is not told the sizes.
SEARCH = f"{STRICT_ENUMERATE} --guide search"
SIZES = f"{SEARCH} --data.image-size 64 --data.counts 0 1 2 3 --data.placement tight"
ANY_SIZE = {
    "search-strict": Experiment(f"{SEARCH} --steps 1000"),
    "search-tight": Experiment(f"{SEARCH} --data.placement tight --steps 1000", 5),
    "search-five-digits": Experiment(f"{SEARCH} --data.counts 0 1 2 3 4 5 --data.image-size 64 --data.object-size 0.25 "
                                     "--steps 1000"),
    "search-digits-9px": Experiment(f"{SEARCH} --data.object-size 0.186 --steps 1000", 5),
    "search-2x": Experiment(f"{SIZES} --data.object-size 0.1875 0.375 --steps 2000", 5),
    "search-2x-auto": Experiment(f"{SIZES} --data.object-size 0.1875 0.375 --object-size auto --steps 2000"),
    # What smaller networks leave of a large digit is worth a second window.
    "search-4x": Experiment(f"{SIZES} --data.object-size 0.125 0.5 --steps 4000 --model.encoder-net 400 "
                            "--model.decoder-net 400", 5),
    "search-sprites-auto": Experiment(f"{SPRITES_ENUMERATE} --guide search --data.object-size 0.12 0.4 "
                                      "--object-size auto --steps 1000", 5),
}

BACKDROP = {kind: f"{STRICT_ENUMERATE} --steps 4000 --data.backdrop {kind}" for kind in ("grey", "grid", "noise")}
BACKDROPS = {
    **{f"{kind}-modelled": Experiment(f"{arguments} --model.background", 5) for kind, arguments in BACKDROP.items()},
    **{f"{kind}-unmodelled": Experiment(f"{arguments} --model.likelihood-sd 0.2", 3)
       for kind, arguments in BACKDROP.items()},
}

# Objects that hide one another, and grounds that are not black: opaque layers.
OVER = "--estimator enumerate --batch-size 32 --data.held-out-scenes 1000 --run.eval-every 500"
FASTER = ("--optim.lr 1.5e-3 --model.encoder-net 400 --model.decoder-net 400 --model.z-what-size 20 "
          "--model.window-size 24")
DSPRITES = f"--dataset multi-dsprites {OVER} {FASTER} --model.count-prior 1e-100 --steps"
LAYERS = {
    "layers-colour": Experiment(f"{DSPRITES} 6000"),
    "layers-grey": Experiment(f"{DSPRITES} 7000 --ground grey --data.counts 2 3 4 5", 5),
    "layers-black": Experiment(f"{DSPRITES} 6000 --ground black", 5),
    # Intensities add up. While counts are explored, one window learns to cover two pieces, and there are always three.
    "layers-tetrominoes": Experiment(f"--dataset tetrominoes --data.train-scenes 60000 {OVER} --steps 16000 {FASTER} "
                                     "--model.predict-net 400 --estimator.exploration-steps 1000"),
    "layers-sprites": Experiment(f"--dataset sprites --data.overlap over {OVER} {FASTER} --steps 3000", 5),
    "layers-table": Experiment(f"--dataset scenes-table --compositing over {OVER} --steps 6000", 3),
    **{f"layers-digits-{kind}": Experiment(f"{STRICT} --data.backdrop {kind} --compositing over {OVER} --steps 3000", 5)
       for kind in ("grey", "grid", "noise")},
    "layers-to-45": Experiment(f"{DSPRITES} 6000 --data.counts 1 2 3 --data.unseen-counts 4 5", 3),
}

# Characters as several strokes, and, with as many latents, as one window that spans the canvas (a plain VAE).
CHARACTERS = ("--dataset omniglot --estimator enumerate --steps 4000 --data.object-size 0.25 --model.count-prior 1e-6 "
              "--optim.shift 2 --model.likelihood-sd 0.2")
OMNIGLOT = {
    "omniglot": Experiment(f"{CHARACTERS} --model.z-what-size 20 --model.scale-prior-sd 0.3", 5),
    "omniglot-one-window": Experiment(f"{CHARACTERS} --model.num-steps 1 --model.z-what-size 80 --model.window-size 50 "
                                      "--model.scale-prior-mean 1 --model.scale-prior-sd 0.01 "
                                      "--model.pos-prior-sd 0.01", 5),
}
NETWORKS = {"sprites-convolutional": Experiment(f"{SPRITES_ENUMERATE} --steps 2000 --model.convolutional", 3)}

# "sharp": the renderer is never blurred; "unannealed": nor are the shapes explored.
SINGLE = "--dataset scenes-single --estimator enumerate --compile --steps 3000"
ONE_OBJECT = {"single": Experiment(SINGLE, 3),
              "single-sharp": Experiment(f"{SINGLE} --model.first-sharpness 40", 3),
              "single-unannealed": Experiment(f"{SINGLE} --model.annealed 0", 3)}

# "recurrent": the paper's recurrent guide over the whole image. "shapes-X": another gradient of the shapes.
TABLE = "--dataset scenes-table --estimator enumerate --compile --steps 3000"
SCENE_GUIDES = {"search": "", "recurrent": " --guide recurrent", "difference": " --guide difference"}
SCENES = {
    **{f"table-{name}": Experiment(f"{TABLE}{guide}", 5 if name == "search" else 3)
       for name, guide in SCENE_GUIDES.items()},
    **{f"table-shapes-{identity}": Experiment(f"{TABLE} --model.identity {identity}", 3)
       for identity in ("nvil", "enumerate")},
    "table-sharp": Experiment(f"{TABLE} --model.first-sharpness 40", 3),
}
UNSEEN_SCENES = {
    f"table-{name}-to-{to}": Experiment(f"{TABLE} --data.counts {shown} --data.unseen-counts {to}{guide}", 3)
    for to, shown in ((2, "0 1 3"), (3, "0 1 2")) for name, guide in SCENE_GUIDES.items()}

# The batches of 4 and 16 processes, computed by one: only the batch and its learning rate matter.
LARGE_BATCHES = {f"batch-{size}-lr-{lr}": Experiment(f"{STRICT_ENUMERATE} --batch-size {size} --steps {steps} "
                                                     f"--optim.lr {lr}", 3)
                 for size, steps in ((256, 1000), (1024, 500)) for lr in ("1e-3", "2e-3", "4e-3")}
PRECISION = {f"strict-{name}": Experiment(f"{STRICT} --estimator {estimator} --steps 2000 --precision bf16", 3)
             for name, estimator in (("bf16", "enumerate"), ("nvil-bf16", "nvil"))}

GROUPS = {
    "recipe": Group("The recipe", RECIPE),
    "robustness": Group("Further from the defaults", ROBUSTNESS),
    "ablations": Group("The recipe with one setting changed", ABLATIONS),
    "touching-digits": Group("Touching digits", REMEDIES),
    "unseen-counts": Group("Counts not seen in training", GENERALISATION),
    "any-size": Group("Objects of any size and number", ANY_SIZE),
    "backdrops": Group("Backdrops", BACKDROPS),
    "layers": Group("Objects that hide one another", LAYERS),
    "omniglot": Group("Omniglot", OMNIGLOT),
    "one-object-3d": Group("One object in 3D", ONE_OBJECT),
    "several-objects-3d": Group("Several objects in 3D", SCENES),
    "unseen-counts-3d": Group("Counts in 3D not seen in training", UNSEEN_SCENES),
    "networks": Group("Other networks", NETWORKS),
    "large-batches": Group("Large batches", LARGE_BATCHES),
    "low-precision": Group("Low precision", PRECISION),
}
EXPERIMENTS = {name: experiment for group in GROUPS.values() for name, experiment in group.experiments.items()}
