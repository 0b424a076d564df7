"""What the current networks say of images, and how good that is."""

from collections.abc import Callable, Iterable, Sequence

import torch
from scipy.stats import spearmanr
from sklearn.metrics import f1_score
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sslpl.distributed import in_turn
from sslpl.learn.storage import Table
from sslpl.models.backbones import Frozen, forward_batch
from sslpl.models.loss_prediction import LossPredictionModule
from sslpl.setup import Setup
from sslpl.types import Features, Images, Predictions


def predict(setup: Setup, backbone: nn.Module, module: nn.Module | None, images: Images, index: Tensor) -> Predictions:
    """Logits, embeddings and predicted losses of the images at `index`, without augmentation or dropout.

    Large tables lie in files: see `Table`. Several processes predict a part each, and all have the whole; of fewer
    images than processes each predicts all.
    """
    world = setup.world
    if len(index) == 0:
        channels: Sequence[int] = backbone.channels  # type: ignore[assignment]
        widths = (len(setup.dataset.class_names), channels[-1])
        none, embedding = (torch.empty(0, width, device=setup.device) for width in widths)
        return Predictions(index, none, embedding, None if module is None else none[:, 0])
    if not 1 < world.size <= len(index):
        return predict_all(setup, backbone, module, images, index)
    own, lengths = index[world.share(len(index))], world.lengths(len(index))
    _, *values = predict_all(setup, backbone, module, images, own)
    tables = (whole_of(in_turn(world, part, lengths), len(index)) if part is not None else None for part in values)
    return Predictions(index, *tables)  # type: ignore[arg-type]


def whole_of(parts: Iterable[Tensor], rows: int) -> Tensor:
    """Parts of a table, one below the other."""
    table = Table(rows)
    for part in parts:
        table.append(part)
    return table.whole()


def predict_all(
    setup: Setup, backbone: nn.Module, module: nn.Module | None, images: Images, index: Tensor
) -> Predictions:
    """The same in this process."""
    frozen = Frozen(backbone, setup.bfloat16)
    logits, embeddings, losses = (Table(len(index)) for _ in range(3))
    with torch.inference_mode():
        for batch in images.batches(torch.split(index, forward_batch(setup.device, *images.shape[1:]))):
            scores, embedding, loss = outputs(frozen, module, setup.augmentation.plain(batch))
            logits.append(scores)
            embeddings.append(embedding)
            if loss is not None:
                losses.append(loss)
    predicted = losses.whole() if isinstance(module, LossPredictionModule) else None
    return Predictions(index, logits.whole(), embeddings.whole(), predicted)


def outputs(
    network: Callable[[Tensor], Features], module: nn.Module | None, images: Tensor
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits [B, classes], embeddings [B, D] and, with a module, predicted losses [B] of normalized images."""
    features = network(images)
    loss = module(features.maps) if isinstance(module, LossPredictionModule) else None
    return features.logits, features.embedding, loss


def true_losses(predictions: Predictions, labels: Tensor) -> Tensor:
    """Cross-entropy [N] of predictions under their classes, in nats, on the CPU."""
    return cross_entropy(predictions.logits, labels.to(predictions.logits.device), reduction="none").cpu()


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """The share of images whose most likely class is right."""
    return (logits.argmax(dim=1) == labels).double().mean().item()


def test_metrics(predictions: Predictions, labels: Tensor) -> dict[str, float | int | None]:
    """Accuracy, macro F1, negative log-likelihood (nats) and expected calibration error on the test set."""
    logits = predictions.logits.cpu()
    guess = logits.argmax(dim=1)
    return {
        "test_accuracy": accuracy(logits, labels),
        "test_macro_f1": float(f1_score(labels.numpy(), guess.numpy(), average="macro", zero_division=0.0)),
        "test_nll": cross_entropy(logits.double(), labels).item(),
        "test_ece": calibration_error(logits, labels),
    }


def calibration_error(logits: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Expected calibration error over equally wide bins of confidence (Guo et al. 2017)."""
    confidence, guess = logits.double().softmax(dim=1).max(dim=1)
    bin_of = (confidence * bins).ceil().long().clamp(1, bins) - 1
    gap = (guess == labels).double() - confidence
    return torch.zeros(bins, dtype=torch.float64).index_add(0, bin_of, gap).abs().sum().item() / len(labels)


def loss_rank_correlation(predictions: Predictions, labels: Tensor) -> float | None:
    """Spearman correlation of predicted and true loss; None where it is not defined or a class (-1) is not known.

    For analysis alone.
    """
    if predictions.predicted_loss is None or len(predictions.index) < 2 or bool((labels < 0).any()):
        return None
    predicted, true = predictions.predicted_loss.cpu(), true_losses(predictions, labels)
    if any(bool((values == values[0]).all()) for values in (predicted, true)):  # scipy would warn of it
        return None
    correlation = float(spearmanr(predicted.numpy(), true.numpy())[0])
    return None if correlation != correlation else correlation
