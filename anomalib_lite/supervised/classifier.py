"""Classifiers by name, from a small CNN to a fine-tuned backbone: labelled images in, class probabilities out."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from anomalib_lite.embedding.builtin import BUILTIN
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.embedding.joined import only_one, weights_of
from anomalib_lite.embedding.pixels import check_image_size, standardised
from anomalib_lite.embedding.streaming import embed_source
from anomalib_lite.embedding.weights import StoredWeights, Weights
from anomalib_lite.files.model_file import ModelFileError
from anomalib_lite.images.loading import UnreadableImage
from anomalib_lite.images.sources import ImageSource, open_source
from anomalib_lite.machine.hardware import autocast, pick_device, pick_dtype
from anomalib_lite.supervised.augmentation import Augmentation
from anomalib_lite.supervised.batches import as_images, pixel_batches
from anomalib_lite.supervised.cached import CachedImages
from anomalib_lite.supervised.grey import seen_by
from anomalib_lite.supervised.labelled import LabelledImages
from anomalib_lite.supervised.network_files import (
    State,
    checked,
    described_backbone,
    load_network,
    save_network,
    without_memory,
)
from anomalib_lite.supervised.networks import (
    BOTTLENECK,
    SmallCNN,
    TransferNetwork,
    VectorHead,
    default_block,
    loss_of,
    probabilities,
)
from anomalib_lite.supervised.outcome import Predictions
from anomalib_lite.supervised.splitting import Split, opened
from anomalib_lite.supervised.targets import Target, targets_of
from anomalib_lite.supervised.training import History, TrainingOptions, Validation, train

ClassifierName = Literal["cnn", "cnn-dropout", "cnn-augmented", "bottleneck", "linear", "finetune"]

CLASSIFIERS = ("cnn", "cnn-dropout", "cnn-augmented", "bottleneck", "linear", "finetune")
FROZEN = ("bottleneck", "linear")
"""Those that see a backbone's vectors instead of pixels."""
_CNN_SIZE = 128
_SETTINGS: dict[str, Any] = {
    "model": str,
    "image_size": int,
    "grey": bool,
    "imbalance": str,
    "loss": str,
    "unfreeze_from": str | None,
    "rate_decay": float | int,
    "dropout": float | int,
    "validation": str,
}
_KIND = "classifier"
_TRAINING: dict[str, dict[str, Any]] = {
    "bottleneck": {"epochs": 100, "weight_decay": 0.1},
    "linear": {"epochs": 100},
    "finetune": {"epochs": 20, "learning_rate": 1e-4},
}
"""Where a model is trained differently from `TrainingOptions`."""
_RATE_OF_HEAD = 10  # a new layer learns faster than pretrained ones, which have less to learn


