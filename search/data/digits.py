"""The digits set embedded in scikit-learn: 1,797 grey images of 8x8 pixels; needs no network and no file."""

import numpy as np

from .assemble import Options
from .image_set import ImageSet, Split
from .packages import needs
from .splitting import stratified

TEST = VALIDATION = 360  # of 1,797, which leaves 1,077 to train
SEED = 0  # of the split; fixed, so that results on digits can be compared


def load(data: str, options: Options) -> ImageSet:
    """Pixel values 0..16 stretched to 0..255; a fixed stratified split of 1,077 / 360 / 360 images."""
    with needs("search", "scikit-learn"):
        from sklearn.datasets import load_digits

    bunch = load_digits()
    images = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    everything = Split(images, bunch.target.astype(np.int64))
    rest, test = stratified(everything.labels, TEST, SEED)
    train, validation = stratified(everything.labels[rest], VALIDATION, SEED)
    return ImageSet.of(
        "digits",
        tuple(str(name) for name in bunch.target_names),
        everything.take(rest[train]),
        everything.take(rest[validation]),
        everything.take(test),
    )
