"""Weighted nearest neighbours on frozen features (Wu et al., CVPR 2018, section 3.4).

What the monitor of MoCo's appendix (figure A.1) measures: no training, no parameters to tune.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models.resnet import ResNet
from torchvision.transforms import functional as TF

from pretrain.data import normalise
from pretrain.images import ImageSource


@torch.no_grad()
def features(encoder: ResNet, folder: ImageSource, size: int, batch_size: int = 64) -> torch.Tensor:
    """Unit-length features after global average pooling: images x channels, float32, on the CPU.

    Images are resized to ``size``·8/7 on the short side and cropped in the centre, as for
    ImageNet (256 and 224). The encoder runs in evaluation mode and is left as it was.
    """
    was_training, head = encoder.training, encoder.fc
    device = next(encoder.parameters()).device
    encoder.fc = nn.Identity()
    encoder.eval()
    out = []
    for start in range(0, len(folder.files), batch_size):
        indices = range(start, min(start + batch_size, len(folder.files)))
        images = [
            TF.center_crop(TF.resize(folder.load(i), round(size * 8 / 7)), [size, size])
            for i in indices
        ]
        batch = torch.stack([TF.pil_to_tensor(image) for image in images]).to(device)
        out.append(F.normalize(encoder(normalise(batch)), dim=1).float().cpu())
    encoder.fc = head
    encoder.train(was_training)
    return torch.cat(out)


def knn_accuracy(
    train: torch.Tensor,
    train_labels: torch.Tensor,
    test: torch.Tensor,
    test_labels: torch.Tensor,
    k: int = 20,
    temperature: float = 0.07,
) -> float:
    """Top-1 accuracy in percent of the vote of the ``k`` nearest, weighted by exp(cos / τ).

    Features are unit rows; labels int64.
    """
    classes = int(train_labels.max()) + 1
    similarity, index = (test @ train.T).topk(min(k, len(train)), dim=1)
    votes = torch.zeros(len(test), classes)
    votes.scatter_add_(1, train_labels[index], (similarity / temperature).exp())
    return float((votes.argmax(1) == test_labels).float().mean() * 100)
