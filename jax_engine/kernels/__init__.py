"""The operations that hardware decides, in every form there is of them.

    xla.py      linear, attend: by XLA, on any device
    native.py   linear, attend: by the C++ in cpu/, built for this CPU
    panels.py   weights packed as the native product reads them, once, when they are loaded
    choice.py   which of them the compiled programs call

A form may replace another where a row's bits depend on that row alone, so that neighbours change no byte. Natively the
number of threads, which cpu/threads.h shares the work between, changes none either. The draw has
one form, and no other is in sight: it stays in sampler.py as number 7 of the law, beside the reference's.
"""
