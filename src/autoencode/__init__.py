"""Train an autoencoder on your own folder of images, and put it to use.

    import autoencode

    run = autoencode.train("photos", "runs/photos")
    model = autoencode.load_model(run.model_path)
    images = model.read(["photos/a.jpg", "photos/b.jpg"])  # (2, 3, H, W) in [0, 1]
    codes = model.encode(images)  # (2, D)
    restored = model.decode(codes)  # (2, 3, H, W) in [0, 1]

What is listed in `__all__` is the public API; nothing else is promised. Names are imported when they are
first used, so that `import autoencode` does not load torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from autoencode.version import VERSION as __version__

if TYPE_CHECKING:
    from autoencode.applications.classifier import (
        Classifier,
        Prediction,
        Predictions,
        classify,
        load_classifier,
        save_classifier,
    )
    from autoencode.applications.detection import Detection
    from autoencode.applications.duplicates import NearDuplicates, NearPair
    from autoencode.applications.evaluate import Evaluation, evaluate
    from autoencode.applications.export import OnnxFile, export_onnx
    from autoencode.applications.features import FeatureMaps, LayerMaps, features
    from autoencode.applications.generate import Samples, fit_prior, generate, walk
    from autoencode.applications.heatmaps import heat_maps
    from autoencode.applications.index import Index, Neighbour, Neighbours, SearchResults
    from autoencode.applications.indexing import build_index
    from autoencode.applications.lanceindexing import remove_source
    from autoencode.applications.morph import Morph, morph
    from autoencode.applications.outlier_reference import OutlierReference, fit_reference
    from autoencode.applications.outliers import Finding, Outliers, find_outliers
    from autoencode.applications.quality import CodeQuality, ImageQuality
    from autoencode.applications.reconstruct import Reconstruction, Reconstructions, reconstruct
    from autoencode.applications.retrieval import (
        RetrievalQuality,
        evaluate_search,
        retrieval_quality,
    )
    from autoencode.applications.search import FileIndex, open_index
    from autoencode.applications.transfer import Accuracy, Transfer, transfer
    from autoencode.data.images import Limits, Preprocessing
    from autoencode.data.pack import Pack, Parts, open_pack, pack_folder, pack_part
    from autoencode.errors import (
        AutoencodeError,
        ConfigError,
        DivergedError,
        ImageError,
        ImageFolderError,
        ImageIndexError,
        MissingExtraError,
        ModelFileError,
        OutputError,
        PackError,
        RunError,
        StorageError,
    )
    from autoencode.evaluation.scores import Estimate, Interval
    from autoencode.models.autoencoder import Autoencoder, ModelConfig
    from autoencode.models.modelfile import load_model, save_model
    from autoencode.models.prior import GaussianMixture, StandardNormal
    from autoencode.training.config import PRESETS, TrainConfig, settings
    from autoencode.training.loop import Progress
    from autoencode.training.on_ray import train_on_ray
    from autoencode.training.train import Run, train

_HOME = {
    "applications.classifier": (
        "Classifier",
        "Prediction",
        "Predictions",
        "classify",
        "load_classifier",
        "save_classifier",
    ),
    "applications.features": ("FeatureMaps", "LayerMaps", "features"),
    "applications.duplicates": ("NearDuplicates", "NearPair"),
    "applications.generate": ("Samples", "fit_prior", "generate", "walk"),
    "applications.index": ("Index", "Neighbour", "Neighbours", "SearchResults"),
    "applications.indexing": ("build_index",),
    "applications.lanceindexing": ("remove_source",),
    "applications.morph": ("Morph", "morph"),
    "applications.detection": ("Detection",),
    "applications.evaluate": ("Evaluation", "evaluate"),
    "applications.export": ("OnnxFile", "export_onnx"),
    "applications.heatmaps": ("heat_maps",),
    "applications.outlier_reference": ("OutlierReference", "fit_reference"),
    "applications.outliers": ("Finding", "Outliers", "find_outliers"),
    "applications.quality": ("CodeQuality", "ImageQuality"),
    "applications.reconstruct": ("Reconstruction", "Reconstructions", "reconstruct"),
    "applications.transfer": ("Accuracy", "Transfer", "transfer"),
    "applications.retrieval": ("RetrievalQuality", "evaluate_search", "retrieval_quality"),
    "applications.search": ("FileIndex", "open_index"),
    "data.images": ("Limits", "Preprocessing"),
    "data.pack": ("Pack", "Parts", "open_pack", "pack_folder", "pack_part"),
    "errors": (
        "AutoencodeError",
        "ConfigError",
        "DivergedError",
        "ImageError",
        "ImageFolderError",
        "ImageIndexError",
        "MissingExtraError",
        "ModelFileError",
        "OutputError",
        "PackError",
        "RunError",
        "StorageError",
    ),
    "evaluation.scores": ("Estimate", "Interval"),
    "models.autoencoder": ("Autoencoder", "ModelConfig"),
    "models.modelfile": ("load_model", "save_model"),
    "models.prior": ("GaussianMixture", "StandardNormal"),
    "training.config": ("PRESETS", "TrainConfig", "settings"),
    "training.loop": ("Progress",),
    "training.on_ray": ("train_on_ray",),
    "training.train": ("Run", "train"),
}
_MODULE_OF = {name: f"autoencode.{module}" for module, names in _HOME.items() for name in names}

__all__ = [
    "PRESETS",
    "Accuracy",
    "AutoencodeError",
    "Autoencoder",
    "Classifier",
    "CodeQuality",
    "ConfigError",
    "Detection",
    "DivergedError",
    "Estimate",
    "Evaluation",
    "FeatureMaps",
    "FileIndex",
    "Finding",
    "GaussianMixture",
    "ImageError",
    "ImageFolderError",
    "ImageIndexError",
    "ImageQuality",
    "Index",
    "Interval",
    "LayerMaps",
    "Limits",
    "MissingExtraError",
    "ModelConfig",
    "ModelFileError",
    "Morph",
    "NearDuplicates",
    "NearPair",
    "Neighbour",
    "Neighbours",
    "OnnxFile",
    "OutlierReference",
    "Outliers",
    "OutputError",
    "Pack",
    "PackError",
    "Parts",
    "Prediction",
    "Predictions",
    "Preprocessing",
    "Progress",
    "Reconstruction",
    "Reconstructions",
    "RetrievalQuality",
    "Run",
    "RunError",
    "Samples",
    "SearchResults",
    "StandardNormal",
    "StorageError",
    "TrainConfig",
    "Transfer",
    "__version__",
    "build_index",
    "classify",
    "evaluate",
    "evaluate_search",
    "export_onnx",
    "features",
    "find_outliers",
    "fit_prior",
    "fit_reference",
    "generate",
    "heat_maps",
    "load_classifier",
    "load_model",
    "morph",
    "open_index",
    "open_pack",
    "pack_folder",
    "pack_part",
    "reconstruct",
    "remove_source",
    "retrieval_quality",
    "save_classifier",
    "save_model",
    "settings",
    "train",
    "train_on_ray",
    "transfer",
    "walk",
]


def __getattr__(name: str) -> object:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'autoencode' has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
