"""torchvision, also where its compiled operators do not fit this torch (PyPI's CUDA build beside a
CPU build of torch).

Import this module before anything that imports torchvision. Datasets, transforms.v2 and utils then
work; torchvision.io and torchvision.ops do not.
"""

import sys
import types

try:
    import torchvision
except RuntimeError as error:
    if "torchvision::" not in str(error):
        raise
    for name in [n for n in sys.modules if n.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    sys.modules["torchvision._meta_registrations"] = types.ModuleType(
        "torchvision._meta_registrations"
    )
    import torchvision

__all__ = ["torchvision"]
