"""Visual anomaly detection from good images only.

Show it pictures of good parts; it tells which new pictures are not good, where, and how sure it is:

    from anomalib_lite import fit, score

    detector = fit("metal_nut/train/good")
    scores = score(detector, "metal_nut/test")

Names are imported when they are first used: importing the package loads neither torch nor anything slow.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from anomalib_lite.version import __version__

_HOME = {
    "Detector": "detector",
    "fit": "detector",
    "score": "detector",
    "NoGoodImagesError": "fitted.plan",
    "evaluate": "evaluation.measuring",
    "operating_points": "evaluation.operating",
    "compare": "comparison.comparing",
    "Comparison": "comparison.tables",
    "Classifier": "supervised.classifier",
    "Segmenter": "supervised.segmenter",
    "open_labelled": "supervised.labelled",
    "LabelledDataError": "supervised.labelled",
    "diagnose": "diagnosis.advice",
    "capability": "diagnosis.capability",
    "Capability": "diagnosis.capability",
    "write_report": "report.page",
    "Scores": "results",
    "Judge": "judging",
    "Verdict": "judging",
    "Evaluation": "evaluation.result",
    "ModelFileError": "files.model_file",
    "UnreadableImageError": "images.decoding",
    "WeightsError": "embedding.weights",
    "PCA": "scoring.reduction",
    "KNNScorer": "scoring",
    "KMeansScorer": "scoring",
    "DBSCANScorer": "scoring",
    "SubspaceScorer": "scoring",
    "greedy_k_center": "scoring",
    "Calibration": "fitted.calibration",
    "Variations": "images.variations",
    "make_metal_nut": "images.synthetic",
    "download": "images.download",
}

__all__ = [
    "PCA",
    "Calibration",
    "Capability",
    "Classifier",
    "Comparison",
    "DBSCANScorer",
    "Detector",
    "Evaluation",
    "Judge",
    "KMeansScorer",
    "KNNScorer",
    "LabelledDataError",
    "ModelFileError",
    "NoGoodImagesError",
    "Scores",
    "Segmenter",
    "SubspaceScorer",
    "UnreadableImageError",
    "Variations",
    "Verdict",
    "WeightsError",
    "__version__",
    "capability",
    "compare",
    "diagnose",
    "download",
    "evaluate",
    "fit",
    "greedy_k_center",
    "make_metal_nut",
    "open_labelled",
    "operating_points",
    "score",
    "write_report",
]

if TYPE_CHECKING:
    from anomalib_lite.comparison.comparing import compare
    from anomalib_lite.comparison.tables import Comparison
    from anomalib_lite.detector import Detector, fit, score
    from anomalib_lite.diagnosis.advice import diagnose
    from anomalib_lite.diagnosis.capability import Capability, capability
    from anomalib_lite.embedding.weights import WeightsError
    from anomalib_lite.evaluation.measuring import evaluate
    from anomalib_lite.evaluation.operating import operating_points
    from anomalib_lite.evaluation.result import Evaluation
    from anomalib_lite.files.model_file import ModelFileError
    from anomalib_lite.fitted.calibration import Calibration
    from anomalib_lite.fitted.plan import NoGoodImagesError
    from anomalib_lite.images.decoding import UnreadableImageError
    from anomalib_lite.images.download import download
    from anomalib_lite.images.synthetic import make_metal_nut
    from anomalib_lite.images.variations import Variations
    from anomalib_lite.judging import Judge, Verdict
    from anomalib_lite.report.page import write_report
    from anomalib_lite.results import Scores
    from anomalib_lite.scoring import DBSCANScorer, KMeansScorer, KNNScorer, SubspaceScorer, greedy_k_center
    from anomalib_lite.scoring.reduction import PCA
    from anomalib_lite.supervised.classifier import Classifier
    from anomalib_lite.supervised.labelled import LabelledDataError, open_labelled
    from anomalib_lite.supervised.segmenter import Segmenter


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
