"""From what was chosen to what computes: scorer, row selection, reduction and embedder, all of them unfitted."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

from anomalib_lite.detecting.parameters import Parameters
from anomalib_lite.detecting.quality import PARTS
from anomalib_lite.embedding.embedder import Embedder
from anomalib_lite.fitted.rows import RowSelection
from anomalib_lite.scoring import Scorer, make_scorer
from anomalib_lite.scoring.reduction import PCA, Reduction, Standardizer

# Dimensions of patch vectors after PCA: 95 % of the variance of ResNet18's on metal_nut, 99 % on bottle.
_PATCH_COMPONENTS = 128


@dataclass(frozen=True, eq=False)
class Templates:
    """What a fit copies and lets learn, made once; see `made_of`."""

    scorer: Scorer
    selection: RowSelection
    embedder: Embedder
    n_components: int | float | Literal["auto"] | None
    whiten: bool

    def new_scorer(self) -> Scorer:
        """An unfitted scorer; its fit binds new attributes, so the template stays as it is."""
        return copy.copy(self.scorer)

    def new_selection(self) -> RowSelection:
        """A selection of rows that has learnt nothing."""
        return copy.copy(self.selection)

    def new_reduction(self, most: int) -> Reduction:
        """An unfitted reduction for rows that can give `most` components."""
        if self.n_components is None or (self.n_components == "auto" and self.embedder.level == "global"):
            return Standardizer()
        # The channels of one layer of a network have a common unit; means and deviations of several layers do not.
        standardize = self.embedder.level == "global"
        if self.n_components == "auto":
            if self.scorer.name == "subspace":  # has a PCA of its own
                return Standardizer()
            return PCA(min(_PATCH_COMPONENTS, most), whiten=self.whiten, standardize=standardize)
        return PCA(self.n_components, whiten=self.whiten, standardize=standardize)


def made_of(parameters: Parameters) -> Templates:
    """Make what learns and embeds of what was chosen.

    Raises
    ------
    ValueError, WeightsError
        If a parameter of theirs is out of range, or the network's weights cannot be had.
    """
    level = parameters.embedded_at
    scorer = parameters.scorer
    if isinstance(scorer, str):
        scorer = make_scorer(
            scorer,
            level,
            bank_size=parameters.bank_size,
            selection=parameters.selection,
            k=parameters.k,
            n_clusters=parameters.n_clusters,
            eps=parameters.eps,
            min_samples=parameters.min_samples,
            random_state=parameters.random_state,
            device=parameters.device,
        )
    usually = scorer.name in ("kmeans", "dbscan") and level == "patch"
    return Templates(
        scorer=scorer,
        selection=RowSelection(parameters.trim, random_state=parameters.random_state, device=parameters.device),
        embedder=Embedder(
            parameters.backbone,
            layers=parameters.layers,
            level=level,
            weights=parameters.weights,
            image_size=parameters.image_size,
            device=parameters.device,
            dtype=parameters.dtype,
            engine=parameters.engine,
            batch_size=parameters.batch_size,
            context=PARTS.context if isinstance(parameters.context, str) else parameters.context,
            to_be_calibrated=True,
        ),
        n_components=parameters.n_components,
        whiten=usually if parameters.whiten == "auto" else parameters.whiten,
    )
