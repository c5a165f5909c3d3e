#!/usr/bin/env python
"""What z_what encodes of an object: a digit's identity, or a sprite's shape and colour.

    python -m experiments.studies.codes              # train what is missing under --runs, measure, draw
    python -m experiments.studies.codes --dataset sprites
    tensorboard --logdir runs/trained                # the codes in the projector, with their glimpses

Models trained without labels infer the objects of scenes with 0, 1 and 2 of them. Each inferred object is matched to
the true object that its box overlaps with an IoU of at least 0.5, and gets that one's label. A linear probe
(multinomial logistic regression) and a 5-nearest-neighbour vote are fitted to the codes of training scenes and tested
on held-out scenes.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter
from torchvision.transforms.v2.functional import to_pil_image

import air
from air.data import DataError, DataSettings, MultiMNIST, Scenes, Sprites, data_root, load_dataset
from air.evaluation.box_metrics import match
from air.evaluation.pictures import interpolation_picture
from air.models.spatial import image_to_window
from air.training.machine import machine
from experiments.records import RESULTS, ROOT
from experiments.studies.trained import RUNS, final_metrics, trained

TRAIN_SCENES, CHUNK = 20_000, 1000
NEIGHBOURS = 5
SHOWN = 2000  # codes in the projector
MODEL_METRICS = ("count_accuracy_map", "box_iou", "box_ap50")  # copied from the final evaluation of the models
KIND = {"multi-mnist": "AIR", "sprites": "sprites"}  # data set -> a key of trained.KINDS
PROPERTIES: dict[str, dict[str, Callable[[Tensor], Tensor]]] = {
    "multi-mnist": {"digit": lambda label: label},
    "sprites": {"shape": lambda label: label // 3, "colour": lambda label: label % 3}}


@torch.no_grad()
def objects(model: air.AIR, scenes: Scenes) -> tuple[Tensor, Tensor, Tensor]:
    """Codes (P, D), true labels (P,) and glimpses (P, C, w, w) of the inferred objects that match a true one."""
    codes, labels, glimpses = [], [], []
    for start in range(0, len(scenes), CHUNK):
        chunk = scenes[start:start + CHUNK]
        seen, there = model.infer(chunk.images), chunk.has_box
        iou, truth = match(seen.boxes, seen.z_pres > 0, chunk.boxes, there)
        scene, step = (iou >= 0.5).nonzero(as_tuple=True)
        codes.append(seen.z_what[scene, step])
        labels.append(chunk.labels[scene, truth[scene, step]])
        images = model.as_images(chunk.images)
        glimpses.append(image_to_window(images[scene], seen.z_where[scene, step], model.window_size))
    return torch.cat(codes), torch.cat(labels), torch.cat(glimpses)


def linear_probe(codes: Tensor, labels: Tensor, test_codes: Tensor) -> Tensor:
    """Classify test codes by multinomial logistic regression on standardised codes.

    Args:
        codes: (P, D), with labels (P,).
        test_codes: (P', D).
    Returns:
        (P',) classes.
    """
    mean, sd = codes.mean(0), codes.std(0).clamp(min=1e-3)
    inputs, classes = (codes - mean) / sd, int(labels.max()) + 1
    probe = torch.nn.Linear(codes.shape[1], classes)
    optimizer = torch.optim.LBFGS(probe.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(probe(inputs), labels) + 1e-4 * probe.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        return probe((test_codes - mean) / sd).argmax(-1)


def nearest(codes: Tensor, labels: Tensor, test_codes: Tensor) -> Tensor:
    """Classify test codes by a vote of the nearest codes; arguments and result are those of `linear_probe`."""
    votes = [labels[torch.cdist(chunk, codes).topk(NEIGHBOURS, largest=False).indices]
             for chunk in test_codes.split(CHUNK)]
    return torch.cat(votes).mode(-1).values


def measure(model: air.AIR, dataset: str, train: Scenes, test: Scenes, seed: int) -> list[dict[str, Any]]:
    """Test each classifier on each property of the data set's objects: one record each."""
    torch.manual_seed(seed)
    codes, labels, _ = objects(model, train)
    test_codes, test_labels, _ = objects(model, test)
    found = len(test_labels) / max(1, int(test.counts.sum()))
    records = []
    for name, of in PROPERTIES[dataset].items():
        for classifier, classify in (("linear probe", linear_probe), ("5 nearest", nearest)):
            right = classify(codes, of(labels), test_codes) == of(test_labels)
            records.append({"property": name, "classifier": classifier, "seed": seed, "found": found,
                            "accuracy": right.float().mean().item()})
    return records


def project(model: air.AIR, scenes: Scenes, out: Path) -> None:
    """Write codes, labels and glimpses for TensorBoard's projector into the folder `out`."""
    codes, labels, glimpses = (each[:SHOWN] for each in objects(model, scenes[:2 * SHOWN]))
    with SummaryWriter(str(out)) as writer:
        writer.add_embedding(codes, labels.tolist(), glimpses.clamp(0, 1), tag="z_what")


def table(report: dict[str, Any]) -> str:
    """Markdown table of the seeds' mean and worst accuracy in %, and a sentence on how well their models count."""
    records = report["records"]
    lines = ["| property | classifier | right, mean % | worst | objects found, mean % | seeds |",
             "| --- | --- | --- | --- | --- | --- |"]
    for name, classifier in dict.fromkeys((record["property"], record["classifier"]) for record in records):
        same = [record for record in records if (record["property"], record["classifier"]) == (name, classifier)]
        right, found = ([100 * record[key] for record in same] for key in ("accuracy", "found"))
        lines.append(f"| {name} | {classifier} | {statistics.mean(right):.2f} | {min(right):.2f} | "
                     f"{statistics.mean(found):.2f} | {len(same)} |")
    counted, iou, ap = ([run[key] for run in report["runs"]] for key in MODEL_METRICS)
    return "\n".join(lines) + (
        f"\n\nTheir models count {100 * statistics.mean(counted):.2f}% of the held-out scenes right (worst "
        f"{100 * min(counted):.2f}%), with a box IoU of\n{statistics.mean(iou):.3f} (worst {min(iou):.3f}) and an AP50 "
        f"of {statistics.mean(ap):.3f} (worst {min(ap):.3f}).")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m experiments.studies.codes", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="multi-mnist", choices=tuple(PROPERTIES))
    parser.add_argument("--data.root", dest="data_root", default=data_root(),
                        help="folder that holds MNIST/raw ($AIR_DATA_ROOT, or data)")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the models' runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(5)))
    parser.add_argument("--json", type=Path, metavar="FILE", help="default: experiments/results/codes-DATASET.json")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="default: docs/interpolation-DATASET.png")
    parser.add_argument("--table", action="store_true", help="only print the table of existing results")
    return parser


def load_report(dataset: str) -> dict[str, Any]:
    """The latest results on a data set."""
    return json.loads(results_file(dataset).read_text())


def results_file(dataset: str) -> Path:
    """Where results on a data set are kept."""
    return RESULTS / f"codes-{dataset}.json"


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, write the JSON file, the picture and the projector's files, print the table."""
    parser = build_parser()
    args = parser.parse_args(argv)
    file = args.json or results_file(args.dataset)
    if args.table:
        print(table(json.loads(file.read_text())))
        return
    settings: DataSettings = Sprites() if args.dataset == "sprites" else MultiMNIST(root=args.data_root)
    try:
        dataset = load_dataset(settings)
    except DataError as error:
        parser.error(str(error))
    report: dict[str, Any] = {**machine("cpu"), "records": [], "runs": []}
    for place, seed in enumerate(args.seeds):
        model = trained(KIND[args.dataset], seed, args.runs, args.data_root)
        final = final_metrics(KIND[args.dataset], seed, args.runs)
        report["runs"].append({"seed": seed, **{key: final[key] for key in MODEL_METRICS}})
        report["records"] += measure(model, args.dataset, dataset.train[:TRAIN_SCENES], dataset.held_out, seed)
        file.write_text(json.dumps(report, indent=1) + "\n")
        if not place:
            project(model, dataset.held_out, args.runs / f"{args.dataset}-projector")
            picture = args.picture or ROOT / "docs" / f"interpolation-{args.dataset}.png"
            to_pil_image(interpolation_picture(model, dataset.held_out)).save(picture)
    print(table(report))


if __name__ == "__main__":
    main()
