"""The operations that hardware decides, in every form there is of them.

    xla.py      linear, attend, norm, rotate, activate: by XLA, on any device; the draw, stage by stage as the
                reference, is in sampler.py
    native.py   these and draw: by the C++ in cpu/, built for this CPU
    panels.py   weights packed as the native product reads them, once, when they are loaded
    choice.py   which of them the compiled programs call

A form may replace another where a row's bits depend on that row alone, so that neighbours change no byte. Natively the
number of threads, which cpu/threads.h shares the work between, changes none either. What a draw reports is also an
operation of its own, for ids that are given: those of a prompt.
"""
