"""Features of images by an encoder at rest: for nearest neighbours, while training and after."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.models.resnet import ResNet
from torchvision.transforms import functional as TF

from pretrain.bn_groups import share_running_statistics_
from pretrain.data import normalise
from pretrain.images import ImageSource
from runtime.distributed import all_gather, all_gather_objects, rank, world_size
from runtime.errors import InputError


class CentreCrops(Dataset):
    """Images of a folder, resized to ``size``·8/7 on the short side and cropped in the centre.

    As for ImageNet (256 and 224). Items are uint8, 3 x size x size; the InputError itself for a
    damaged image, because a worker process would bury its one line in a traceback.
    """

    def __init__(self, folder: ImageSource, size: int, indices: Sequence[int] | None = None):
        self.folder, self.size = folder, size
        self.indices = range(len(folder.files)) if indices is None else indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, item: int) -> torch.Tensor | InputError:
        try:
            image = self.folder.load(self.indices[item])
        except InputError as error:
            return error
        image = TF.resize(image, round(self.size * 8 / 7))
        return TF.pil_to_tensor(TF.center_crop(image, [self.size, self.size]))


def encoder_at_rest(encoder: ResNet) -> ResNet:
    """A copy of ``encoder`` for evaluation, without its head: images to N x channels.

    Its BN uses the running statistics, averaged over the ranks; all ranks must call this. The
    encoder itself, which may be in the middle of its training, stays as it is.
    """
    resting = copy.deepcopy(encoder)
    share_running_statistics_(resting)
    resting.fc = nn.Identity()
    return resting.eval().requires_grad_(False)


@torch.no_grad()
def embed(
    encoder: nn.Module, images: Dataset, batch_size: int = 64, workers: int = 0
) -> torch.Tensor:
    """Unit features of all ``images`` (items as of :class:`CentreCrops`): N x C, float32, CPU.

    Each rank encodes its share; all ranks must call this and get the whole. ``encoder`` must be in
    evaluation mode, as :func:`encoder_at_rest` gives it. No random state is touched. InputError for
    a damaged image.
    """
    count = len(images)  # type: ignore[arg-type]
    share = -(-count // world_size())  # the last image fills up the last rank's share
    mine = [min(i, count - 1) for i in range(rank() * share, (rank() + 1) * share)]
    loader = DataLoader(
        images,
        batch_size,
        sampler=mine,
        num_workers=workers,
        collate_fn=stack,
        generator=torch.Generator().manual_seed(0),  # keeps torch's global generator untouched
    )
    device, out = next(encoder.parameters()).device, []
    problem = None
    for batch in loader:
        if isinstance(batch, InputError):
            problem = batch
            break
        out.append(F.normalize(encoder(normalise(batch.to(device))).float(), dim=1))
    for found in all_gather_objects(problem):  # so that no rank waits for another that has stopped
        if found is not None:
            raise found
    return all_gather(torch.cat(out))[:count].cpu()


def stack(items: list[torch.Tensor | InputError]) -> torch.Tensor | InputError:
    """Items of :class:`CentreCrops` as a batch; the first InputError among them instead, if any."""
    tensors: list[torch.Tensor] = []
    for item in items:
        if isinstance(item, InputError):
            return item
        tensors.append(item)
    return torch.stack(tensors)
