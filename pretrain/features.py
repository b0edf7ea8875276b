"""What an encoder makes of all images of a data set: for nearest neighbours and linear tests."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.models.resnet import ResNet
from torchvision.transforms import functional as TF

from pretrain.bn_groups import share_running_statistics_
from pretrain.loading.batches import normalise
from pretrain.source.images import ImageSource
from runtime.data_workers import start_worker
from runtime.distributed import all_gather, all_gather_objects, rank, world_size
from runtime.errors import InputError

BATCH = 64  # images a process handles at once; decides speed only


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
def encode(
    model: nn.Module,
    images: Dataset,
    prepare: Callable[[torch.Tensor], torch.Tensor] = normalise,
    batch_size: int = BATCH,
    workers: int = 0,
) -> Iterator[torch.Tensor]:
    """The outputs for all ``images`` in order, batch by batch: N x C, float32, on the device.

    Items as of :class:`CentreCrops`; ``prepare`` makes the model's input of them. The ranks share
    the work: all must go through all batches, and get the whole. The model's mode is the caller's.
    No random state is touched. InputError, on all ranks, for a damaged image.
    """
    device, count = next(model.parameters()).device, len(images)  # type: ignore[arg-type]
    loader = DataLoader(
        images,
        batch_sampler=_Shares(count, batch_size),
        num_workers=workers,
        collate_fn=_stack,
        pin_memory=device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # keeps torch's global generator untouched
        worker_init_fn=start_worker,
    )
    left = count
    for batch in loader:
        # told to all, so that no rank waits for another that has stopped
        for problem in all_gather_objects(batch if isinstance(batch, InputError) else None):
            if problem is not None:
                raise problem
        found = all_gather(model(prepare(batch.to(device, non_blocking=True))).float())
        yield found[:left]
        left -= len(found)


def embed(
    encoder: nn.Module, images: Dataset, batch_size: int = BATCH, workers: int = 0
) -> torch.Tensor:
    """Unit features of all ``images``: N x C, float32, on the CPU of every rank.

    By :func:`encode`; ``encoder`` as :func:`encoder_at_rest` gives it.
    """
    batches = encode(encoder, images, batch_size=batch_size, workers=workers)
    return torch.cat([F.normalize(batch, dim=1).cpu() for batch in batches])


class _Shares(Sampler[list[int]]):
    """This rank's part of each global batch; the last image fills up the last batch."""

    def __init__(self, count: int, batch_size: int) -> None:
        self.count, self.batch_size = count, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        for start in range(0, self.count, self.batch_size * world_size()):
            share = min(self.batch_size, -(-(self.count - start) // world_size()))
            first = start + share * rank()
            yield [min(index, self.count - 1) for index in range(first, first + share)]


def _stack(items: list[torch.Tensor | InputError]) -> torch.Tensor | InputError:
    """The items as a batch; the first InputError among them instead, if any."""
    tensors: list[torch.Tensor] = []
    for item in items:
        if isinstance(item, InputError):
            return item
        tensors.append(item)
    return torch.stack(tensors)
