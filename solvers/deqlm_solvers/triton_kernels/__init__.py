"""The step on a GPU: what a solve does between two evaluations of f, in Triton kernels of few launches."""
