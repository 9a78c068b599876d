"""What is here runs through tests/test_interpreted.py, or by hand with TRITON_INTERPRET=1."""

import os

if os.environ.get("TRITON_INTERPRET") != "1":
    collect_ignore_glob = ["test_*.py"]
else:
    from triton.runtime import interpreter

    patched = set()

    def called(self, *arguments, **options):
        """A function that a kernel calls. Triton patches what its module sees of the language at each call, a third of all time; once
        is enough, as it never takes that back."""
        if self.fn.__module__ not in patched:
            patched.add(self.fn.__module__)
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*arguments, **options)

    interpreter.InterpretedFunction.__call__ = called
