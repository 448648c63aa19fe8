"""What the reference asks of the machine: files that are whole, and a BLAS whose bits are known."""
