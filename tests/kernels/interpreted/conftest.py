"""What is here runs through tests/kernels/test_interpreted.py, or by hand with
TRITON_INTERPRET=1."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
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
