"""The embedded data set: scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import torch

from .dataset import Data


def digits(fold: int = 0, folds: int = 5, seed: int = 0) -> Data:
    """scikit-learn's 1 797 handwritten digits, 8x8 pixels, in one documented split.

    Pixels 0..16 become x / 8 - 1, in [-1, 1]: nothing is estimated from the images. The images are
    cut into ``folds`` stratified parts; part ``fold`` is the test set, and of the rest every tenth
    image (stratified again) is for validation. Over all folds each image is tested once.

    Args:
        fold: which part to test on, 0 to folds - 1.
        folds: number of parts, 2 to 100.
        seed: of the split, not of the training.

    Returns:
        Data with inputs ``[images, 1, 8, 8]`` float32 and targets ``[images]`` int64.

    Raises:
        ValueError: if ``fold`` or ``folds`` is out of range.

    Source: Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI repository (1998).
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import StratifiedKFold, train_test_split

    if not 2 <= folds <= 100 or not 0 <= fold < folds:
        raise ValueError(f"fold must lie in 0..folds-1 and folds in 2..100, got fold {fold!r} of {folds!r}")
    raw = load_digits()
    x = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 8 - 1
    y = torch.tensor(raw.target)
    rest, test = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(x, y))[fold]
    train, valid = train_test_split(rest, test_size=0.1, random_state=seed, stratify=y[rest])
    return Data("digits", (x[train], y[train]), (x[valid], y[valid]), (x[test], y[test]), classes=10)
