"""Train an autoencoder on your own folder of images, and put it to use.

    import autoencode

    run = autoencode.train("photos", "runs/photos")
    model = autoencode.load_model(run.model_path)
    images = model.read(["photos/a.jpg", "photos/b.jpg"])  # (2, 3, H, W) in [0, 1]
    codes = model.encode(images)  # (2, D)
    restored = model.decode(codes)  # (2, 3, H, W) in [0, 1]

The public API is what the stub `__init__.pyi` lists; nothing else is promised. Names are imported when they
are first used, so that `import autoencode` does not load torch.
"""

import lazy_loader

from autoencode.errors import VERSION as __version__
from autoencode.notebook import is_notebook, with_progress

_load, _, _names = lazy_loader.attach_stub(__name__, __file__)
__all__ = sorted([*_names, "__version__"])


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'autoencode' has no attribute {name!r}")
    value = _load(name)
    if is_notebook():
        value = globals()[name] = with_progress(value)  # in place of what was loaded, which is kept there
    return value


def __dir__() -> list[str]:
    return __all__
