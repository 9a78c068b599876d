"""What is here runs through tests/kernels/test_interpreted.py, or by hand with TRITON_INTERPRET=1,
and with KERNELS_ON_CUDA=1 on a GPU."""

import os

import torch

if os.environ.get("KERNELS_ON_CUDA") == "1":
    # what a test makes without a word is on the GPU, and so is what it draws
    torch.set_default_device("cuda")

    class OnCuda(torch.Generator):
        def __new__(cls, device="cuda"):
            return super().__new__(cls, device)

    import torch._inductor.decomposition

    torch.Generator = OnCuda
elif os.environ.get("TRITON_INTERPRET") == "1":
    from triton.runtime import interpreter

    patched = set()

    def called(self, *arguments, **options):
        """A function that a kernel calls. Triton patches its module's language again at each call,
        a third of all time. A launch patches the kernel's own, and takes that back; what a call
        patches beside, such as tl.core, is never taken back, so once is enough."""
        if self.fn.__module__ not in patched:
            interpreter._patch_lang(self.fn)
            patched.add(self.fn.__module__)
        return self.rewrite()(*arguments, **options)

    interpreter.InterpretedFunction.__call__ = called
else:
    collect_ignore_glob = ["test_*.py"]