class Classifier:
    """Tell classes of images apart, learnt from labelled ones.

    Parameters
    ----------
    model : str
        "cnn" (three convolution blocks, trained from nothing), "cnn-dropout" (with dropout 0.5), "cnn-augmented" (and
        changed copies), "bottleneck" (a frozen backbone's vectors, dense layers of 64, 64 and 32 with dropout),
        "linear" (a frozen backbone's vectors, one new layer) or "finetune" (a backbone trained from a block on).
    backbone : as for `Embedder`; not used by the CNNs
    layers : as for `Embedder`
    weights : as for `Embedder`
    image_size : int, optional
        Side in pixels that images are resized to; by default 128 for the CNNs, the backbone's own otherwise.
    grey : bool
        Take the colour away first.
    augmentation : Augmentation, optional
        Of training images; by default that of `Augmentation` for "cnn-augmented" and "finetune", none otherwise. Frozen
        backbones see every image once and take none.
    imbalance : "weights", "oversample" or "none", optional
        Rare classes weigh more in the loss, or are drawn more often, each time changed anew if there is augmentation.
        By default "oversample" for "cnn-augmented" and "weights" otherwise.
    loss : "auto", "binary" or "categorical"
        Cross-entropy with one output, for two classes, or one per class. "auto" is binary for two.
    unfreeze_from : str, optional
        "finetune": the first block that is trained, such as "layer3"; by default the last one with convolutions.
    rate_decay : float
        "finetune": every earlier block learns this many times slower (Howard and Ruder 2018).
    dropout : float, for those that have it
    validation : "learn" or "watch"
        What the split's validation images are for: to learn from like the others, or to stop by and to choose the best
        epoch. With few defects the best epoch is a matter of chance, and every label not learnt from costs more.
    device : as for `Embedder`
    dtype : as for `Embedder`
    **training : of `TrainingOptions`
        By default 30 epochs of one-cycle, 100 with a frozen backbone, 20 for finetune; and a learning rate of 1e-3 (a
        tenth of that for the CNNs' first dense layer), 1e-4 for finetune (10 times that for its new layer).

    Attributes
    ----------
    classes_ : list of str; history_ : History; split_ : Split

    Examples
    --------
    >>> import tempfile
    >>> from anomalib_lite import make_metal_nut
    >>> folder = make_metal_nut(tempfile.mkdtemp(), n_train=8, n_good=4, n_defect=4, size=64)
    >>> classifier = Classifier("linear", image_size=64, epochs=5).fit(folder, target="defective")
    >>> classifier.classes_
    ['good', 'defective']
    """

    def __init__(
        self,
        model: ClassifierName = "linear",
        *,
        backbone: str = BUILTIN,
        layers: str | Sequence[str] | None = None,
        weights: Weights | None = None,
        image_size: int | None = None,
        grey: bool = False,
        augmentation: Augmentation | None = None,
        imbalance: Literal["weights", "oversample", "none"] | None = None,
        loss: Literal["auto", "binary", "categorical"] = "auto",
        unfreeze_from: str | None = None,
        rate_decay: float = 2.6,
        dropout: float = 0.5,
        validation: Validation = "learn",
        device: str = "auto",
        dtype: str = "auto",
        **training: Any,
    ) -> None:
        imbalance = imbalance or ("oversample" if model == "cnn-augmented" else "weights")
        for value, known in (
            (model, CLASSIFIERS),
            (imbalance, ("weights", "oversample", "none")),
            (loss, ("auto", "binary", "categorical")),
            (validation, ("watch", "learn")),
        ):
            if value not in known:
                raise ValueError(f"{value!r} is not known here; choose one of {', '.join(known)}")
        if not 0 <= dropout < 1 or not rate_decay >= 1:
            raise ValueError(f"dropout={dropout}, rate_decay={rate_decay}: a share below 1, and at least 1")
        if augmentation is not None and model in FROZEN:
            raise ValueError(f"{model} sees every image once, through a frozen backbone; leave augmentation out")
        if augmentation is None and model in ("cnn-augmented", "finetune"):
            augmentation = Augmentation()
        self.model = model
        self.grey = grey
        self.augmentation = augmentation
        self.imbalance = imbalance
        self.loss = loss
        self.unfreeze_from = unfreeze_from
        self.rate_decay = rate_decay
        self.dropout = dropout
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, self.device)
        self.validation = validation
        self.options = TrainingOptions(**{**_TRAINING.get(model, {}), **training})
        self.embedder: Embedder | None = None
        if model.startswith("cnn"):
            self.image_size = _CNN_SIZE if image_size is None else image_size
            check_image_size(self.image_size, smallest=16)
            if self.image_size % 8:
                raise ValueError(f"image_size={self.image_size}: the CNN halves it three times; give a multiple of 8")
        else:
            # Trained parameters have to be float32; passes run in the faster format either way.
            own = "float32" if model == "finetune" else dtype
            if model == "finetune":
                only_one(backbone, model)
            self.embedder = Embedder(
                backbone,
                layers=layers,
                weights=weights,
                image_size=image_size,
                level="global",
                device=device,
                dtype=own,
            )
            self.image_size = self.embedder.image_size[0]

    def fit(
        self,
        images: str | os.PathLike[str] | LabelledImages,
        parts: Split | None = None,
        *,
        target: Target = "kinds",
        checkpoint: str | os.PathLike[str] | None = None,
        cache: CachedImages | None = None,
    ) -> Classifier:
        """Learn from labelled images.

        Parameters
        ----------
        images : folder or LabelledImages
        parts : Split, optional
            By default `split(images, random_state=...)`: half of what is not in ``train`` is kept for testing.
        target : "kinds" or "defective"
            Every kind a class, or two classes: good, and everything else.
        checkpoint : path, optional
            File that the state is kept in after every epoch, and resumed from.
        cache : CachedImages, optional
            To decode and embed images only once for several classifiers.

        Raises
        ------
        LabelledDataError
            If there are too few classes or images to learn from.
        TrainingError
            If the loss stops being a number.
        """
        images, parts, cache = opened(images, parts, cache, random_state=self.options.random_state)
        if self.validation == "learn":
            parts = parts.without_validation
        classes, numbers = targets_of(images, parts, target)
        labels = torch.from_numpy(numbers).to(self.device)
        outputs = 1 if self._is_binary(len(classes)) else len(classes)
        counts = np.bincount(numbers[parts.train], minlength=len(classes))
        weights = torch.ones(len(classes), device=self.device)
        sampling = None
        if self.imbalance == "weights":
            weights = torch.tensor(len(parts.train) / (len(classes) * counts), dtype=torch.float32, device=self.device)
        elif self.imbalance == "oversample":
            sampling = 1.0 / counts[numbers[parts.train]]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.options.random_state)
            network = self._network(outputs, parts, cache).to(self.device).to(memory_format=torch.channels_last)
        inputs = self._inputs(cache)

        def step(chosen: np.ndarray, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
            truth = labels[torch.from_numpy(chosen).to(self.device)]
            with autocast(self.device, self.dtype):
                logits = network(inputs(chosen, generator))
            right = probabilities(logits.detach()).argmax(dim=1) == truth
            return loss_of(logits, truth, weights), right.float().mean()

        rate, groups = self.options.learning_rate, None
        if isinstance(network, SmallCNN):
            groups = network.rates(rate)
        elif isinstance(network, TransferNetwork):
            groups = network.rates(rate, head_rate=_RATE_OF_HEAD * rate, decay=self.rate_decay)
        history = train(
            network,
            step,
            parts.train,
            parts.validation,
            replace(self.options, checkpoint=checkpoint),
            groups=groups,
            sampling=sampling,
            label=self.model,
            identity={**self.config(), "classes": classes, "ids": [images.ids[i] for i in parts.learning.tolist()]},
        )
        self.classes_, self.network_, self.history_, self.split_ = classes, network, history, parts
        return self

    def prepare(self, cache: CachedImages) -> float:
        """Decode and embed every image of the cache, unless that is done; seconds per image that it took."""
        seconds = 0.0
        if self.embedder is not None:
            seconds += cache.embeddings(self.embedder, grey=self.grey).seconds_per_image
        if self.model not in FROZEN:
            seconds += cache.pixels(self.image_size, grey=self.grey).seconds_per_image
        return seconds

    def predict(self, images: Any, *, workers: int | None = None) -> Predictions:
        """Class probabilities of new images: whatever `open_source` takes.

        Raises
        ------
        RuntimeError
            Before `fit`.
        """
        self._require_fitted()
        source = seen_by(open_source(images), grey=self.grey)
        found: dict[int, np.ndarray] = {}
        unreadable: list[UnreadableImage] = []
        for indices, logits in self._passes(source, workers, unreadable):
            found.update(zip(indices, probabilities(logits).double().cpu().numpy(), strict=True))
        order = sorted(found)
        rows = [found[i] for i in order]
        table = np.stack(rows) if rows else np.zeros((0, len(self.classes_)))
        return Predictions([source.ids[i] for i in order], list(self.classes_), table, unreadable)

    def config(self) -> dict[str, Any]:
        """Every setting that matters to what is learnt, JSON-able."""
        return {
            **{name: getattr(self, name) for name in _SETTINGS},
            "augmentation": None if self.augmentation is None else dict(vars(self.augmentation)),
            "backbone": None if self.embedder is None else self.embedder.describe(),
        }

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the classifier to one safetensors file. A frozen backbone stays outside it, as with `Detector.save`.

        Raises
        ------
        OSError
            If it cannot be written; the old file, if any, is untouched.
        """
        self._require_fitted()
        return save_network(path, self.network_, {"config": self.config(), "classes": self.classes_}, kind=_KIND)

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        *,
        weights: Weights | None = None,
        download: bool = False,
        device: str = "auto",
        dtype: str = "auto",
    ) -> Classifier:
        """Read a classifier written by `save`. Nothing in the file is executed.

        Parameters
        ----------
        path : path
        weights : optional
            Those of a frozen torchvision backbone, if they are a local file. A fine-tuned one is in the file.
        download : bool
            Fetch those of a frozen torchvision backbone if they are not on this machine; otherwise that is an error.
        device : as for `Embedder`
        dtype : as for `Embedder`

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ModelFileError
            If it is no classifier, is damaged, or the backbone's weights are not those it was trained on.
        WeightsError
            If a frozen backbone's weights cannot be had.
        """
        name = Path(path).name
        pick_dtype(dtype, pick_device(device))  # what is wrong with these is not the fault of the file

        def rebuild(manifest: dict[str, Any], state: State, own: StoredWeights | None) -> tuple[Classifier, nn.Module]:
            config = manifest["config"]
            described, changes = config["backbone"], config["augmentation"]
            backbone, layers = (BUILTIN, None) if described is None else described_backbone(described)
            classes = manifest["classes"]
            if not isinstance(classes, list) or not all(isinstance(entry, str) for entry in classes):
                raise ValueError("the classes are no list of names")
            classifier = cls(
                **checked(config, _SETTINGS),
                backbone=backbone,
                layers=layers,
                weights=own or weights_of(backbone, weights, (described or {}).get("fingerprint"), download=download),
                augmentation=None if changes is None else Augmentation(**changes),
                device=device,
                dtype=dtype,
            )
            embedder = classifier.embedder
            if embedder is not None and own is None and embedder.fingerprint != described["fingerprint"]:
                raise ModelFileError(
                    f"{name} was trained on other weights of {described['backbone']} than those given; give the same "
                    "file"
                )
            classifier.classes_ = classes
            with without_memory():
                return classifier, classifier._empty_network(len(classes), state)

        classifier, network = load_network(path, kind=_KIND, backbone="backbone", rebuild=rebuild)
        classifier.network_ = network.to(classifier.device).to(memory_format=torch.channels_last)
        classifier.history_ = History()
        return classifier

    def _require_fitted(self) -> None:
        if not hasattr(self, "network_"):
            raise RuntimeError("this classifier is not fitted yet; call fit() or load() first")

    def _is_binary(self, classes: int) -> bool:
        if self.loss == "binary" and classes != 2:
            raise ValueError(f"loss='binary' tells two classes apart, and there are {classes}; use 'categorical'")
        return classes == 2 and self.loss != "categorical"

    def _network(self, outputs: int, parts: Split, cache: CachedImages) -> nn.Module:
        if self.embedder is None:
            dropout = 0.0 if self.model == "cnn" else self.dropout
            return SmallCNN(outputs, image_size=self.image_size, dropout=dropout)
        vectors = torch.from_numpy(cache.embeddings(self.embedder, grey=self.grey).values[parts.train])
        return self._on_backbone(vectors, outputs)

    def _on_backbone(self, vectors: Tensor, outputs: int) -> nn.Module:
        assert self.embedder is not None
        if self.model == "bottleneck":
            return VectorHead(vectors, outputs, hidden=BOTTLENECK, dropout=self.dropout)
        head = VectorHead(vectors, outputs)
        if self.model == "linear":
            return head
        backbone = self.embedder.fresh_network()  # its own copy: it will be changed
        return TransferNetwork(backbone, head, self.unfreeze_from or default_block(backbone))

    def _empty_network(self, classes: int, state: dict[str, Tensor]) -> nn.Module:
        """A network of the right shape, to be filled from a file."""
        outputs = 1 if self._is_binary(classes) else classes
        if self.embedder is None:
            return SmallCNN(outputs, image_size=self.image_size, dropout=self.dropout)
        prefix = "head." if self.model == "finetune" else ""
        return self._on_backbone(torch.zeros(2, len(state[f"{prefix}mean"])), outputs)

    def _inputs(self, cache: CachedImages) -> Callable[[np.ndarray, torch.Generator | None], Tensor]:
        """What the network is fed: a function of positions and, in training, of a generator."""
        if self.model in FROZEN:
            assert self.embedder is not None
            vectors = torch.from_numpy(cache.embeddings(self.embedder, grey=self.grey).values).to(self.device)
            return lambda chosen, generator: vectors[torch.from_numpy(chosen).to(self.device)]
        pixels = cache.pixels(self.image_size, grey=self.grey).values

        def batch(chosen: np.ndarray, generator: torch.Generator | None) -> Tensor:
            images = as_images(pixels[chosen], self.device)
            if generator is not None and self.augmentation is not None:
                images, _ = self.augmentation(images, generator)
            return standardised(images)

        return batch

    def _passes(
        self, source: ImageSource, workers: int | None, unreadable: list[UnreadableImage]
    ) -> Iterator[tuple[list[int], Tensor]]:
        """(indices, logits) batch by batch; unreadable images are added to the list."""
        if self.model in FROZEN:
            assert self.embedder is not None
            for image in embed_source(self.embedder, source, np.arange(len(source)), workers=workers):
                if isinstance(image, UnreadableImage):
                    unreadable.append(image)
                    continue
                with torch.inference_mode():
                    yield [image.index], self.network_(torch.from_numpy(image.embedding[None]).to(self.device))
            return
        for indices, pixels in pixel_batches(source, self.image_size, self.options.batch_size, workers, unreadable):
            images = as_images(pixels, self.device)
            with torch.inference_mode(), autocast(self.device, self.dtype):
                yield indices, self.network_(standardised(images))
