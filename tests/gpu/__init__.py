"""What only a machine with an NVIDIA GPU can show. Passed by where there is none."""
