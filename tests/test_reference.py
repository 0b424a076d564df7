"""Agreement with values computed by the published code; SSLPL_REFERENCE_DIR names another folder of such values."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from sslpl import ranking
from sslpl.data.batches import unlabeled_batch_size
from sslpl.data.operations import apply_operation, cutout, cutout_corner
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.query.selective_clustering import selective_clustering
from sslpl.ssl.rules import confident_rows, pseudo_label_hard, pseudo_label_soft
from sslpl.trimming import trimmed_positions

FOLDER = Path(os.environ.get("SSLPL_REFERENCE_DIR", Path(__file__).parent / "data" / "reference"))


def load(name: str) -> dict[str, np.ndarray]:
    with np.load(FOLDER / f"{name}.npz") as file:
        return dict(file)


def cases(name: str) -> list[dict[str, np.ndarray]]:
    """Returns the arrays of each case of a file, without their prefixes case0_, case1_, ..."""
    arrays, found = load(name), []
    for k in range(len({key.partition("_")[0] for key in arrays})):
        found.append({key.removeprefix(f"case{k}_"): arrays[key] for key in arrays if key.startswith(f"case{k}_")})
    assert found
    assert all(found)
    return found


def tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))


def test_ranking_losses() -> None:
    data = load("ranking_loss")
    sizes = data["sizes"].tolist()
    assert len(data["predicted"]) == sum(sizes)
    assert len(data["bce"]) == len(data["margin"]) == len(sizes) > 0
    split = [torch.split(tensor(data[key]), sizes) for key in ("predicted", "target", "bce_grad")]
    for k, (predicted, target, grad) in enumerate(zip(*split, strict=True)):
        predicted = predicted.clone().requires_grad_(True)
        loss = ranking.bce_ranking_loss(predicted, target)
        loss.backward()
        np.testing.assert_allclose(loss.item(), data["bce"][k], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(predicted.grad, grad, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            ranking.margin_ranking_loss(predicted, target).item(), data["margin"][k], rtol=1e-5, atol=1e-6
        )


def test_loss_prediction_module() -> None:
    data = {key: tensor(value.astype(np.float32)) for key, value in load("loss_prediction_module").items()}
    levels = sum(key.startswith("features_") for key in data)
    maps = [data[f"features_{k}"] for k in range(levels)]
    module = LossPredictionModule([stage.shape[1] for stage in maps], width=len(data["level1_linear_bias"]))
    weights = {"head.weight": data["head_weight"], "head.bias": data["head_bias"]}
    for k in range(levels):
        weights |= {f"levels.{k}.linear.{part}": data[f"level{k + 1}_linear_{part}"] for part in ("weight", "bias")}
        if f"level{k + 1}_conv_weight" in data:
            weights[f"levels.{k}.conv.weight"] = data[f"level{k + 1}_conv_weight"]
    module.load_state_dict(weights)  # strict: every published weight has its place, and no other is needed
    np.testing.assert_allclose(module(maps).detach(), data["predicted_loss"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["soft", "hard"])
def test_pseudo_label_ranking(kind: str) -> None:
    for case in cases("pseudo_label_ranking"):
        labeler = {"soft": pseudo_label_soft, "hard": pseudo_label_hard}[kind]
        target, weight = labeler(tensor(case["weak_logits"]), threshold=float(case["threshold"]))
        np.testing.assert_array_equal(weight > 0, case["confident"])
        used = confident_rows(weight)
        np.testing.assert_array_equal(used, case["used_index"])
        predicted = tensor(case["predicted"]).requires_grad_(True)
        loss = cross_entropy(tensor(case["strong_logits"])[used], target[used], reduction="none")
        np.testing.assert_allclose(loss, case[f"{kind}_pseudo_loss"], rtol=1e-4, atol=1e-5)
        term = ranking.bce_ranking_loss(predicted[used], loss)
        expected = float(case[f"{kind}_ranking_bce"])
        if np.isnan(expected):  # no confident image: the published code divides by zero
            assert term.item() == 0.0
            term.backward()
            assert not predicted.grad.any()
        else:
            np.testing.assert_allclose(term.item(), expected, rtol=1e-4, atol=1e-6)


def test_selective_clustering() -> None:
    for case in cases("selective_clustering"):
        score, embedding = tensor(case["predicted_loss"]), tensor(case["embedding"])
        rng = torch.Generator().manual_seed(0)
        chosen = selective_clustering(score, embedding, int(case["query_size"]), int(case["candidates"]), rng)
        np.testing.assert_array_equal(np.sort(case["pool_index"][chosen]), case["selected"])


def test_trimming() -> None:
    for case in cases("trimming"):
        removed = trimmed_positions(
            tensor(case["labeled_index"]),
            tensor(case["labeled_loss"]),
            tensor(case["queried_index"]),
            tensor(case["queried_loss"]),
            int(case["initial_size"]),
        )
        np.testing.assert_array_equal(np.sort(removed), np.sort(case["removed"]))


def test_unlabeled_batch_size() -> None:
    rows = json.loads((FOLDER / "unlabeled_batch_size.json").read_text())
    assert rows
    for row in rows:
        expected = row.pop("unlabeled_batch_size")
        assert unlabeled_batch_size(**row) == expected


def test_augmentation_operations() -> None:
    data = load("augmentation_ops")
    images = tensor(data["images"]).permute(0, 3, 1, 2).contiguous()
    centers = data.pop("CutoutAbs16_centers")
    for key in set(data) - {"images"}:
        name, _, rest = key.partition("_")
        if name == "CutoutAbs16":
            center = tensor(centers[int(rest.removeprefix("center"))]).double()[None]
            ours = cutout(images[:1].clone(), cutout_corner(center, 16), 16)[0]
        else:
            magnitude, _, sign = rest.removeprefix("v").partition("_")
            ours = apply_operation(images, name, int(magnitude), sign == "neg")
        np.testing.assert_array_equal(ours.movedim(-3, -1), data[key], err_msg=key)
